"""The first line of an error says which argument, and what to do about it."""

import inspect
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
import torch
from jax.experimental import sparse

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_torch.agreement import compare_gradients
from diffkm_torch.bridge import jax_to_torch, torch_to_jax

X = np.random.default_rng(0).normal(size=(8, 3))
C = X[:2]
XT, CT = torch.as_tensor(X), torch.as_tensor(C)
KEY = jax.random.key(0)
RESULTS = [dk.fit(X, C), dk.init(C)]
RESULTS_TORCH = [dt.fit(XT, CT), dt.init(CT)]


def raises(error, start):
    """Expects one line that starts so, alone: no other error is shown with it."""
    return pytest.raises(error, match=f"^{start}[^\n]*$")


def test_chex_says_nothing():
    cases = [
        ((X + 1j, C), TypeError, "points must be floating, got dtype complex128$"),
        ((X[0], C), ValueError, r"points must be \[n, d\], got shape \(3,\)$"),
        ((X, C, np.ones(2)), TypeError, "active must be bool, got dtype float64$"),
    ]
    for (x, c, *active), error, message in cases:
        with raises(error, message) as found:
            dk.assign(x, c, active=active[0] if active else None)
        assert found.value.__suppress_context__
        assert found.value.__cause__ is None


@pytest.mark.parametrize(
    "call",
    [
        lambda key: dk.kmeans_plus_plus(key, X, 3),
        lambda key: dk.random_points(key, X, 3),
        lambda key: dk.fit_restarts(key, X, 3),
        lambda key: dk.estimators.reinforce().draw(key, (3,)),
        lambda key: dk.evaluate(key, lambda r: r[..., 0], X, dk.estimators.rloo()),
        lambda key: dk.is_discrete(key, lambda r: r[..., 0], X, dk.estimators.rloo()),
    ],
    ids=["plus_plus", "random", "restarts", "draw", "evaluate", "is_discrete"],
)
def test_a_key_is_asked_for(call):
    first = "key must be a random key, and the first argument, as "
    for bad, shown in (
        (7, r"jax\.random\.key\(7\); got 7$"),
        (X, r"jax\.random\.key\(0\); got an array of shape \(8, 3\), dtype float64$"),
        (None, r"jax\.random\.key\(0\); got None$"),
        (torch.Generator(), r".*; got an object of type Generator$"),
        (jax.random.split(KEY), r".*; got an array of shape \(2,\), dtype key<fry>$"),
    ):
        with raises(TypeError, first + shown):
            call(bad)


def test_keys_typed_and_raw_are_taken():
    raw = jax.random.PRNGKey(0)
    for key in (KEY, raw, np.asarray(raw)):
        assert dk.kmeans_plus_plus(key, X, 3).shape == (3, 3)
    starts = jax.vmap(lambda key: dk.random_points(key, X, 3))(jax.random.split(KEY, 2))
    assert starts.shape == (2, 3, 3)


def test_a_key_that_is_last_or_forgotten():
    with raises(TypeError, "key must be a random key, and the first argument"):
        dk.kmeans_plus_plus(X, 3, KEY)
    for name in ("kmeans_plus_plus", "random_points", "fit_restarts"):
        hint = rf"{name}\(\) missing .* 'k': a random key comes first, as jax\.random"
        with raises(TypeError, hint):
            getattr(dk, name)(X, 3)


def test_a_number_of_clusters_for_centroids():
    hint = (
        r"centroids must be \[k, d\], got one number: .*kmeans_plus_plus.*fit_restart"
    )
    for function in (dk.fit, dk.kmeans_loss, dk.assign):
        with raises(ValueError, hint):
            function(X, 3)
    with raises(
        TypeError, "centroids must be a tensor, got int: pass k rows of points"
    ):
        dt.fit(XT, 3)


@pytest.mark.parametrize(
    ("package", "x", "results"),
    [(dk, X, RESULTS), (dt, XT, RESULTS_TORCH)],
    ids=["jax", "torch"],
)
def test_a_result_for_centroids(package, x, results):
    for result in results:
        kind = type(result).__name__
        for name in ("assign", "kmeans_loss", "statistics", "quantize", "pairwise"):
            with raises(TypeError, f"centroids must be .*{kind}: pass its .centroids$"):
                getattr(package, name)(x, result)
    with raises(TypeError, r"centroids must be .*: pass result\.state$"):
        package.fit(x, results[0])
    with raises(
        TypeError, r"state must be a State, got FitResult: pass result\.state$"
    ):
        package.update(x, results[0])
    with raises(TypeError, r"state must be a State, got .*: init\(centroids\)$"):
        package.update(x, x[:2])
    assert package.fit(x, results[1]).num_steps > 0


