"""evaluate: what it reports is what brute force finds, in one compiled program."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from maps import gumbel

import diffkm_jax as dk
from diffkm_jax import estimators as es

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(2, 3)))
MATRIX = jnp.asarray(RNG.normal(size=(3, 3)))


def separate(rows):
    """A cost for each row: two problems."""
    return jnp.einsum("bi,ij,bj->b", jnp.sin(2 * rows), MATRIX, rows)


def joint(rows):
    """One cost of both rows: one problem of nine draws."""
    return jnp.sum(jnp.cos(3 * rows[0]) * rows[1]) ** 2 + jnp.sum(rows @ MATRIX[0])


@partial(jax.jit, static_argnums=(1,), static_argnames=("num_samples", "chunk_size"))
def run(key, f, logits, estimator, **options):
    return dk.evaluate(key, f, logits, estimator, **options)


def brute_force(f, record):
    """Probability and estimate of every draw of both rows, in plain Python."""
    p = np.asarray(jax.nn.softmax(LOGITS))
    weights, samples, values = [], [], []
    for i, j in itertools.product(range(3), repeat=2):
        noise = np.full((1, 2, 3), -np.inf)
        noise[0, 0, i] = noise[0, 1, j] = 0
        value, pullback = jax.vjp(lambda z, g=noise: record.expect(f, z, g), LOGITS)
        weights.append(p[0, i] * p[1, j])
        samples.append(np.asarray(pullback(jnp.ones_like(value))[0]))
        values.append(np.asarray(value))
    return np.array(weights), np.array(samples), np.array(values)


def cosine(a, b):
    return float(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(
    "record",
    [es.reinmax(tau=1.3), es.sampled_straight_through(), es.reinforce()],
    ids=lambda record: record.name,
)
def test_an_enumerated_report_is_that_of_brute_force(record):
    weights, samples, values = brute_force(joint, record)
    report = run(KEY, joint, LOGITS, record)
    w = weights[:, None, None]
    exact_value = np.sum(weights * values)
    p = np.asarray(jax.nn.softmax(LOGITS))
    score = np.array(
        [
            np.stack([np.eye(3)[i] - p[0], np.eye(3)[j] - p[1]])
            for i, j in itertools.product(range(3), repeat=2)
        ]
    )
    exact = np.sum(w * values[:, None, None] * score, 0)
    mean = np.sum(w * samples, 0)
    variance = np.sum(w * (samples - mean) ** 2, 0)
    cosines = [cosine(s, exact) for s in samples]
    expected = {
        "exact": exact,
        "mean": mean,
        "bias": mean - exact,
        "bias_error": np.zeros_like(mean),
        "variance": variance,
        "total_variance": variance.sum(),
        "mse": np.sum(weights * np.sum((samples - exact) ** 2, (1, 2))),
        "cosine": cosine(mean, exact),
        "mean_cosine": np.sum(weights * cosines),
        "snr": np.linalg.norm(mean) / np.sqrt(variance.sum()),
        "exact_value": exact_value,
        "mean_value": exact_value,
        "difference": np.zeros_like(mean),
        "difference_error": np.zeros_like(mean),
        "enumerated": True,
    }
    assert {*expected, "label"} == set(report._fields)
    for field, value in expected.items():
        np.testing.assert_allclose(
            getattr(report, field), value, rtol=1e-10, atol=1e-13, err_msg=field
        )


def test_rloo_is_enumerated_over_its_draws_together():
    record = es.rloo(num_samples=2)
    report = run(KEY, separate, LOGITS, record)
    p = np.asarray(jax.nn.softmax(LOGITS))[0]
    f = np.asarray(separate(jnp.stack([jnp.eye(3)[i] for i in range(3)])))
    mean, second = np.zeros(3), np.zeros(3)
    for i, j in itertools.product(range(3), repeat=2):
        sample = (f[i] - f[j]) / 2 * (np.eye(3)[i] - np.eye(3)[j])
        mean += p[i] * p[j] * sample
        second += p[i] * p[j] * sample**2
    assert bool(report.enumerated)
    np.testing.assert_allclose(report.mean[0], mean, atol=1e-14)
    np.testing.assert_allclose(report.variance[0], second - mean**2, atol=1e-14)
    np.testing.assert_allclose(report.bias, 0, atol=1e-14)


def test_problems_of_a_batch_are_reported_as_if_alone():
    report = run(KEY, separate, LOGITS, es.reinmax(tau=2.0))
    for b in range(2):
        alone = dk.evaluate(
            KEY, lambda row: separate(row[None])[0], LOGITS[b], es.reinmax(tau=2.0)
        )
        for field in report._fields:
            if field not in ("enumerated", "label"):
                np.testing.assert_allclose(
                    getattr(report, field)[b], getattr(alone, field), atol=1e-13
                )


@pytest.mark.parametrize("chunk_size", [64, 1000, 4096])
def test_samples_do_not_depend_on_the_chunk(chunk_size):
    record = es.gumbel_softmax(tau=0.5)
    whole = run(KEY, joint, LOGITS, record, num_samples=2000, chunk_size=2000)
    parts = run(KEY, joint, LOGITS, record, num_samples=2000, chunk_size=chunk_size)
    for mine, theirs in zip(*map(jax.tree.leaves, (parts, whole)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-13)


def test_a_sampled_report_is_that_of_its_samples():
    record = es.gumbel_rao(tau=0.5, num_samples=2)
    num = 60
    report = run(KEY, joint, LOGITS, record, num_samples=num, chunk_size=7)
    samples = []
    for i in range(num):
        noise = record.draw(jax.random.fold_in(KEY, i), LOGITS.shape, LOGITS.dtype)
        samples.append(jax.grad(lambda z, g=noise: record.expect(joint, z, g))(LOGITS))
    samples, exact = np.stack(samples), np.asarray(report.exact)
    np.testing.assert_allclose(report.mean, samples.mean(0), rtol=1e-10)
    np.testing.assert_allclose(report.variance, samples.var(0, ddof=1), rtol=1e-10)
    error = samples.std(0, ddof=1) / np.sqrt(num)
    np.testing.assert_allclose(report.bias_error, error, rtol=1e-10)
    squares = ((samples - exact) ** 2).sum((1, 2))
    np.testing.assert_allclose(report.mse, squares.mean(), rtol=1e-10)
    cosines = [cosine(s, exact) for s in samples]
    np.testing.assert_allclose(report.mean_cosine, np.mean(cosines), rtol=1e-10)
    assert not bool(report.enumerated)


@pytest.mark.parametrize("record", [es.reinmax(), es.reinforce(), es.rloo()])
def test_sampling_a_discrete_estimator_finds_what_enumeration_does(record):
    exact = run(KEY, separate, LOGITS, record)
    sampled = jax.jit(
        lambda r: dk.evaluate(
            KEY, separate, LOGITS, r, num_samples=20_000, enumerate_draws=False
        )
    )(record)
    assert (jnp.abs(sampled.mean - exact.mean) < 4.5 * sampled.bias_error + 1e-12).all()
    np.testing.assert_allclose(sampled.total_variance, exact.total_variance, rtol=0.08)
    np.testing.assert_allclose(sampled.mean_cosine, exact.mean_cosine, atol=0.03)


def test_a_small_variance_beside_a_large_bias_is_not_lost_in_float32():
    record = es.gumbel_softmax(tau=300.0)
    logits = LOGITS.astype("float32")

    def cost(rows):
        return 1e3 * jnp.sum(rows.astype("float32") ** 2 @ jnp.float32([1, 2, 3]))

    single = dk.evaluate(KEY, cost, logits, record, num_samples=5000)
    double = dk.evaluate(
        KEY,
        lambda rows: cost(rows).astype("float64"),
        LOGITS,
        record,
        num_samples=5000,
    )
    assert double.total_variance < 1e-3 * jnp.sum(double.bias**2)
    np.testing.assert_allclose(single.total_variance, double.total_variance, rtol=0.1)


def test_a_list_sees_the_same_noise_and_reports_paired_differences():
    records = [es.gumbel_softmax(tau=0.5), es.gumbel_softmax(tau=0.6), es.reinmax()]
    reports = run(KEY, joint, LOGITS, records, num_samples=4000)
    first, second, enumerated = reports
    alone = run(KEY, joint, LOGITS, records[1], num_samples=4000)
    np.testing.assert_allclose(second.mean, alone.mean, rtol=1e-10)
    np.testing.assert_allclose(second.difference, second.mean - first.mean, atol=1e-12)
    # Common noise: the error of the difference is far below that of either mean.
    assert (second.difference_error < 0.4 * second.bias_error).all()
    assert (second.difference_error > 0).all()
    np.testing.assert_allclose(
        enumerated.difference, enumerated.mean - first.mean, atol=1e-12
    )
    np.testing.assert_allclose(enumerated.difference_error, first.bias_error)
    np.testing.assert_array_equal(first.difference, 0)


def hard_alone(f, logits, noise):
    return f(dk.hard(logits + noise[0]))


def test_an_estimate_that_is_always_zero_has_no_direction_and_no_signal():
    forgetful = es.Estimator("forgetful", hard_alone, discrete=True)
    for record in (forgetful, es.implicit_mle(strength=1e-6)):
        report = run(KEY, joint, LOGITS, record, num_samples=50)
        np.testing.assert_array_equal(report.mean, 0)
        np.testing.assert_array_equal(report.variance, 0)
        assert report.cosine == 0
        assert report.snr == 0


def test_a_zero_exact_gradient_has_cosine_zero_and_no_nan():
    for record in (es.reinmax(), es.gumbel_softmax(), es.exact()):
        report = dk.evaluate(
            KEY, lambda rows: jnp.sum(rows) * 0 + 1, LOGITS, record, num_samples=20
        )
        assert report.cosine == 0
        assert report.mean_cosine == 0
        assert report.snr == 0
        assert all(
            np.isfinite(np.asarray(leaf, float)).all()
            for leaf in jax.tree.leaves(report)
        )


def test_the_gradient_of_a_mean_value_is_the_mean_estimate():
    for record, options in (
        (es.reinforce(), {}),
        (es.reinmax(tau=2.0), {}),
        (es.gumbel_softmax(), {"num_samples": 20}),
    ):
        slope, report = jax.grad(
            lambda z, r=record, o=options: (
                dk.evaluate(KEY, joint, z, r, **o).mean_value,
                dk.evaluate(KEY, joint, z, r, **o),
            ),
            has_aux=True,
        )(LOGITS)
        np.testing.assert_allclose(slope, report.mean, rtol=1e-9, atol=1e-13)


def test_the_slope_of_a_curve_of_reports_is_finite():
    def report(tau):
        found = dk.evaluate(KEY, joint, LOGITS, es.reinmax(tau=tau))
        return found._replace(enumerated=0.0)

    slopes = jax.jacrev(report)(2.0)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_reports_are_differentiable_where_a_vector_or_a_variance_is_zero():
    def total(logits):
        report = dk.evaluate(KEY, lambda rows: jnp.sum(rows), logits, es.reinmax())
        return sum(
            jnp.sum(leaf) for leaf in jax.tree.leaves(report) if leaf.dtype != bool
        )

    finite = jax.grad(lambda z: jnp.nan_to_num(total(z), posinf=0.0))(LOGITS)
    assert jnp.isfinite(finite).all()


def test_an_estimator_without_variance_has_infinite_signal_to_noise():
    report = dk.evaluate(KEY, joint, LOGITS, es.exact())
    assert report.snr == jnp.inf
    np.testing.assert_allclose(report.cosine, 1, rtol=1e-12)
    np.testing.assert_array_equal(report.bias, 0)


def test_curves_over_tau_and_over_logits_are_one_vmap_each():
    taus = jnp.array([0.5, 1.0, 2.0])
    records = jax.vmap(lambda tau: es.reinmax(tau=tau))(taus)
    curve = jax.vmap(lambda r: dk.evaluate(KEY, joint, LOGITS, r))(records)
    for i, tau in enumerate(taus):
        one = dk.evaluate(KEY, joint, LOGITS, es.reinmax(tau=tau))
        np.testing.assert_allclose(curve.cosine[i], one.cosine, rtol=1e-12)
        np.testing.assert_allclose(curve.bias[i], one.bias, atol=1e-13)
    many = jnp.stack([LOGITS, 2 * LOGITS])
    reports = jax.vmap(lambda z: dk.evaluate(KEY, joint, z, es.reinforce()))(many)
    one = dk.evaluate(KEY, joint, many[1], es.reinforce())
    np.testing.assert_allclose(reports.variance[1], one.variance, rtol=1e-10)


def test_both_ways_to_jit_it_trace_once_per_estimator():
    calls = []

    def cost(rows):
        calls.append(1)
        return jnp.sum(rows @ MATRIX[0])

    closed = jax.jit(lambda key, logits, record: dk.evaluate(key, cost, logits, record))
    static = jax.jit(partial(dk.evaluate), static_argnums=1)
    for call in (closed, lambda key, z, record: static(key, cost, z, record)):
        call(KEY, LOGITS, es.reinmax())
        before = len(calls)
        for seed, tau in enumerate((0.5, 1.5, 2.5)):
            call(jax.random.key(seed), LOGITS + seed, es.reinmax(tau=tau))
        assert len(calls) == before


def test_enumeration_that_is_too_large_is_refused_and_many_joint_draws_are_sampled():
    logits = jnp.zeros((8, 3))
    with pytest.raises(ValueError, match=r"rows \(8,\) has .* = 3\*\*8 .*=4096"):
        dk.evaluate(KEY, joint, logits, es.reinforce())
    with pytest.raises(ValueError, match=r"= 3\*\*2000 .*max_configurations=8"):
        dk.evaluate(
            KEY, joint, jnp.zeros((2000, 3)), es.reinforce(), max_configurations=8
        )
    with pytest.raises(ValueError, match="max_configurations=8"):
        es.exact(max_configurations=8).expect(joint, LOGITS, jnp.zeros((0, 2, 3)))
    report = dk.evaluate(
        KEY, joint, LOGITS, es.rloo(), max_configurations=9, num_samples=20
    )
    assert not bool(report.enumerated)


def test_an_infinite_cost_of_an_impossible_draw_counts_for_nothing():
    logits = LOGITS.at[:, 1].set(-jnp.inf)

    def cost(rows):
        return jnp.sum(jnp.where(rows[:, 1] > 0.5, jnp.inf, rows @ MATRIX[0]))

    report = dk.evaluate(KEY, cost, logits, es.reinforce())
    assert jnp.isfinite(report.exact_value)
    np.testing.assert_allclose(report.bias, 0, atol=1e-13)


def test_noise_that_only_says_the_draw_gives_the_same_estimate():
    noise = gumbel((1, 2, 3))
    drawn = np.asarray(dk.hard(LOGITS + noise[0]))
    bare = np.where(drawn > 0, 0, -np.inf)[None]
    for record in (es.reinmax(), es.gapped_straight_through(), es.reinforce()):
        a, b = (
            jax.grad(lambda z, g=g, r=record: r.expect(joint, z, g))(LOGITS)
            for g in (noise, bare)
        )
        np.testing.assert_array_equal(a, b)
