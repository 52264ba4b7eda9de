"""Several clusters at once: top-k maps, subsets by two laws, and their estimators."""

from functools import partial
from itertools import combinations, permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_jax import estimators as es
from tests.maps import gumbel

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(1.5 * RNG.normal(size=(5, 6)))
NOISE = jnp.asarray(gumbel((5, 6), 1))
COTANGENT = jnp.asarray(RNG.normal(size=(5, 6)))
CONDITIONAL = "conditional_bernoulli"
LAWS = ["plackett_luce", CONDITIONAL]


def subsets(k, size):
    """All of them as rows, [count, k]."""
    members = np.array(list(combinations(range(k), size)))
    rows = np.zeros((len(members), k))
    np.put_along_axis(rows, members, 1, axis=-1)
    return rows


def probabilities(law, z, rows):
    """Of subsets, by their definitions: products, or a sum over all orders."""
    if law == CONDITIONAL:
        products = np.exp(rows @ z)
        return products / products.sum()
    p = np.exp(z) / np.exp(z).sum()
    found = []
    for row in rows:
        total = 0.0
        for order in permutations(np.flatnonzero(row)):
            left, product = 1.0, 1.0
            for i in order:
                product *= p[i] / left
                left -= p[i]
            total += product
        found.append(total)
    return np.array(found)


# The maps ----------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_marginals_and_their_gradient_are_those_of_all_subsets(size, tau):
    rows = jnp.asarray(subsets(6, size))

    def enumerated(z):
        return jax.nn.softmax(z @ rows.T / tau) @ rows

    marginals = partial(dk.subset_marginals, size=size, tau=tau)
    found, pull = jax.vjp(marginals, LOGITS)
    expected, of_expected = jax.vjp(enumerated, LOGITS)
    np.testing.assert_allclose(found, expected, atol=1e-13)
    np.testing.assert_allclose(
        pull(COTANGENT)[0], of_expected(COTANGENT)[0], atol=1e-13
    )