def test_what_is_no_array():
    bad = torch.zeros(8, 3, requires_grad=True)
    for value, hint in (
        (None, "got None$"),
        ("data.csv", r"got 'data\.csv'$"),
        ({}, "got dict$"),
        ([[1.0], [1.0, 2.0]], r"got list \(.*inhomogeneous"),
        (X.astype(object), "got ndarray$"),
        (
            scipy.sparse.csr_matrix(X),
            r"got csr_matrix, which is sparse: .*\.todense\(\)",
        ),
        (scipy.sparse.coo_array(X), r"got coo_array, which is sparse: .*\.todense\(\)"),
        (sparse.BCOO.fromdense(X), r"got BCOO, which is sparse: .*\.todense\(\)"),
        (bad, r"got a torch tensor: .*\.detach\(\).*diffkm_torch.*jax_to_torch"),
        (bad.bfloat16(), r"got a torch tensor: .*\.float\(\)"),
        (bad.detach().to_sparse(), r"got a torch tensor: .*\.to_dense\(\)"),
    ):
        for name, call in (
            ("points", lambda v: dk.kmeans_loss(v, C)),
            ("centroids", lambda v: dk.assign(X, v)),
            ("logits", dk.softmax),
            ("x", lambda v: dk.cosine(v, X)),
        ):
            with raises(TypeError, f"{name} must be an array of real numbers, {hint}"):
                call(value)


def test_what_is_no_tensor():
    for value, hint in (
        (None, "got None$"),
        (X, r"got ndarray: pass torch\.as_tensor\({}\)$"),
        ([[1.0]], r"got list: pass torch\.as_tensor\({}\)$"),
        (
            jnp.ones((8, 3)),
            r"got ArrayImpl, of JAX: .*from_dlpack\({}\), .* diffkm_jax$",
        ),
        (
            scipy.sparse.csr_matrix(X),
            r"got csr_matrix, which is sparse: .*\.todense\(\)",
        ),
        (XT.to_sparse(), r"got layout torch.sparse_coo: .* {}\.to_dense\(\)$"),
    ):
        for name, call in (
            ("points", lambda v: dt.kmeans_loss(v, CT)),
            ("centroids", lambda v: dt.assign(XT, v)),
            ("active", lambda v: dt.assign(XT, CT, active=v or object())),
            ("logits", dt.softmax),
            ("x", lambda v: dt.cosine(v, XT)),
        )[: 5 if value is None else 2]:
            hint_of_it = hint.replace("{}", name).replace(
                "got None", "got (None|object)"
            )
            with raises(TypeError, f"{name} must be a tensor, {hint_of_it}"):
                call(value)


SKLEARN = {
    "max_iter": "it is max_steps here",
    "n_clusters": r"centroids has k rows",
    "n_init": "fit",
    "random_state": "nothing is drawn here",
    "sample_weight": "it is weights here",
    "init": "the start is centroids",
    "algorithm": "it is optimizer here",
    "verbose": "the result has a history",
    "batch_size": "update .*one batch",
}


@pytest.mark.parametrize(("package", "x"), [(dk, X), (dt, XT)], ids=["jax", "torch"])
def test_words_of_scikit_learn(package, x):
    for word, hint in SKLEARN.items():
        message = rf"fit\(\) got an unexpected keyword argument '{word}'.*: .*{hint}"
        with raises(TypeError, message):
            package.fit(x, x[:2], **{word: 3})
    with raises(TypeError, ".*'tau'.*: it is temperature here"):
        package.soft_kmeans_loss(x, x[:2], tau=3.0)
    with pytest.raises(TypeError, match=r"'tolerance'$|'tolerance'\. Did you mean"):
        package.fit(x, x[:2], tolerance=3)


def test_words_that_a_function_with_a_key_has_otherwise():
    for word, hint in (
        ("n_clusters", "it is k here"),
        ("n_init", "it is num_restarts here"),
        ("random_state", "it is key here"),
        ("init", "it is initializer here"),
    ):
        with raises(TypeError, f"fit_restarts.*'{word}'.*: {hint}"):
            dk.fit_restarts(KEY, X, **{word: 3})


def test_a_key_that_was_given_is_not_asked_for():
    for key in (KEY, jax.random.PRNGKey(0)):
        with raises(TypeError, "fit_minibatch.*'num_steps'$"):
            dk.fit_minibatch(key, X, X[:2])
    for word in ("max_steps", "max_iter"):
        with raises(TypeError, f"fit_minibatch.*'{word}'.*: .*num_steps"):
            dk.fit_minibatch(KEY, X, X[:2], **{word: 3})


def test_an_error_inside_a_call_that_fits_is_left_as_it_is():
    def distance(x, y):
        return jnp.sum(x, nonsense=1)

    with pytest.raises(
        TypeError, match=r"^sum\(\) got an unexpected keyword argument 'nonsense'(\n|$)"
    ):
        dk.fit(X, C, distance=distance, optimizer=optax.sgd(0.1))


