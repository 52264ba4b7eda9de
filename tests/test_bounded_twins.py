"""Bounded sizes in torch: the same labels, plans, fits and derivatives as in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sizes
import torch

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 3))
C = X[:4] + 0.01
W = RNG.uniform(0.2, 2, 30)
W *= 30 / W.sum()
BOUNDS = {
    "given": {"min_size": np.full(4, 7.5), "max_size": np.full(4, 7.5)},
    "least": {"min_size": np.array([12.0, 2.0, 5.0, 1.0])},
    "both": {
        "min_size": np.array([3.0, 8.5, 0.5, 1.0]),
        "max_size": np.array([6.0, 9.0, 22.0, 9.0]),
    },
}
XT, CT, WT = (torch.tensor(a) for a in (X, C, W))


def tensors(options):
    return {key: torch.tensor(a) for key, a in options.items()}


@pytest.mark.parametrize("seed", range(24))
def test_labels_are_of_least_cost(seed):
    x, c, low, high = sizes.problem(seed)
    labels = dt.assign_bounded(
        torch.tensor(x),
        torch.tensor(c),
        min_size=torch.tensor(low),
        max_size=torch.tensor(high),
    ).numpy()
    found = np.bincount(labels, minlength=len(c))
    assert ((low <= found) & (found <= high)).all()
    costs = sizes.squares(x, c)
    best = sizes.optimum(costs, low, high)
    total = costs[np.arange(len(x)), labels].sum()
    np.testing.assert_allclose(total, best, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("weights", [None, "zeros"])
def test_hard_fits_are_the_same_and_their_gradients(weights):
    w = None if weights is None else (np.arange(30) % 5 > 0) * 1.0
    bounds = {"min_size": 5, "max_size": 8}
    ours = dk.fit_bounded(X, C, weights=w, tol=0.0, **bounds)
    x = XT.clone().requires_grad_()
    w_torch = None if w is None else torch.tensor(w)
    theirs = dt.fit_bounded(x, CT, weights=w_torch, tol=0.0, **bounds)
    assert int(ours.status) == int(theirs.status)
    assert int(ours.num_steps) == theirs.num_steps
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    for name in ("centroids", "loss", "counts", "history"):
        np.testing.assert_allclose(
            getattr(ours, name), getattr(theirs, name).detach(), rtol=1e-12
        )

    def scalar(x):
        found = dk.fit_bounded(x, C, weights=w, tol=0.0, **bounds)
        return jnp.sum(jnp.sin(found.centroids)) + found.loss

    (theirs.centroids.sin().sum() + theirs.loss).backward()
    np.testing.assert_allclose(jax.grad(scalar)(jnp.asarray(X)), x.grad, atol=1e-12)


@pytest.mark.parametrize("name", BOUNDS)
def test_plans_are_the_same_to_the_second_derivative(name):
    def ours(x, c, w, t):
        plan = dk.soft_assign_bounded(x, c, weights=w, temperature=t, **BOUNDS[name])
        return jnp.sum(plan**3)

    def theirs(x, c, w, t):
        plan = dt.soft_assign_bounded(
            x, c, weights=w, temperature=t, **tensors(BOUNDS[name])
        )
        return (plan**3).sum()

    given = X, C, W, np.float64(0.5)
    arrays = tuple(map(jnp.asarray, given))
    torches = [torch.tensor(a, requires_grad=True) for a in given]
    value = theirs(*torches)
    np.testing.assert_allclose(ours(*arrays), value.detach(), rtol=1e-11)
    first = jax.grad(ours, (0, 1, 2, 3))
    firsts = torch.autograd.grad(value, torches, create_graph=True)
    for a, b in zip(first(*arrays), firsts, strict=True):
        np.testing.assert_allclose(a, b.detach(), atol=1e-10)
    second = jax.grad(lambda *a: sum(jnp.sum(g**2) for g in first(*a)), (0, 1, 2, 3))
    seconds = torch.autograd.grad(sum((g**2).sum() for g in firsts), torches)
    for a, b in zip(second(*arrays), seconds, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", BOUNDS)
def test_soft_fits_are_the_same_and_their_gradients(name):
    options = {"tol": 0.0, "max_steps": 3000}
    moving = {key: jnp.asarray(a) for key, a in BOUNDS[name].items()}
    args = jnp.asarray(X), jnp.asarray(W), jnp.asarray(0.4), moving

    def ours(x, w, t, bounds):
        found = dk.fit_bounded(x, C, weights=w, temperature=t, **bounds, **options)
        return jnp.sum(jnp.sin(found.centroids)) + found.loss, found

    (_, found), gradient = jax.value_and_grad(ours, (0, 1, 2), has_aux=True)(*args)
    x, w, t = (torch.tensor(np.array(a), requires_grad=True) for a in args[:3])
    other = dt.fit_bounded(
        x, CT, weights=w, temperature=t, **tensors(BOUNDS[name]), **options
    )
    assert int(found.status) == int(other.status) == dk.Status.CONVERGED
    for field in ("centroids", "loss", "counts"):
        np.testing.assert_allclose(
            getattr(found, field), getattr(other, field).detach(), rtol=1e-8
        )
    (other.centroids.sin().sum() + other.loss).backward()
    for a, b in zip(gradient, (x, w, t), strict=True):
        np.testing.assert_allclose(a, b.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "kl_divergence"])
def test_other_distances_are_the_same(distance):
    x, c = np.exp(X), np.exp(C)
    options = {"temperature": 0.3, "min_size": 6.0, "max_size": 9.0, "tol": 0.0}
    options |= {"max_steps": 2000}

    def ours(x):
        found = dk.fit_bounded(x, c, distance=getattr(dk, distance), **options)
        return jnp.sum(jnp.sin(found.centroids)), found

    (_, found), gradient = jax.value_and_grad(ours, has_aux=True)(jnp.asarray(x))
    xt = torch.tensor(x, requires_grad=True)
    other = dt.fit_bounded(
        xt, torch.tensor(c), distance=getattr(dt, distance), **options
    )
    assert int(found.status) == int(other.status) == dk.Status.CONVERGED
    np.testing.assert_allclose(found.centroids, other.centroids.detach(), rtol=1e-7)
    other.centroids.sin().sum().backward()
    np.testing.assert_allclose(gradient, xt.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_size": 11}, ValueError, "min_size must add up to at most 30 .*, got 44"),
        ({"max_size": 7}, ValueError, "max_size must add up to at least 30 .*got 28"),
        ({"min_size": -1}, ValueError, "min_size must not be negative, got -1.0"),
        ({"max_size": 10.5}, ValueError, "max_size must be a number of points.*10.5"),
        ({"min_size": 5, "max_size": torch.tensor([4, 9, 9, 9])}, ValueError, "min_s"),
        ({"min_size": torch.ones(3)}, ValueError, r"min_size must be .*k = 4, got .*3"),
        ({"min_size": "one"}, TypeError, "min_size must be a tensor, got 'one'"),
        ({"weights": torch.full((30,), 0.5)}, ValueError, "weights must be 0 or 1"),
        ({"distance": dt.manhattan}, ValueError, "distance must be one .*manhattan"),
        ({"derivative": "unrolled"}, ValueError, "derivative must be 'implicit'"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        dt.fit_bounded(XT, CT, **options)


def test_data_that_are_not_finite_never_converge():
    x = XT.clone()
    x[0, 0] = torch.nan
    for temperature in (None, 1.0):
        found = dt.fit_bounded(x, CT, temperature=temperature)
        assert found.status & dt.Status.NON_FINITE
        assert not found.status & dt.Status.CONVERGED
        assert (found.labels == -1).all()
    assert dt.soft_assign_bounded(x, CT, temperature=1.0).isnan().all()


def test_it_goes_on_from_a_state():
    part = dt.fit_bounded(XT, CT, max_steps=1, min_size=7)
    rest = dt.fit_bounded(XT, part.state, min_size=7)
    whole = dt.fit_bounded(XT, CT, min_size=7)
    torch.testing.assert_close(rest.centroids, whole.centroids)
    assert rest.num_steps == whole.num_steps - 1
    with pytest.raises(TypeError, match=r"^centroids must be .*: pass result\.state"):
        dt.fit_bounded(XT, part)