@pytest.mark.parametrize("tau", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_soft_rows_are_the_sigmoids_that_sum_to_the_size(size, tau):
    p = np.asarray(dk.soft_top_k(LOGITS, size=size, tau=tau))
    np.testing.assert_allclose(p.sum(-1), size, atol=1e-12)
    # One threshold in a row: that of the entry nearest to a half.
    at = np.argmin(np.abs(p - 0.5), axis=-1)[:, None]
    z, near = np.asarray(LOGITS) / tau, np.take_along_axis(p, at, axis=-1)
    s = np.take_along_axis(z, at, axis=-1) - np.log(near / (1 - near))
    np.testing.assert_allclose(p, 1 / (1 + np.exp(s - z)), atol=1e-10)


SMOOTH = [
    (dk.subset_marginals, dt.subset_marginals, False),
    (dk.soft_top_k, dt.soft_top_k, False),
    (dk.gumbel_top_k, dt.gumbel_top_k, True),
]


@pytest.mark.parametrize(("ours", "theirs", "noisy"), SMOOTH)
@pytest.mark.parametrize("size", [1, 2, 6])
def test_derivatives_of_soft_rows_are_those_of_finite_differences(
    ours, theirs, noisy, size
):
    del theirs
    z, more = LOGITS[:2], ((NOISE[:2],) if noisy else ())

    def f(tau, z, *more):
        return ours(z, *more, size=size, tau=tau)

    check_grads(f, (0.8, z, *more), 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("ours", "theirs", "noisy"), SMOOTH)
@pytest.mark.parametrize("size", [1, 2, 4, 6])
@pytest.mark.parametrize("tau", [0.05, 1.0, 3.0])
def test_both_packages_agree_on_soft_rows_to_second_order(
    ours, theirs, noisy, size, tau
):
    more = (NOISE,) if noisy else ()

    def slope(z, t):
        def total(z, t):
            return jnp.sum(ours(z, *more, size=size, tau=t) * COTANGENT)

        return jax.grad(total)(z, t)

    def second(z, t):
        return jnp.sum(slope(z, t) * COTANGENT)

    z, t = (torch.tensor(np.array(a), requires_grad=True) for a in (LOGITS, tau))
    g, *rest = (torch.tensor(np.array(a)) for a in (COTANGENT, *more))
    rows = theirs(z, *rest, size=size, tau=t)
    (first,) = torch.autograd.grad((rows * g).sum(), z, create_graph=True)
    (of_z,) = torch.autograd.grad((first * g).sum(), z)
    found = ours(LOGITS, *more, size=size, tau=tau), slope(LOGITS, tau)
    np.testing.assert_allclose(found[0], rows.detach(), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(found[1], first.detach(), rtol=1e-9, atol=1e-10)
    ours_second = jax.grad(second)(LOGITS, jnp.asarray(tau))
    np.testing.assert_allclose(ours_second, of_z, rtol=1e-7, atol=1e-7)


def test_the_relaxed_draw_is_the_sum_of_softmaxes_and_becomes_the_draw():
    def by_hand(tau):
        z, p, total = LOGITS + NOISE, jnp.zeros_like(LOGITS), 0.0
        for _ in range(3):
            z = z + jnp.log(1 - p)
            p = jax.nn.softmax(z / tau)
            total += p
        return total

    draw = partial(dk.gumbel_top_k, LOGITS, NOISE, size=3)
    for tau in (0.5, 1.0, 2.0):
        np.testing.assert_allclose(draw(tau=tau), by_hand(tau), rtol=1e-12)
    drawn = draw(hard=True)
    np.testing.assert_array_equal(drawn, dk.top_k(LOGITS + NOISE, size=3))
    np.testing.assert_allclose(draw(tau=1e-4), drawn, atol=1e-6)
    soft = jax.grad(lambda z: jnp.sum(dk.gumbel_top_k(z, NOISE, size=3) * COTANGENT))
    hard = jax.grad(
        lambda z: jnp.sum(dk.gumbel_top_k(z, NOISE, size=3, hard=True) * COTANGENT)
    )
    np.testing.assert_allclose(hard(LOGITS), soft(LOGITS), rtol=1e-12)


def test_with_one_cluster_they_are_the_maps_of_one():
    pairs = [
        (partial(dk.top_k, size=1), dk.hard),
        (partial(dk.subset_marginals, size=1), dk.softmax),
        (partial(dk.straight_through_top_k, size=1), dk.straight_through),
        (
            lambda z: dk.gumbel_top_k(z, NOISE, size=1),
            lambda z: dk.gumbel_softmax(z, NOISE),
        ),
    ]
    for ours, known in pairs:
        found, pull = jax.vjp(ours, LOGITS)
        expected, of_expected = jax.vjp(known, LOGITS)
        np.testing.assert_allclose(found, expected, atol=1e-14)
        np.testing.assert_allclose(
            pull(COTANGENT)[0], of_expected(COTANGENT)[0], atol=1e-14
        )


@pytest.mark.parametrize("law", LAWS)
def test_draws_are_as_frequent_as_their_law_says(law):
    z, num, rows = np.array([0.5, -1.0, 1.2, 0.0]), 40_000, subsets(4, 2)
    noise = jax.random.gumbel(jax.random.key(0), (num, 4))
    logits = jnp.broadcast_to(jnp.asarray(z), noise.shape)
    if law == CONDITIONAL:
        drawn = np.asarray(dk.simple(logits, noise, size=2))
    else:
        drawn = np.asarray(dk.gumbel_top_k(logits, noise, size=2, hard=True))
    np.testing.assert_array_equal(drawn.sum(-1), 2)
    is_row = (drawn[:, None] == rows).all(-1)
    found, expected = is_row.mean(0), probabilities(law, z, rows)
    errors = np.sqrt(expected * (1 - expected) / num)
    assert (np.abs(found - expected) < 4 * errors).all()


@pytest.mark.parametrize("name", ["simple", "straight_through_top_k"])
def test_a_discrete_subset_has_the_gradient_of_marginals(name):
    more = (NOISE,) if name == "simple" else ()
    ours, theirs = (partial(getattr(m, name), size=3, tau=0.7) for m in (dk, dt))
    rows, pull = jax.vjp(lambda z: ours(z, *more), LOGITS)
    assert set(np.unique(rows)) == {0.0, 1.0}
    _, soft = jax.vjp(partial(dk.subset_marginals, size=3, tau=0.7), LOGITS)
    np.testing.assert_allclose(pull(COTANGENT)[0], soft(COTANGENT)[0], rtol=1e-13)
    z, *rest = (torch.tensor(np.array(a)) for a in (LOGITS, *more))
    z.requires_grad_()
    found = theirs(z, *rest)
    (found * torch.tensor(np.array(COTANGENT))).sum().backward()
    np.testing.assert_array_equal(rows, found.detach())
    np.testing.assert_allclose(pull(COTANGENT)[0], z.grad, rtol=1e-11, atol=1e-13)


def test_several_of_the_perturbation_maps_are_the_best_several():
    better = LOGITS - 0.9 * COTANGENT
    choice = dk.top_k(LOGITS, size=2)
    rows, pull = jax.vjp(partial(dk.blackbox, strength=0.9, size=2), LOGITS)
    np.testing.assert_array_equal(rows, choice)
    expected = (choice - dk.top_k(better, size=2)) / 0.9
    np.testing.assert_allclose(pull(COTANGENT)[0], expected)
    draw = partial(dk.implicit_mle, noise=NOISE, strength=0.9, size=2)
    rows, pull = jax.vjp(lambda z: draw(z), LOGITS)
    np.testing.assert_array_equal(rows, dk.top_k(LOGITS + NOISE, size=2))
    expected = rows - dk.top_k(better + NOISE, size=2)
    np.testing.assert_allclose(pull(COTANGENT)[0], expected)
    draws = jnp.stack([NOISE, -NOISE])
    found = dk.perturbed_argmax(LOGITS, draws, size=2)
    both = [dk.top_k(LOGITS + g, size=2) for g in draws]
    np.testing.assert_allclose(found, sum(both) / 2)
    z, g, many = (torch.tensor(np.array(a)) for a in (LOGITS, COTANGENT, draws))
    for ours, theirs in (
        (
            partial(dk.blackbox, strength=0.9, size=2),
            partial(dt.blackbox, strength=0.9, size=2),
        ),
        (
            lambda z: dk.perturbed_argmax(z, draws, size=2),
            lambda z: dt.perturbed_argmax(z, many, size=2),
        ),
        (
            lambda z: dk.implicit_mle(z, NOISE, size=2),
            lambda z: dt.implicit_mle(z, many[0], size=2),
        ),
    ):
        leaf = z.clone().requires_grad_()
        theirs(leaf).backward(g)
        _, pull = jax.vjp(ours, LOGITS)
        np.testing.assert_allclose(pull(COTANGENT)[0], leaf.grad, atol=1e-12)


def test_the_mean_over_perturbations_moves_as_the_smooth_map_does():
    """The gradient of the mean of draws, against that of exact Plackett–Luce sums."""
    z = jnp.array([0.3, -0.5, 0.8, 0.0])
    noise = jax.random.gumbel(jax.random.key(1), (200_000, 4))
    g = jnp.array([1.0, -0.5, 0.2, 0.0])

    def mean(z):
        return dk.perturbed_argmax(z, noise, size=2) @ g

    def exact(z):
        return es.exact(size=2).expect(lambda row: jnp.dot(g, row), z)

    np.testing.assert_allclose(mean(z), exact(z), atol=5e-3)
    np.testing.assert_allclose(jax.grad(mean)(z), jax.grad(exact)(z), atol=1e-2)


SOFT = [
    lambda m, z, n, size: m.subset_marginals(z, size=size),
    lambda m, z, n, size: m.soft_top_k(z, size=size),
    lambda m, z, n, size: m.gumbel_top_k(z, n, size=size),
]


@pytest.mark.parametrize("f", SOFT)
def test_excluded_clusters_infinite_logits_and_rows_with_too_few(f):
    inf = jnp.inf
    z = jnp.array(
        [
            [0.0, 1.0, 2.0, -inf],
            [0.0, 1.0, -inf, -inf],
            [inf, 0.0, 1.0, 2.0],
            [3.0, -inf, -inf, -inf],
            [-inf, -inf, -inf, -inf],
        ]
    )
    noise = jnp.zeros_like(z)
    rows, pull = jax.vjp(lambda z: f(dk, z, noise, 2), z)
    np.testing.assert_allclose(rows[:3].sum(-1), 2, rtol=1e-12)
    np.testing.assert_array_equal(rows[0, 3], 0)
    np.testing.assert_array_equal(rows[1, 2:], 0)
    np.testing.assert_allclose(f(dk, z[0, :3], noise[0, :3], 2), rows[0, :3])
    assert jnp.isnan(rows[3:]).all()
    slopes = pull(jnp.arange(20.0).reshape(5, 4))[0]
    assert jnp.isfinite(slopes).all()
    np.testing.assert_array_equal(slopes[3:], 0)
    np.testing.assert_array_equal(slopes[2, 0], 0)
    leaf = torch.tensor(np.array(z), requires_grad=True)
    theirs = f(dt, leaf, torch.zeros(5, 4, dtype=leaf.dtype), 2)
    np.testing.assert_allclose(rows, theirs.detach(), rtol=1e-11)
    theirs[:3].sum().backward()
    assert torch.isfinite(leaf.grad).all()


def test_marginals_and_sigmoids_know_what_is_certain():
    z = jnp.array([[0.0, 1.0, -jnp.inf], [1e5, -1e5, 3.0]])
    for f in (dk.subset_marginals, dk.soft_top_k):
        np.testing.assert_allclose(f(z, size=2)[0], [1, 1, 0])
        np.testing.assert_allclose(f(z, size=2)[1], [1, 0, 1], atol=1e-15)
        far = f(jnp.array([jnp.inf, jnp.inf, 0.0, 1.0]), size=2)
        np.testing.assert_allclose(far, [1, 1, 0, 0], atol=1e-12)
        cold = f(jnp.array([0.0, 1.0, 2.0, -3.0]), size=2, tau=1e-30)
        np.testing.assert_allclose(cold, [0, 1, 1, 0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_logits_keep_their_dtype_and_accumulate_in_float32(dtype):
    z, noise = LOGITS.astype(dtype), NOISE.astype("float32")
    for f in SOFT:
        rows = f(dk, z, noise, 3)
        assert rows.dtype == z.dtype
        wide = f(dk, z.astype("float64"), noise.astype("float64"), 3)
        bound = 2e-6 if dtype == "float32" else 8e-3
        np.testing.assert_allclose(rows.astype("float64"), wide, atol=bound)
    assert dk.simple(z, noise, size=3).dtype == z.dtype
    many = jnp.asarray(RNG.normal(size=(2, 1000)), "float32")
    found = dk.subset_marginals(many, size=20).astype("float64")
    wide = dk.subset_marginals(many.astype("float64"), size=20)
    np.testing.assert_allclose(found, wide, rtol=2e-4)


BAD = [
    (lambda m, z, n, s: m.top_k(z, size=s), "top_k"),
    (lambda m, z, n, s: m.soft_top_k(z, size=s), "soft_top_k"),
    (lambda m, z, n, s: m.subset_marginals(z, size=s), "subset_marginals"),
    (lambda m, z, n, s: m.straight_through_top_k(z, size=s), "straight_through_top_k"),
    (lambda m, z, n, s: m.gumbel_top_k(z, n, size=s), "gumbel_top_k"),
    (lambda m, z, n, s: m.simple(z, n, size=s), "simple"),
    (lambda m, z, n, s: m.blackbox(z, size=s), "blackbox"),
    (lambda m, z, n, s: m.implicit_mle(z, n, size=s), "implicit_mle"),
    (lambda m, z, n, s: m.perturbed_argmax(z, n[None], size=s), "perturbed_argmax"),
]


@pytest.mark.parametrize(("call", "name"), BAD, ids=[name for _, name in BAD])
def test_a_size_out_of_range_or_traced_is_named(call, name):
    del name
    both = [torch.tensor(np.array(a)) for a in (LOGITS, NOISE)]
    for given in ((dk, LOGITS, NOISE), (dt, *both)):
        for size in (0, 7):
            expected = rf"^size must be at least 1 and at most 6, got {size}$"
            with pytest.raises(ValueError, match=expected):
                call(*given, size)
        with pytest.raises(TypeError, match=r"^size must be a Python integer"):
            call(*given, 2.0)
    with pytest.raises(TypeError, match=r"^size must be a Python integer"):
        jax.jit(lambda s: call(dk, LOGITS, NOISE, s))(2)


# The estimators ----------------------------------------------------------------------


WEIGHTS = jnp.asarray(RNG.normal(size=(6, 6)))


def quadratic(rows):
    return jnp.einsum("...i,ij,...j->...", rows, WEIGHTS, rows)


def in_torch(rows):
    w = torch.tensor(np.array(WEIGHTS))
    return torch.einsum("...i,ij,...j->...", rows, w, rows)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("law", LAWS)
def test_the_exact_cost_is_the_sum_over_all_subsets(law, size):
    rows = subsets(6, size)
    costs = np.asarray(quadratic(jnp.asarray(rows)))
    record = es.exact(size=size, law=law)
    for z, found in zip(LOGITS, record.expect(quadratic, LOGITS), strict=True):
        expected = probabilities(law, np.asarray(z), rows) @ costs
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    # And its gradient, by that of the sum.
    leaf = torch.tensor(np.array(LOGITS), requires_grad=True)
    theirs = dt.estimators.exact(size=size, law=law).expect(in_torch, leaf)
    theirs.sum().backward()
    found = jax.grad(lambda z: jnp.sum(record.expect(quadratic, z)))(LOGITS)
    np.testing.assert_allclose(found, leaf.grad, rtol=1e-10, atol=1e-12)
    check_grads(
        lambda z: record.expect(quadratic, z), (LOGITS[0],), 2, rtol=1e-6, atol=1e-6
    )


def test_estimators_of_subsets_against_all_their_draws():
    key = jax.random.key(0)
    records = [
        es.reinforce(size=2, law=CONDITIONAL),
        es.simple(size=2),
        es.rloo(size=2, law=CONDITIONAL, num_samples=2),
    ]
    reports = dk.evaluate(key, quadratic, LOGITS[:2], records)
    assert all(bool(report.enumerated) for report in reports)
    for report in (reports[0], reports[2]):
        np.testing.assert_allclose(report.bias, 0, atol=1e-12)
    assert bool((reports[0].total_variance > reports[2].total_variance).all())
    linear = dk.evaluate(key, lambda row: row @ WEIGHTS[0], LOGITS[:2], records[1])
    np.testing.assert_allclose(linear.bias, 0, atol=1e-12)
    of_orders = [es.reinforce(size=2), es.rloo(size=2, num_samples=2)]
    for report in dk.evaluate(key, quadratic, LOGITS[:2], of_orders):
        assert bool(report.enumerated)
        np.testing.assert_allclose(report.bias, 0, atol=1e-12)
    # The same by samples, of the draws that the record makes itself.
    sampled = dk.evaluate(
        key,
        quadratic,
        LOGITS[0],
        records[1],
        enumerate_draws=False,
    )
    error = np.asarray(sampled.mean - reports[1].mean[0])
    assert (np.abs(error) < 5 * np.asarray(sampled.bias_error)).all()


def test_an_unbiased_reference_stands_for_subsets_too_many_to_sum_over():
    z = jnp.asarray(RNG.normal(size=20))

    def cost(row):
        return jnp.sum(row[:10]) ** 2

    record, reference = es.simple(size=8), es.rloo(size=8, law=CONDITIONAL)
    with pytest.raises(ValueError, match=r"subsets of 8\)\*\*r = 125970\*\*1"):
        dk.evaluate(jax.random.key(0), cost, z, record)
    found = dk.evaluate(
        jax.random.key(0), cost, z, record, reference=reference, num_samples=2000
    )
    exact = es.exact(size=8, law=CONDITIONAL, max_configurations=200_000)
    gradient = jax.grad(lambda z: exact.expect(cost, z))(z)
    np.testing.assert_allclose(found.exact, gradient, atol=0.2)


@pytest.mark.parametrize(
    "make",
    [
        lambda m: m.simple(size=3, tau=0.7),
        lambda m: m.gumbel_top_k(size=3, tau=0.7),
        lambda m: m.gumbel_top_k(size=3, hard=True),
        lambda m: m.implicit_mle(size=3, strength=0.8),
        lambda m: m.reinforce(size=3, baseline=0.4),
        lambda m: m.reinforce(size=3, law=CONDITIONAL),
        lambda m: m.rloo(size=3),
        lambda m: m.rloo(size=3, law=CONDITIONAL),
    ],
)
def test_both_packages_estimate_the_same(make):
    ours, theirs = make(es), make(dt.estimators)
    assert (ours.name, ours.size, ours.law) == (theirs.name, theirs.size, theirs.law)
    noise = gumbel((ours.num_draws, *LOGITS.shape), 5)
    leaf = torch.tensor(np.array(LOGITS), requires_grad=True)
    costs = theirs.expect(in_torch, leaf, torch.tensor(noise))
    costs.sum().backward()
    found, pull = jax.vjp(
        lambda z: ours.expect(quadratic, z, jnp.asarray(noise)), LOGITS
    )
    np.testing.assert_allclose(found, costs.detach(), rtol=1e-11)
    slopes = pull(jnp.ones(5))[0]
    np.testing.assert_allclose(slopes, leaf.grad, rtol=1e-9, atol=1e-11)


def test_records_say_whether_only_the_subset_matters():
    problem = jax.random.key(0), quadratic, LOGITS
    discrete = [es.simple(size=2), es.rloo(size=2), es.reinforce(size=2)]
    others = [es.gumbel_top_k(size=2, hard=True), es.implicit_mle(size=2)]
    assert all(bool(dk.is_discrete(*problem, record)) for record in discrete)
    assert not any(bool(dk.is_discrete(*problem, record)) for record in others)


def test_a_compiled_estimator_of_subsets_is_found_again():
    step = jax.jit(lambda record, z, n: record.expect(quadratic, z, n))
    noise = NOISE[None]
    for tau in (0.5, 0.7):
        step(es.simple(size=2, tau=tau), LOGITS, noise)
    assert step._cache_size() == 1
    step(es.simple(size=3), LOGITS, noise)
    assert step._cache_size() == 2


def test_bad_sizes_and_laws_of_estimators_are_named():
    for m in (es, dt.estimators):
        for make in (m.exact, m.reinforce, m.rloo, m.simple, m.gumbel_top_k):
            with pytest.raises(ValueError, match=r"^size must be at least 1, got 0$"):
                make(size=0)
            with pytest.raises(TypeError, match=r"^size must be a Python integer"):
                make(size=2.0)
        for make in (m.exact, m.reinforce, m.rloo):
            expected = r"^law must be 'plackett_luce' or 'conditional_bernoulli', got "
            with pytest.raises(ValueError, match=expected):
                make(size=2, law="softmax")
    z = torch.zeros(20, dtype=torch.float64)
    many = r"^size must be at most 12 where the probability"
    few = r"^size must be at most the number of clusters 6, got 7$"
    for record, theirs in (
        (es.reinforce(size=13), dt.estimators.reinforce(size=13)),
        (es.exact(size=19), dt.estimators.exact(size=19)),
    ):
        noise = None if record.num_draws == 0 else jnp.zeros((1, 20))
        with pytest.raises(ValueError, match=many):
            record.expect(jnp.sum, jnp.zeros(20), noise)
        with pytest.raises(ValueError, match=many):
            theirs.expect(torch.sum, z, None if noise is None else z[None])
    with pytest.raises(ValueError, match=few):
        es.simple(size=7).expect(quadratic, LOGITS, NOISE[None])
    with pytest.raises(ValueError, match=few):
        dt.estimators.simple(size=7).expect(in_torch, z[:6], z[None, :6])
    problem = jax.random.key(0), quadratic, LOGITS
    with pytest.raises(ValueError, match=r"^estimator must be a list of one size"):
        dk.evaluate(*problem, [es.simple(size=2), es.rloo()])
    with pytest.raises(ValueError, match=r"^estimator must be a list of one size"):
        dk.evaluate(*problem, es.simple(size=2), reference=es.rloo(size=2))


def test_of_one_cluster_the_records_of_several_are_those_of_one():
    problem = jax.random.key(0), lambda row: jnp.sum(row * WEIGHTS[0]) ** 2, LOGITS[0]
    records = [es.simple(size=1, tau=0.7), es.sampled_straight_through(tau=0.7)]
    ours, known = dk.evaluate(*problem, records)
    assert bool(ours.enumerated)
    np.testing.assert_allclose(ours.bias, known.bias, atol=1e-14)
    np.testing.assert_allclose(ours.variance, known.variance, atol=1e-14)
    drawn = dk.simple(LOGITS, NOISE, size=1)
    np.testing.assert_array_equal(drawn, dk.hard(LOGITS + NOISE))
    theirs = dt.simple(*(torch.tensor(np.array(a)) for a in (LOGITS, NOISE)), size=1)
    np.testing.assert_array_equal(drawn, theirs)


@pytest.mark.parametrize("record", [es.Estimator, dt.estimators.Estimator])
def test_a_record_of_ones_own_says_what_it_draws(record):
    with pytest.raises(ValueError, match=r"^size must be at least 1, got 0$"):
        record("mine", len, size=0)
    with pytest.raises(TypeError, match=r"^size must be a Python integer"):
        record("mine", len, size=2.0)
    with pytest.raises(ValueError, match=r"^law must be 'plackett_luce' or "):
        record("mine", len, size=2, law="uniform")
