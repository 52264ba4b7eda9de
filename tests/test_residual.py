"""Residual and product quantizers: by loops of NumPy, in both packages, and trained."""

from functools import cache, partial
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads
from twins import BOTH, compare, field

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 11, 6))
G, W = RNG.normal(size=X.shape), RNG.uniform(0.2, 2, X.shape[:2])
SIZES = np.array([1, 0.5, 0.25])[:, None, None]
# Of three stages; of two groups; of two groups and three stages.
CODEBOOKS = {
    "residual": RNG.normal(size=(3, 5, 6)) * SIZES,
    "product": RNG.normal(size=(2, 5, 3)),
    "grouped": RNG.normal(size=(2, 3, 5, 3)) * SIZES,
}
ALL = pytest.mark.parametrize("name", CODEBOOKS)
METHODS = ["straight_through_vector", "rotation_trick"]


def call(module, name):
    part = "residual" if name == "residual" else "product"
    return getattr(module, f"{part}_quantize")


def arrays_in(module, *arrays):
    return map(jnp.asarray if module is dk else torch.tensor, arrays)


def loops(x, codebooks, weights):
    """Sums of codes, labels, loss, counts and the gradients of both losses."""
    (groups, stages, _, width), n = codebooks.shape, len(x)
    values, labels = np.zeros_like(x), np.zeros((n, groups, stages), int)
    counts, of_codes = np.zeros(codebooks.shape[:3]), np.zeros_like(codebooks)
    loss, of_points = 0.0, np.zeros_like(x)
    for i in range(n):
        for j in range(groups):
            part = slice(j * width, (j + 1) * width)
            for s in range(stages):
                rest = x[i, part] - values[i, part]
                a = ((rest - codebooks[j, s]) ** 2).sum(1).argmin()
                error = rest - codebooks[j, s, a]
                labels[i, j, s] = a
                counts[j, s, a] += weights[i]
                loss += weights[i] * (error**2).sum()
                of_points[i, part] += 2 * weights[i] * error
                of_codes[j, s, a] -= 2 * weights[i] * error
                values[i, part] += codebooks[j, s, a]
    return values, labels, loss, counts, of_points, of_codes


def expected(name, weights=None):
    """The same, with the shapes of the case."""
    codebooks = CODEBOOKS[name]
    full = {"residual": codebooks[None], "product": codebooks[:, None]}
    w = np.ones(X.shape[:2]) if weights is None else weights
    found = loops(X.reshape(33, 6), full.get(name, codebooks), w.reshape(33))
    values, labels, loss, counts, of_points, of_codes = found
    drop = {"residual": (1, 0), "product": (2, 1)}.get(name)
    if drop:
        labels = labels.squeeze(drop[0])
        counts = counts.squeeze(drop[1])
    labels = labels.reshape(3, 11, *labels.shape[1:])
    of_codes = of_codes.reshape(codebooks.shape)
    return values.reshape(X.shape), labels, loss, counts, of_points, of_codes


