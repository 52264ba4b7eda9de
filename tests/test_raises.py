"""Every error that a docstring lists, in both packages, with the name and the value."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import diffkm_jax as dk
import diffkm_torch as dt

X, C = np.random.default_rng(0).normal(size=(2, 8, 3))[0], np.eye(3)[:2]


class Package:
    """One of the two packages, with the arrays and the optimizers to call it with."""

    def __init__(self, module, array, gradient):
        self.module, self.array, self.gradient = module, array, gradient

    def call(self, name, *args, **options):
        def convert(value):
            return self.array(value) if isinstance(value, np.ndarray) else value

        options = {key: convert(value) for key, value in options.items()}
        return getattr(self.module, name)(*map(convert, args), **options)


BOTH = pytest.mark.parametrize(
    "package",
    [
        Package(dk, jnp.asarray, optax.sgd(0.1)),
        Package(dt, torch.as_tensor, dt.sgd(0.1)),
    ],
    ids=["jax", "torch"],
)
PAIRS = {
    "pairwise": {},
    "statistics": {},
    "assign": {},
    "kmeans_loss": {},
    "soft_kmeans_loss": {"temperature": 1.0},
    "fit": {},
}


@BOTH
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    ("points", "centroids", "error", "message"),
    [
        (X + 1j, C, TypeError, "^points must be floating, got dtype .*complex128$"),
        (X, C + 1j, TypeError, "^centroids must be floating, got dtype .*complex128$"),
        (X[0], C, ValueError, r"points must be \[n, d\], got shape \(3,\)"),
        (X, C[0], ValueError, r"centroids must be \[k, d\].*got shape \(3,\)"),
        (X, C[:, :2], ValueError, r"centroids must be .*d = 3.*got shape \(2, 2\)"),
        (X[:0], C, ValueError, r"points must have at least one row, .*\(0, 3\)"),
        (X, C[:0], ValueError, r"centroids must have at least one row, .*\(0, 3\)"),
    ],
)
def test_points_and_centroids(package, name, points, centroids, error, message):
    with pytest.raises(error, match=message):
        package.call(name, points, centroids, **PAIRS[name])


@BOTH
@pytest.mark.parametrize("name", ["statistics", "kmeans_loss", "fit"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": np.ones(8) + 1j}, TypeError, "weights must be floating.*complex"),
        ({"weights": np.ones(7)}, ValueError, r"weights must be \[n\] with n = 8.*7"),
        ({"active": np.ones(2)}, TypeError, "active must be bool, .*float64"),
        ({"active": np.ones(3, bool)}, ValueError, r"active must be \[k\].*k = 2.*3"),
        ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
        ({"block_size": 2.0}, TypeError, "block_size must be a Python integer"),
    ],
)
def test_options_of_every_pass(package, name, options, error, message):
    with pytest.raises(error, match=message):
        package.call(name, X, C, **options)


@BOTH
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("statistics", ()),
        ("soft_kmeans_loss", ()),
        ("fit", ()),
        ("assigned_loss", ("softmax",)),
    ],
)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "positive, got 0"),
        (-1.0, "positive, got -1.0"),
        (float("nan"), "positive, got nan"),
        (float("inf"), "positive, got inf"),
        (np.ones(2), r"scalar \(rank 0\), got shape \(2,\)"),
    ],
)
def test_temperature(package, name, more, value, message):
    more = [getattr(package.module, m) for m in more]
    with pytest.raises(ValueError, match=f"temperature must be .*{message}"):
        package.call(name, X, C, *more, temperature=value)


@BOTH
def test_a_soft_loss_needs_a_temperature(package):
    with pytest.raises(ValueError, match=r"temperature must be .*, got None"):
        package.call("soft_kmeans_loss", X, C, temperature=None)


@BOTH
@pytest.mark.parametrize("name", ["softmax", "straight_through"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "positive, got 0"),
        (-0.5, "positive, got -0.5"),
        (float("nan"), "positive, got nan"),
        (np.ones(3), r"scalar \(rank 0\), got shape \(3,\)"),
    ],
)
def test_tau(package, name, value, message):
    with pytest.raises(ValueError, match=f"tau must be .*{message}"):
        package.call(name, X, tau=value)


@BOTH
@pytest.mark.parametrize("name", ["hard", "softmax", "straight_through"])
def test_logits(package, name):
    with pytest.raises(TypeError, match=r"logits must be floating, got dtype .*int64"):
        package.call(name, X.astype(int))
    for bad in (np.asarray(1.0), np.ones((2, 0))):
        with pytest.raises(ValueError, match=r"logits must be \[..., k\].*got shape"):
            package.call(name, bad)


@BOTH
@pytest.mark.parametrize(
    "name", ["squared_euclidean", "manhattan", "cosine", "euclidean"]
)
def test_distances(package, name):
    with pytest.raises(TypeError, match="x must be floating"):
        package.call(name, X + 1j, X)
    with pytest.raises(TypeError, match="y must be floating"):
        package.call(name, X, X + 1j)
    with pytest.raises(ValueError, match=r"last axis d, got shapes \(8, 3\) and \(2,"):
        package.call(name, X, C[:, :2])
    with pytest.raises(ValueError, match=r"broadcast, got shapes \(8, 3\) and \(2, 3"):
        package.call(name, X, C)


@BOTH
def test_mahalanobis(package):
    with pytest.raises(TypeError, match="precision must be floating"):
        package.call("mahalanobis", np.eye(3, dtype=int))
    with pytest.raises(ValueError, match=r"precision must be square.*\(2, 3\)"):
        package.call("mahalanobis", C)
    distance = package.call("mahalanobis", np.eye(2))
    with pytest.raises(ValueError, match=r"precision must be .*\(2, 2\).*size 3"):
        distance(package.array(X), package.array(X))
    # And by name where no distance of a pair is taken; (1, 1) would broadcast.
    for name, size in (("kmeans_loss", 2), ("fit", 1), ("assign", 1)):
        small = package.call("mahalanobis", np.eye(size))
        with pytest.raises(ValueError, match=rf"precision must .*\({size}, .*size 3"):
            package.call(name, X, C, distance=small)


@BOTH
def test_bregman(package):
    with pytest.raises(TypeError, match="phi must be a function, got 1"):
        package.module.bregman(1)
    distance = package.module.bregman(lambda v: 2 * v)
    with pytest.raises(ValueError, match=r"phi must return a scalar.*\(3,\).*\(3,\)"):
        distance(package.array(X), package.array(X))


@BOTH
def test_functions_that_are_none(package):
    for name in ("pairwise", "assign", "kmeans_loss", "fit"):
        with pytest.raises(TypeError, match="distance must be a function, got 'l1'"):
            package.call(name, X, C, distance="l1")
    with pytest.raises(TypeError, match="assignment must be a function, got 'hard'"):
        package.call("assigned_loss", X, C, "hard")
    with pytest.raises(TypeError, match=r"optimizer must be .*, got 'newton'"):
        package.call("fit", X, C, optimizer="newton")


@BOTH
def test_an_assignment_of_another_shape(package):
    with pytest.raises(ValueError, match=r"assignment must keep.*\(8, 1\).*\(8, 2\)"):
        package.call("assigned_loss", X, C, lambda logits: logits[:, :1])


@BOTH
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tol": -1.0}, ValueError, "tol must be finite and not negative, got -1.0"),
        ({"tol": float("nan")}, ValueError, "tol must be .*, got nan"),
        ({"tol": np.ones(2)}, ValueError, r"tol must be a scalar .*\(2,\)"),
        ({"max_steps": -1}, ValueError, "max_steps must be at least 0, got -1"),
        ({"max_steps": 1.5}, TypeError, "max_steps must be a Python integer.*float"),
        ({"empty": "random"}, ValueError, "empty must be 'keep', .* got 'random'"),
        ({"derivative": "magic"}, ValueError, "derivative must be .*, got 'magic'"),
        ({"tolerance": 1}, TypeError, "tolerance"),
    ],
)
def test_options_of_a_fit(package, options, error, message):
    with pytest.raises(error, match=message):
        package.call("fit", X, C, **options)


@BOTH
def test_more_centroids_than_points(package):
    with pytest.raises(ValueError, match=r"at most n = 2 \(the points\), got k = 8"):
        package.call("fit", C, X)


@BOTH
@pytest.mark.parametrize("name", ["newton", "macqueen"])
def test_counts_and_other_distances(package, name):
    optimizer = getattr(package.module, name)()
    options = {"distance": package.module.manhattan, "optimizer": optimizer}
    with pytest.raises(ValueError, match="squared_euclidean, cosine"):
        package.call("fit", X, C, **options)
    state = package.module.init(package.array(C), optimizer=optimizer)
    with pytest.raises(ValueError, match="squared_euclidean, cosine"):
        package.call("update", X, state, **options)


@BOTH
def test_an_optimizer_that_was_not_called(package):
    for name in ("newton", "macqueen"):
        with pytest.raises(TypeError, match="optimizer must be"):
            package.call("fit", X, C, optimizer=getattr(package.module, name))


def test_a_result_in_place_of_its_state():
    with pytest.raises(TypeError, match=r"pass result\.state"):
        dk.fit(X, dk.fit(X, C))


def test_a_status_prints_its_names():
    for module in (dk, dt):
        assert str(module.Status(9)) == "CONVERGED|EMPTY_CLUSTER"
        assert f"{module.Status(2)}" == "MAX_STEPS"


@BOTH
def test_init(package):
    with pytest.raises(TypeError, match="must be floating"):
        package.call("init", C + 1j)
    with pytest.raises(ValueError, match=r"\[n, d\]|\[k, d\]"):
        package.call("init", C[0])


@BOTH
def test_update(package):
    state = package.call("init", C)
    for options, message in (
        ({"temperature": -1.0}, "temperature must be .*, got -1.0"),
        ({"empty": "no"}, "empty must be .*, got 'no'"),
        ({"weights": np.ones(3)}, "weights must be"),
    ):
        with pytest.raises(ValueError, match=message):
            package.call("update", X, state, **options)


@BOTH
def test_a_state_of_another_optimizer(package):
    state = package.call("init", C, optimizer=package.module.macqueen())
    for name in ("fit", "update"):
        with pytest.raises(ValueError, match="state must be of the optimizer given"):
            package.call(name, X, state)


@pytest.mark.parametrize("name", ["random_points", "kmeans_plus_plus"])
def test_initializers(name):
    key, function = jax.random.key(0), getattr(dk, name)
    with pytest.raises(TypeError, match="points must be floating"):
        function(key, X + 1j, 2)
    with pytest.raises(ValueError, match=r"points must be \[n, d\]"):
        function(key, X[0], 2)
    with pytest.raises(TypeError, match="weights must be floating"):
        function(key, X, 2, weights=np.ones(8) + 1j)
    with pytest.raises(ValueError, match=r"weights must be \[n\]"):
        function(key, X, 2, weights=np.ones(3))
    for k in (0, -1, 9):
        with pytest.raises(ValueError, match=f"k must be at least 1 .* 8 .*got {k}"):
            function(key, X, k)
    with pytest.raises(TypeError, match="k must be a Python integer"):
        function(key, X, 2.0)


def test_the_number_of_candidates():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="num_candidates must be at least 1, got 0"):
        dk.kmeans_plus_plus(key, X, 2, num_candidates=0)
    with pytest.raises(TypeError, match="num_candidates must be a Python integer"):
        dk.kmeans_plus_plus(key, X, 2, num_candidates=1.5)


def three_rows(key, points, k, *, weights):
    return points[:3]


def test_restarts():
    key = jax.random.key(0)
    for k, options, message in (
        (9, {}, "k must be .*, got 9"),
        (0, {}, "k must be .*, got 0"),
        (2, {"num_restarts": 0}, "num_restarts must be at least 1, got 0"),
        (2, {"tol": -1.0}, "tol must be .*, got -1.0"),
        (2, {"temperature": 0.0}, "temperature must be .*, got 0.0"),
        (
            2,
            {"initializer": three_rows},
            r"initializer must return \[k, d\] = \(2, .*got",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            dk.fit_restarts(key, X, k, **options)
    with pytest.raises(TypeError, match="num_restarts must be a Python integer"):
        dk.fit_restarts(key, X, 2, num_restarts=2.0)


def test_sgd():
    for rate in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"learning_rate must be .*, got"):
            dt.sgd(rate)


def test_shape_errors_are_found_while_tracing():
    with pytest.raises(ValueError, match="centroids must be"):
        jax.jit(dk.kmeans_loss)(X, C[:, :2])
    with pytest.raises(TypeError, match="points must be floating"):
        jax.eval_shape(dk.kmeans_loss, X + 1j, C)


def test_torch_refuses_what_is_no_tensor():
    hint = r"points must be a tensor, got ndarray: pass torch\.as_tensor\(points\)"
    with pytest.raises(TypeError, match=hint):
        dt.kmeans_loss(X, torch.as_tensor(C))