@pytest.mark.parametrize("package", [dk, dt], ids=["jax", "torch"])
def test_functions_keep_their_signatures_names_and_pickles(package):
    for name in ("fit", "update", "kmeans_loss", "assign", "quantize"):
        function = getattr(package, name)
        assert function.__name__ == name
        assert "points" in inspect.signature(function).parameters
        assert pickle.loads(pickle.dumps(function)) is function


def test_what_was_not_called():
    hint = ": call it, as newton\\(\\)$"
    for optimizer in (dk.newton, dk.macqueen, optax.adam):
        name = optimizer.__name__
        with raises(TypeError, f"optimizer must be .*, got {name}{hint}"):
            dk.fit(X, C, optimizer=optimizer)
    for optimizer in (dt.newton, dt.sgd):
        name = optimizer.__name__
        with raises(TypeError, f"optimizer must be .*, got {name}{hint}"):
            dt.fit(XT, CT, optimizer=optimizer)


def test_no_message_has_an_address():
    thing, loss = object(), dk.kmeans_loss
    record = dk.estimators.reinmax
    calls = [
        lambda: loss(X, C, distance=thing),
        lambda: loss(X, C, distance=optax.adam(0.1)),
        lambda: dk.assigned_loss(X, C, thing),
        lambda: dk.quantize(X, C, method=thing),
        lambda: dk.fit(X, C, optimizer=thing),
        lambda: dk.fit(X, C, empty=thing),
        lambda: dk.fit(X, C, derivative=thing),
        lambda: dk.fit(X, C, derivative=lambda: 0),
        lambda: dk.fit(
            X, C, derivative="one_step", distance=lambda x, y: 0, optimizer=optax.sgd(1)
        ),
        lambda: dk.evaluate(KEY, loss, X, record),
        lambda: dk.kmeans_plus_plus(thing, X, 2),
        lambda: dk.conditional_gumbel(X, X, X, differentiable=thing),
        lambda: dk.softmax(X, tau=thing),
        lambda: loss(thing, C),
        lambda: dt.kmeans_loss(XT, CT, distance=thing),
        lambda: dt.fit(XT, CT, optimizer=thing),
        lambda: dt.fit(XT, CT, empty=thing),
        lambda: dt.fit(XT, CT, derivative=thing),
        lambda: dt.softmax(XT, tau=thing),
        lambda: dt.kmeans_loss(thing, CT),
        lambda: dt.KMeansLoss(CT, reduction=thing),
        lambda: dt.conditional_gumbel(XT, XT, XT, differentiable=thing),
        lambda: compare_gradients(thing, loss, X),
        lambda: jax_to_torch(thing),
        lambda: torch_to_jax(thing),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError), match=r"must be|needs") as found:
            call()
        assert not re.search("0x[0-9a-f]{6}", str(found.value))


@pytest.mark.parametrize("module", [dk, dt])
def test_settings_that_are_no_numbers(module):
    for bad in ("a", None, [0.5], X[0] if module is dk else XT[0]):
        with raises(TypeError, "decay must be a number or a schedule .*, got "):
            module.ema(bad)
    with raises(TypeError, "baseline must be .*, got "):
        module.estimators.reinforce(baseline="a")


@pytest.mark.parametrize(
    ("call", "got"),
    [
        (lambda: dk.fit(X, C, distance=dk.mahalanobis), r"mahalanobis\(precision\)"),
        (lambda: dk.pairwise(X, C, distance=dk.bregman), r"bregman\(phi\)"),
        (lambda: dt.fit(XT, CT, distance=dt.bregman), r"bregman\(phi\)"),
        (
            lambda: dk.quantize(X, C, method=dk.nsvq),
            r"nsvq\(points, centroids, noise\)",
        ),
        (lambda: dt.quantize(XT, CT, method=dt.nsvq), r"nsvq\(points, centr.*noise\)"),
        (lambda: dk.assigned_loss(X, C, dk.reinmax), r"reinmax\(logits, noise\)"),
        (lambda: dt.assigned_loss(XT, CT, dt.reinmax), r"reinmax\(logits, noise\)"),
        (lambda: dk.kmeans_loss(X, C, distance=lambda x, y, *, p: x), r".*\(x, y, p\)"),
    ],
)
def test_a_function_of_more_than_the_arrays_says_what_it_needs(call, got):
    start = (
        r"(distance|method|assignment) must be a function of . (array|tensor)s?, got "
    )
    with raises(TypeError, start + got + ": call it first, or fix "):
        call()


@pytest.mark.parametrize("call", [dk.kmeans_loss, dt.kmeans_loss])
def test_an_array_too_many_is_told_that_the_rest_are_keywords(call):
    message = r"kmeans_loss\(\) takes 2 positional arguments but 3 were given"
    with raises(TypeError, message + ": the rest are keywords, as weights="):
        call(X, C, X[:, 0])