@BOTH
@ALL
@pytest.mark.parametrize("weighted", [False, True])
def test_they_are_what_loops_find(module, pull, name, weighted):
    options = {"weights": next(iter(arrays_in(module, W)))} if weighted else {}
    f = call(module, name)
    values, labels, loss, counts, of_points, of_codes = expected(
        name, W if weighted else None
    )
    q = f(*arrays_in(module, X, CODEBOOKS[name]), **options)
    assert isinstance(q, module.Quantized)
    np.testing.assert_allclose(q.values, values, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(q.labels, labels)
    assert q.labels.dtype == (jnp.int32 if module is dk else torch.int64)
    np.testing.assert_allclose(q.counts, counts, rtol=1e-12)
    arrays = X, CODEBOOKS[name]
    for which, points, codes in (
        ("codebook_loss", np.zeros_like(X), of_codes),
        ("commitment_loss", of_points.reshape(X.shape), np.zeros_like(of_codes)),
    ):
        value, grads = pull(field(which, f, **options), 1.0, *arrays)
        np.testing.assert_allclose(value, loss, rtol=1e-12)
        np.testing.assert_allclose(grads[0], points, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(grads[1], codes, rtol=1e-11, atol=1e-12)
    # The cotangent once, and not for every stage.
    _, grads = pull(field("values", f, **options), G, *arrays)
    np.testing.assert_array_equal(grads[0], G)
    np.testing.assert_array_equal(grads[1], 0)


@BOTH
@ALL
def test_the_gradient_is_that_of_the_method(module, pull, name):
    f = field("values", call(module, name), method=module.rotation_trick)
    value, (points, _) = pull(f, G, X, CODEBOOKS[name])
    np.testing.assert_allclose(value, expected(name)[0], rtol=1e-12, atol=1e-14)
    each = X.shape if name == "residual" else (3, 11, 2, 3)
    rows = [a.reshape(each) for a in (G, X, value)]
    _, (turned, _) = pull(module.rotation_trick, *rows)
    np.testing.assert_allclose(points, turned.reshape(X.shape), rtol=1e-12)
    assert np.abs(points - G).max() > 0.1


@BOTH
@pytest.mark.parametrize("method", METHODS)
def test_one_stage_and_one_group_are_quantize(module, pull, method):
    codes = CODEBOOKS["residual"][0]
    options = {"method": getattr(module, method)}

    def every(f, shape):
        def total(x, c):
            found = f(x, c.reshape(shape), **options)
            return (found.values**3).sum() + found.codebook_loss + found.commitment_loss

        return pull(total, 1.0, X, codes)

    value, grads = every(module.quantize, codes.shape)
    for f, shape in (
        (module.residual_quantize, (1, *codes.shape)),
        (module.product_quantize, (1, *codes.shape)),
        (module.product_quantize, (1, 1, *codes.shape)),
    ):
        other, others = every(f, shape)
        np.testing.assert_allclose(other, value, rtol=1e-12)
        for a, b in zip(others, grads, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@cache
def side(module, name, method):
    def outcome(points, codebooks, weights):
        found = call(module, name)(
            points,
            codebooks,
            method=getattr(module, method),
            weights=weights,
            block_size=8,
        )
        return found.values, found.codebook_loss, found.commitment_loss

    return outcome


@ALL
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_packages_agree(name, method, dtype):
    arrays = {"points": X, "codebooks": CODEBOOKS[name], "weights": W}
    arrays = {key: a.astype(dtype) for key, a in arrays.items()}
    sides = side(dk, name, method), side(dt, name, method)
    assert compare(*sides, **arrays) <= 0.05


@ALL
def test_second_derivatives_agree(name):
    def loss(module, *arrays):
        values, codebook, commitment = side(module, name, "rotation_trick")(*arrays)
        return (values**3).sum() + codebook**2 + 0.25 * commitment**2

    def ours(points, codebooks, weights):
        grads = jax.grad(partial(loss, dk), (0, 1, 2))(points, codebooks, weights)
        return sum((g**2).sum() for g in grads)

    def theirs(points, codebooks, weights):
        inputs = points, codebooks, weights
        value = loss(dt, *inputs)
        grads = torch.autograd.grad(value, inputs, create_graph=True)
        return sum((g**2).sum() for g in grads)

    arrays = {"points": X, "codebooks": CODEBOOKS[name], "weights": W}
    assert compare(ours, theirs, **arrays) == 0


@ALL
def test_the_derivatives_of_the_losses_are_those_of_their_values(name):
    """In one side, the other held: their sum has the gradient of the loss."""

    @jax.jit
    def f(x, c, w):
        q = call(dk, name)(x, c, weights=w)
        return q.codebook_loss + q.commitment_loss

    _, labels, *_ = expected(name)

    def plain(x, c, w):
        rest, loss = x, 0.0
        if name == "product":
            c, chosen = c[:, None], labels[..., None]
        else:
            chosen = labels
        if name == "residual":
            c, chosen = c[None], chosen[..., None, :]
        groups = jnp.split(rest, len(c), axis=-1)
        for j, part in enumerate(groups):
            rest = part
            for s in range(c.shape[1]):
                codes = c[j, s][chosen[..., j, s]]
                held = jax.lax.stop_gradient
                loss += (w[..., None] * (rest - held(codes)) ** 2).sum()
                loss += (w[..., None] * (held(rest) - codes) ** 2).sum()
                rest = rest - held(codes)
        return loss

    arrays = [jnp.asarray(a) for a in (X, CODEBOOKS[name], W)]
    ours, theirs = (jax.value_and_grad(k, (0, 1, 2))(*arrays) for k in (f, plain))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@BOTH
@ALL
def test_a_row_of_weight_zero_is_inert_even_one_of_nan(module, pull, name):
    x, w = X[0].copy(), W[0].copy()
    w[[0, 5]] = 0
    x[0], x[5, 1] = np.nan, np.inf
    keep = w > 0

    def total(x, c, w):
        found = call(module, name)(x, c, weights=w)
        losses = found.codebook_loss + 0.25 * found.commitment_loss
        return (w[:, None] * found.values**2).sum() + losses

    value, grads = pull(total, 1.0, x, CODEBOOKS[name], w)
    fewer, others = pull(total, 1.0, x[keep], CODEBOOKS[name], w[keep])
    np.testing.assert_allclose(value, fewer, rtol=1e-12)
    np.testing.assert_allclose(grads[0][keep], others[0], rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(grads[0][~keep], 0)
    np.testing.assert_allclose(grads[1], others[1], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(grads[2][keep], others[2], rtol=1e-11)
    assert np.isfinite(grads[2]).all()


@BOTH
@ALL
def test_a_code_that_is_not_active_is_never_used_whatever_it_holds(module, pull, name):
    c = CODEBOOKS[name].copy()
    c[..., 1, :] = np.nan
    on = np.ones(c.shape[:-1], bool)
    on[..., 1] = False
    (active,) = arrays_in(module, on)

    def total(x, c, active=None):
        found = call(module, name)(x, c, active=active)
        losses = found.codebook_loss + 0.25 * found.commitment_loss
        return (found.values**2).sum() + losses

    value, grads = pull(partial(total, active=active), 1.0, X, c)
    rest = np.delete(c, 1, axis=-2)
    fewer, others = pull(total, 1.0, X, rest)
    np.testing.assert_allclose(value, fewer, rtol=1e-12)
    np.testing.assert_allclose(grads[0], others[0], rtol=1e-11)
    np.testing.assert_allclose(np.delete(grads[1], 1, axis=-2), others[1], rtol=1e-11)
    np.testing.assert_array_equal(grads[1][..., 1, :], 0)


@ALL
def test_jit_and_vmap_are_the_same(name):
    def f(x, c, w):
        def total(x, c, w):
            q = call(dk, name)(x, c, weights=w)
            losses = q.codebook_loss + 0.5 * q.commitment_loss
            return jnp.sum(q.values**3) + losses, q

        return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(x, c, w)

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)

    c = jnp.asarray(CODEBOOKS[name])
    jax.tree.map(close, jax.jit(f)(X, c, W), f(X, c, W))
    several = jnp.stack([c, 2 * c, c[..., ::-1, :]])
    for axes, codes in (((0, None, 0), c), ((0, 0, 0), several)):
        mapped = jax.vmap(f, axes)(X, codes, W)
        for i in range(3):
            one = f(X[i], c if axes[1] is None else codes[i], W[i])
            jax.tree.map(lambda a, b, i=i: close(a[i], b), mapped, one)


@ALL
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_values_have_the_dtype_of_the_codebooks_and_losses_accumulate(name, dtype):
    x, c = jnp.asarray(X, dtype), jnp.asarray(CODEBOOKS[name], dtype)
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    q = call(dk, name)(x, c)
    assert q.values.dtype == dtype
    assert q.codebook_loss.dtype == q.commitment_loss.dtype == q.counts.dtype == wide

    def total(x, c):
        q = call(dk, name)(x, c)
        return jnp.sum(q.values.astype(wide)) + q.codebook_loss + q.commitment_loss

    grads = jax.grad(total, (0, 1))(x, c)
    assert [g.dtype for g in grads] == [dtype, dtype]
    # What is left is not rounded to the dtype of the points.
    full = call(dk, name)(x.astype(jnp.float64), c.astype(jnp.float64))
    np.testing.assert_array_equal(q.labels, full.labels)
    np.testing.assert_allclose(q.commitment_loss, full.commitment_loss, rtol=1e-5)


@BOTH
@ALL
def test_one_point_is_a_point(module, pull, name):
    q = call(module, name)(*arrays_in(module, X[0, 0], CODEBOOKS[name]))
    all_of_them = call(module, name)(*arrays_in(module, X, CODEBOOKS[name]))
    np.testing.assert_array_equal(q.values, all_of_them.values[0, 0])
    np.testing.assert_array_equal(q.labels, all_of_them.labels[0, 0])


def test_another_distance_is_that_of_every_stage():
    q = dk.residual_quantize(X, CODEBOOKS["residual"], distance=dk.manhattan)
    rest, total = X, 0.0
    for stage, codes in enumerate(CODEBOOKS["residual"]):
        costs = np.abs(rest[..., None, :] - codes).sum(-1)
        np.testing.assert_array_equal(q.labels[..., stage], costs.argmin(-1))
        total += costs.min(-1).sum()
        rest = rest - codes[costs.argmin(-1)]
    np.testing.assert_allclose(q.codebook_loss, total, rtol=1e-12)
    matrix = dk.mahalanobis(jnp.diag(jnp.arange(1.0, 4.0)))
    c = jnp.asarray(CODEBOOKS["grouped"])

    def f(p):
        return dk.product_quantize(X, c, distance=dk.mahalanobis(p)).commitment_loss

    check_grads(f, (matrix.precision,), order=1, modes=["rev"])


def digits():
    with resources.files("diffkm_jax").joinpath("data/digits.npz").open("rb") as file:
        return np.load(file)["points"][:600].astype(np.float64) / 16


@BOTH
def test_stages_train_by_moving_averages_of_what_those_before_left(module, pull):
    (x,) = arrays_in(module, digits())
    optimizer = module.ema(0.5)
    # The codes of later stages are of the size of what is left.
    starts = [x[20 * i : 20 * i + 8] - (x.mean(0)[None] if i else 0) for i in range(3)]
    states = [module.init(start, optimizer=optimizer) for start in starts]
    for _ in range(12):
        rest = x
        for i, state in enumerate(states):
            states[i], _ = module.update(rest, state, optimizer=optimizer)
            rest = rest - module.quantize(rest, states[i].centroids).values
    stack = jnp.stack if module is dk else torch.stack
    codebooks = stack([state.centroids for state in states])
    errors = [float(((x - x.mean(0)[None]) ** 2).sum())]
    for stages in range(1, 4):
        q = module.residual_quantize(x, codebooks[:stages])
        errors.append(float(((x - q.values) ** 2).sum()))
    assert errors == sorted(errors, reverse=True)
    # Each stage of 8 codes takes a part of what was left.
    assert (np.diff(errors) / errors[:-1] < -0.05).all()
    np.testing.assert_allclose(errors[3], float(((rest) ** 2).sum()), rtol=1e-9)
    assert float(q.perplexity.min()) > 3


@pytest.mark.parametrize("name", ["residual", "grouped"])
def test_codebooks_train_by_the_gradient_of_their_loss(name):
    x = jnp.asarray(digits()[:, :6] + digits()[:, 16:22])
    c = 0.3 * jnp.asarray(CODEBOOKS[name])

    @jax.jit
    def step(c, _):
        q = call(dk, name)(x, c)
        gradient = jax.grad(lambda c: call(dk, name)(x, c).codebook_loss)(c)
        # Half a Newton step, which is half the way to the means.
        n = jnp.maximum(q.counts, 1)[..., None]
        return c - 0.5 * gradient / (2 * n), jnp.sum((x - q.values) ** 2)

    _, errors = jax.lax.scan(step, c, None, length=30)
    assert errors[-1] < 0.5 * errors[0]


# A name, its arrays, its options, the error and its message, in both packages.
C3, C4 = CODEBOOKS["residual"], CODEBOOKS["grouped"]
RAISES = [
    *(
        (name, (X, c), options, error, message)
        for name, c in [("residual", C3), ("product", CODEBOOKS["product"])]
        for options, error, message in [
            ({"method": None}, TypeError, "method must be a function"),
            ({"distance": 3}, TypeError, "distance must be a function"),
            ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
            ({"block_size": 2.0}, TypeError, "block_size must be a Python integer"),
            ({"weights": W + 1j}, TypeError, "weights must be floating"),
            ({"weights": W[0]}, ValueError, r"weights must be \[...\] as points"),
            ({"active": np.ones(c.shape[:2])}, TypeError, "active must be bool"),
            (
                {"active": np.ones(5, bool)},
                ValueError,
                r"active must be \(., 5\) as codebooks .*got shape \(5,\)",
            ),
            (
                {"method": lambda points, total: points[1:]},
                ValueError,
                "method must keep the shape of the points, got ",
            ),
        ]
    ),
    *(
        (name, arrays, {}, error, message)
        for name in ("residual", "product")
        for arrays, error, message in [
            ((X + 1j, C3), TypeError, "points must be floating"),
            ((X, C3 + 1j), TypeError, "codebooks must be floating"),
            ((np.asarray(1.0), C3), ValueError, r"points must be \[..., d\], got"),
            ((X[:0], C3), ValueError, "points must have at least one row"),
            ((X, C3[0]), ValueError, r"codebooks must be \[.*as in points"),
            ((X, C3[..., :4]), ValueError, r"codebooks must be \[.*\(3, 5, 4\)"),
        ]
    ),
    ("residual", (X, C4), {}, ValueError, r"codebooks must be \[s, k, d\] with d = 6"),
    ("residual", (X, C3[:0]), {}, ValueError, "codebooks must have at least one row"),
    ("residual", (X, C3[:, :0]), {}, ValueError, "codebooks must have at least one"),
    ("product", (X, C4[:, :0]), {}, ValueError, "codebooks must have at least one"),
]


@pytest.mark.parametrize("module", [dk, dt])
@pytest.mark.parametrize(("name", "arrays", "options", "error", "message"), RAISES)
def test_every_error_is_raised(module, name, arrays, options, error, message):
    array = jnp.asarray if module is dk else torch.as_tensor
    options = {
        key: array(a) if isinstance(a, np.ndarray) else a for key, a in options.items()
    }
    with pytest.raises(error, match="^" + message):
        call(module, name)(*map(array, arrays), **options)
