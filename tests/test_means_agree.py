"""Distances whose minimizer is a mean: torch against JAX, value by value."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(0)
CENTERS = np.array([[1.0, 4.0, 2.0], [4.0, 1.0, 1.0], [2.0, 2.0, 6.0]])
X = np.repeat(CENTERS, 8, 0) * np.exp(0.3 * RNG.normal(size=(24, 3)))
C, W, T = X[[0, 8, 16, 1]] * 1.1, RNG.uniform(0.5, 1.5, 24), np.asarray(0.3)
ROOT = RNG.normal(size=(3, 3))
P = ROOT @ ROOT.T + 0.1 * np.eye(3)
OPTIMIZERS = dk.newton(), dk.macqueen(), dk.ema(0.75), optax.sgd(0.01)
THEIR_OPTIMIZERS = dt.newton(), dt.macqueen(), dt.ema(0.75), dt.sgd(0.01)


def phi(v):
    return (v**4 / 12 + v**2).sum()


def distance(module, name, precision=P):
    """A distance of a package by its name."""
    if name == "mahalanobis":
        array = torch.as_tensor if module is dt else jnp.asarray
        return module.mahalanobis(array(precision))
    return module.bregman(phi) if name == "bregman" else getattr(module, name)


NAMES = [
    "squared_euclidean",
    "cosine",
    "kl_divergence",
    "itakura_saito",
    "mahalanobis",
    "bregman",
]
# Of soft fits.
SLOW = [name for name in NAMES if name != "kl_divergence"]
EVERY = pytest.mark.parametrize("name", NAMES)
EVERY_LAW = pytest.mark.parametrize(
    ("name", "soft"), [(name, soft) for name in NAMES for soft in (False, True)]
)


def close(found, expected, size=1e-9):
    for a, b in zip(found, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=size * max(1, np.abs(b).max()))


def wave(shape):
    return np.cos(np.arange(np.prod(shape, dtype=int), dtype=float)).reshape(shape)


def jax_sum(leaves):
    """Some combination of all the numbers in arrays."""
    return sum(jnp.sum(a * wave(a.shape)) for a in leaves)


def torch_sum(leaves):
    """The same of tensors."""
    return sum((a * torch.tensor(wave(a.shape))).sum() for a in leaves)


def arguments(soft):
    """Points, centroids, weights, precision, and the temperature."""
    return [X, C, W, P, *([T] if soft else [])]


@EVERY_LAW
def test_statistics_and_their_first_and_second_derivatives(name, soft):
    def of_jax(x, c, w, p, t=None):
        options = {"weights": w, "distance": distance(dk, name, p), "temperature": t}
        return dk.statistics(x, c, **options)

    def of_torch(x, c, w, p, t=None):
        options = {"weights": w, "distance": distance(dt, name, p), "temperature": t}
        return dt.statistics(x, c, **options)

    wrt = tuple(range(4 + soft))

    @jax.jit
    def jax_side(*arrays):
        def total(*arrays):
            stats = of_jax(*arrays)
            return jax_sum(stats), stats

        gradient = jax.grad(total, wrt, has_aux=True)
        tangents = tuple(jnp.asarray(wave(a.shape)) for a in arrays)
        first, second, stats = jax.jvp(gradient, arrays, tangents, has_aux=True)
        return *stats, *first, *second

    tensors = [torch.tensor(a, requires_grad=True) for a in arguments(soft)]
    options = {"allow_unused": True, "materialize_grads": True}
    stats = of_torch(*tensors)
    total = torch_sum(stats)
    gradient = torch.autograd.grad(total, tensors, create_graph=True, **options)
    slope = torch_sum(gradient)
    second = torch.autograd.grad(slope, tensors, **options)
    found = [a.detach() for a in (*stats, *gradient, *second)]
    close(found, jax_side(*map(jnp.asarray, arguments(soft))))


@EVERY
def test_an_update_by_every_optimizer(name):
    @jax.jit
    def jax_side(x, c, w):
        states = []
        for optimizer in OPTIMIZERS:
            state = dk.init(c, optimizer=optimizer)
            options = {"optimizer": optimizer, "distance": distance(dk, name)}
            state, stats = dk.update(x, state, weights=w, **options)
            states += [state.centroids, stats.loss]
        return states

    found = []
    x, c, w = map(torch.tensor, (X, C, W))
    for optimizer in THEIR_OPTIMIZERS:
        state = dt.init(c, optimizer=optimizer)
        options = {"optimizer": optimizer, "distance": distance(dt, name)}
        state, stats = dt.update(x, state, weights=w, **options)
        found += [state.centroids, stats.loss]
    close(found, jax_side(X, C, W))


@pytest.mark.parametrize(
    ("name", "soft"),
    [
        *((name, False) for name in NAMES),
        ("kl_divergence", True),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_a_fit_and_the_derivative_of_all_that_it_returns(name, soft):
    law = {"tol": 0.0, "max_steps": 300}

    @jax.jit
    def jax_side(x, c, w, p, t=None):
        def total(x, w, p, t):
            options = {"weights": w, "distance": distance(dk, name, p), **law}
            result = dk.fit(x, c, temperature=t, **options)
            outputs = result.centroids, result.loss, result.counts
            return jax_sum(outputs), (outputs, result)

        wrt = (0, 1, 2, 3) if soft else (0, 1, 2)
        gradient, (outputs, result) = jax.grad(total, wrt, has_aux=True)(x, w, p, t)
        return *outputs, *gradient, result.status

    tensors = [torch.tensor(a, requires_grad=True) for a in arguments(soft)]
    x, c, w, p, t = [*tensors, None][:5]
    options = {"weights": w, "distance": distance(dt, name, p), **law}
    result = dt.fit(x, c.detach(), temperature=t, **options)
    outputs = result.centroids, result.loss, result.counts
    del tensors[1]
    options = {"allow_unused": True, "materialize_grads": True}
    gradient = torch.autograd.grad(torch_sum(outputs), tensors, **options)
    found = [*(a.detach() for a in outputs), *gradient]
    *expected, status = jax_side(*map(jnp.asarray, arguments(soft)))
    close(found, expected, 1e-8)
    assert result.status == int(status) == dk.Status.CONVERGED


def by_pairs(x, c, w, law, t):
    """Labels and the loss, from all the pairs."""
    costs = dt.pairwise(x, c, distance=law)
    labels = costs.argmin(1)
    if t is None:
        return labels, (w * law(x, c[labels])).sum()
    return labels, -t * (w * (-costs / t).logsumexp(1)).sum()


def edge(name, case):
    """Points and centroids at the edge of a domain, where all is finite yet."""
    x, c = torch.tensor(X), torch.tensor(C)
    if name == "cosine":
        x[3], c[1] = 0, 0
    if name == "kl_divergence":
        x[:8, 1], x[9, 2], c[0, 1] = 0, 0, 0
    if case == "a column of zeros":
        x[:, 1], c[:, 1] = 0, 0
    return x, c


@pytest.mark.parametrize("t", [None, 0.3])
@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("cosine", "rows of zeros"),
        ("kl_divergence", "zeros"),
        ("kl_divergence", "a column of zeros"),
    ],
)
def test_at_the_edge_of_a_domain_all_is_as_by_pairs(name, case, t):
    (x, c), w, law = edge(name, case), torch.tensor(W), getattr(dt, name)
    labels, expected = by_pairs(x, c, w, law, t)
    assert dt.assign(x, c, distance=law).equal(labels)
    leaves = [a.requires_grad_() for a in (x, c, w)]
    options = {"weights": w, "distance": law}
    loss = dt.kmeans_loss(x, c, **options)
    if t is not None:
        loss = dt.soft_kmeans_loss(x, c, temperature=t, **options)
    gradients = torch.autograd.grad(loss, leaves)
    assert all(g.isfinite().all() for g in gradients)
    close([loss.detach()], [expected])
    stats = dt.statistics(x, c, temperature=t, **options)
    assert all(field.isfinite().all() for field in stats)


def test_zeros_of_kl_divergence_have_the_derivatives_of_its_limit():
    x, c = torch.tensor([[0.0, 1.0], [0.0, 3.0]]), torch.tensor([[0.0, 2.0]])
    x, c = x.double().requires_grad_(), c.double().requires_grad_()
    for t in (None, 0.5):
        options = {"distance": dt.kl_divergence}
        loss = dt.kmeans_loss(x, c, **options)
        if t is not None:
            loss = dt.soft_kmeans_loss(x, c, temperature=t, **options)
        gx, gc = torch.autograd.grad(loss, (x, c))
        close([gx[:, 0], gc[0]], [[0, 0], [2, 0]])
    far = dt.assign(x + 1, torch.tensor([[0.0, 1.0], [9.0, 9.0]]), **options)
    assert far.tolist() == [1, 1]


def flag(status):
    return dk.Status(int(status))


@pytest.mark.parametrize("name", ["itakura_saito", "kl_divergence", "cosine"])
def test_a_row_of_weight_zero_may_be_outside(name):
    x, w = X.copy(), W.copy()
    x[2], w[2] = -3, 0
    ours = dk.fit(x, C, weights=jnp.asarray(w), distance=getattr(dk, name))
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, w)]
    options = {"weights": tensors[1], "distance": getattr(dt, name)}
    theirs = dt.fit(tensors[0], torch.tensor(C), **options)
    assert flag(ours.status) == flag(theirs.status) == dk.Status.CONVERGED
    close([theirs.centroids.detach()], [ours.centroids])
    gradients = torch.autograd.grad(torch_sum([theirs.centroids]), tensors)
    assert all(g.isfinite().all() for g in gradients)


def test_phi_may_close_over_what_is_differentiated():
    x, c, w = map(torch.tensor, (X, C, W))
    scale = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True)

    def outcomes(scale):
        law = dt.bregman(lambda v: (scale * v**4).sum())
        options = {"weights": w, "distance": law, "temperature": 20.0}
        soft = dt.soft_kmeans_loss(x, c, **options)
        fitted = dt.fit(x, c, tol=1e-20, max_steps=500, **options)
        return torch.stack([soft, 1e4 * fitted.centroids.cos().sum()])

    slopes = torch.autograd.functional.jacobian(outcomes, scale)
    way = torch.tensor([1.0, -0.5, 0.7], dtype=torch.float64)
    ends = [outcomes(scale.detach() + h * way) for h in (1e-5, -1e-5)]
    close([slopes @ way], [(ends[0] - ends[1]) / 2e-5], 1e-6)


def test_where_p_is_singular_centroids_move_as_means():
    root = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    law = dt.mahalanobis(root.T @ root)
    x, way = torch.tensor(X, requires_grad=True), torch.tensor(wave(X.shape))

    def pulled(x):
        options = {"distance": law, "temperature": 1.0, "tol": 0.0, "max_steps": 800}
        result = dt.fit(x, torch.tensor(C), **options)
        assert result.status == dt.Status.CONVERGED
        return result.centroids.cos().sum()

    (slope,) = torch.autograd.grad(pulled(x), x)
    ends = [pulled(x.detach() + h * way) for h in (1e-5, -1e-5)]
    close([(slope * way).sum()], [(ends[0] - ends[1]) / 2e-5], 1e-7)


@pytest.mark.slow
def test_the_way_of_a_centroid_on_the_sphere_has_its_second_derivative():
    law = {"temperature": 0.02, "tol": 0.0, "max_steps": 500}

    def jax_lengths(x):
        return jnp.sum(dk.fit(x, C[:2], distance=dk.cosine, **law).centroids ** 2)

    def torch_lengths(x):
        result = dt.fit(x, torch.tensor(C[:2]), distance=dt.cosine, **law)
        return (result.centroids**2).sum()

    way, x = wave(X.shape), torch.tensor(X, requires_grad=True)
    ours = jax.jit(lambda x: jax.jvp(jax.grad(jax_lengths), (x,), (way,)))(X)
    (slope,) = torch.autograd.grad(torch_lengths(x), x, create_graph=True)
    (bend,) = torch.autograd.grad((slope * torch.tensor(way)).sum(), x)
    close([*ours, slope.detach(), bend], 4 * [np.zeros_like(X)], 1e-8)


def barrier(v):
    return -v.log().sum()


@pytest.mark.parametrize(
    ("law", "row", "outside"),
    [
        (dt.bregman(barrier), -1.0, True),
        (dt.bregman(barrier), 1.0, False),
        (dt.bregman(lambda v: -(v**2).sum()), 1.0, True),
        (dt.mahalanobis(-torch.eye(3, dtype=torch.float64)), 1.0, True),
        (dt.mahalanobis(torch.zeros(3, 3, dtype=torch.float64)), 1.0, False),
    ],
)
def test_where_phi_is_not_finite_or_not_convex_a_fit_says_so(law, row, outside):
    x = torch.tensor(X)
    x[5] *= row
    result = dt.fit(x, torch.tensor(C), distance=law, max_steps=2)
    assert (dt.Status.DOMAIN in result.status) == outside
    w = torch.ones(24, dtype=torch.float64)
    w[5] = 0
    inside = dt.fit(x, torch.tensor(C), distance=law, weights=w, max_steps=2)
    assert (dt.Status.DOMAIN in inside.status) == (outside and row > 0)
