"""Estimators: what each is in expectation, and what every record must keep."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from maps import gumbel

import diffkm_jax as dk
from diffkm_jax import estimators as es

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
LOGITS = jnp.asarray(RNG.normal(size=(2, 3)))
BINARY = jnp.asarray(RNG.normal(size=(3, 2)))
MATRIX = jnp.asarray(RNG.normal(size=(3, 3)))
SLOPE = jnp.asarray(RNG.normal(size=(3, 2)))


def linear(rows):
    return jnp.sum(rows * SLOPE[:, :1].T)


def quadratic(rows):
    """Of each row alone, [batch]; neither symmetric nor convex."""
    return jnp.einsum("bi,ij,bj->b", rows, MATRIX, rows)


def joint(rows):
    """One cost of all binary rows, not separable, not a polynomial."""
    return jnp.exp(jnp.sum(jnp.sin(2 * rows) * SLOPE)) + jnp.sum(rows[:, 0]) ** 2


def crossed(rows):
    """One cost of two rows of three."""
    return jnp.sum(jnp.cos(3 * rows[0]) * rows[1]) ** 2 + linear(rows)


def control(params, z):
    return jnp.sin(jnp.where(jnp.isinf(z), 0, z)) @ params[: z.shape[-1]]


def joint_control(params, z):
    return jnp.sum(jnp.sin(z) * params)


RECORDS = {
    "exact": es.exact(),
    "straight_through": es.straight_through(tau=0.7),
    "sampled_straight_through": es.sampled_straight_through(tau=0.7),
    "gumbel_softmax": es.gumbel_softmax(tau=0.7),
    "gumbel_softmax_hard": es.gumbel_softmax(tau=0.7, hard=True),
    "decoupled_gumbel_softmax": es.decoupled_gumbel_softmax(tau=0.5, tau_backward=2.0),
    "gumbel_rao": es.gumbel_rao(tau=0.7, num_samples=3),
    "gapped_straight_through": es.gapped_straight_through(tau=0.7),
    "gapped_by_expectation": es.gapped_straight_through(gap=None),
    "reinmax": es.reinmax(),
    "blackbox": es.blackbox(strength=3.0),
    "implicit_mle": es.implicit_mle(strength=2.0),
    "implicit_mle_scaled": es.implicit_mle(strength=2.0, scaled=True),
    "reinforce": es.reinforce(baseline=0.3),
    "rloo": es.rloo(num_samples=3),
    "rebar": es.rebar(tau=0.7, eta=0.8),
    "disarm": es.disarm(),
    "reinmax_rao": es.reinmax_rao(tau=0.7, num_samples=3),
    "reinmax_cv": es.reinmax_cv(tau=0.7, eta=0.5, num_samples=3),
    "relax": es.relax(control, MATRIX[0]),
    "rodeo": es.rodeo(num_samples=3, alpha=0.8, beta=0.6),
    "unordered_set": es.unordered_set(num_samples=2),
    "arm": es.arm(),
    "arms": es.arms(num_samples=3),
}
BINARIES = ["disarm", "arm", "arms"]
UNBIASED = ["reinforce", "rloo", "rebar", "disarm", "relax", "rodeo", "unordered_set"]
UNBIASED += ["arm", "arms"]
ATTACHED = [*UNBIASED, "blackbox", "implicit_mle", "implicit_mle_scaled"]
EVERY = pytest.mark.parametrize("name", RECORDS)


def problem(name):
    """A cost per problem and logits that the estimator takes."""
    if name in BINARIES:
        return (lambda rows: jnp.sum(jnp.sin(rows) ** 2 * SLOPE, -1)), BINARY
    return quadratic, LOGITS


@partial(jax.jit, static_argnums=1)
def grad_of(record, f, logits, noise):
    return jax.grad(lambda z: jnp.sum(record.expect(f, z, noise)))(logits)


@partial(jax.jit, static_argnums=0, static_argnames="num_samples")
def evaluated(f, logits, record, **options):
    return dk.evaluate(KEY, f, logits, record, **options)


def mean_and_error(record, f, logits, num=40_000):
    """Mean of the estimates, and its standard error."""
    report = jax.jit(
        lambda record: dk.evaluate(
            KEY, f, logits, record, num_samples=num, enumerate_draws=False
        )
    )(record)
    return report.mean, report.bias_error


# Identities ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reinforce", "rloo"])
@pytest.mark.parametrize("f", [crossed, linear])
def test_enumerated_score_functions_are_unbiased(name, f):
    report = evaluated(f, LOGITS, RECORDS[name])
    assert bool(report.enumerated)
    np.testing.assert_allclose(report.bias, 0, atol=1e-13)
    np.testing.assert_allclose(report.mean_value, report.exact_value, rtol=1e-12)


@pytest.mark.parametrize(
    "record",
    [
        es.rebar(),
        es.rebar(tau=2.0, eta=0.3),
        es.disarm(),
        es.rloo(),
        es.reinforce(),
        es.arm(),
        es.arms(num_samples=2),
        es.arms(num_samples=5),
        es.rodeo(),
        es.relax(joint_control, SLOPE),
    ],
    ids=lambda record: record.name,
)
def test_sampled_estimates_are_unbiased_within_their_own_error(record):
    exact = jax.grad(lambda z: es.exact().expect(joint, z))
    mean, error = mean_and_error(record, joint, BINARY)
    assert (error > 0).all()
    assert (jnp.abs(mean - exact(BINARY)) < 4.5 * error).all()
    # Tight enough to see a bias: that of straight-through is 20 times as large.
    biased, _ = mean_and_error(es.sampled_straight_through(), joint, BINARY)
    assert jnp.abs(biased - exact(BINARY)).max() > 15 * error.max()


def test_rebar_is_unbiased_for_three_categories_and_joint_rows():
    exact = jax.grad(lambda z: es.exact().expect(crossed, z))
    mean, error = mean_and_error(es.rebar(), crossed, LOGITS)
    assert (jnp.abs(mean - exact(LOGITS)) < 4.5 * error).all()


def test_sampled_straight_through_is_exact_for_linear_costs_at_tau_one():
    record = es.sampled_straight_through()
    report = evaluated(linear, LOGITS, record)
    np.testing.assert_allclose(report.bias, 0, atol=1e-14)
    report = evaluated(linear, LOGITS, es.sampled_straight_through(tau=2.0))
    assert jnp.abs(report.bias).max() > 0.01


def test_reinmax_is_exact_for_quadratic_costs_at_tau_one():
    report = evaluated(quadratic, LOGITS, es.reinmax())
    np.testing.assert_allclose(report.bias, 0, atol=1e-14)
    first_order = evaluated(quadratic, LOGITS, es.sampled_straight_through())
    assert jnp.abs(first_order.bias).max() > 0.1


def test_gumbel_rao_has_the_mean_of_hard_gumbel_softmax_at_a_falling_variance():
    f, tau = quadratic, 0.5
    records = [
        es.gumbel_softmax(tau=tau, hard=True),
        *(es.gumbel_rao(tau=tau, num_samples=m) for m in (1, 4, 32)),
    ]
    reports = evaluated(f, LOGITS, records, num_samples=40_000)
    for report in reports[1:]:
        assert (jnp.abs(report.difference) < 4.5 * report.difference_error).all()
    variances = jnp.stack([r.total_variance for r in reports])
    assert (variances[2] < 0.8 * variances[1]).all()
    assert (variances[3] < 0.95 * variances[2]).all()
    # One conditional sample has the law of the noise it stands for.
    np.testing.assert_allclose(variances[1], variances[0], rtol=0.05)


def test_gumbel_rao_tends_to_reinmax_as_scalar_falls():
    """By quadrature over the logistic noise at k = 2, where sampling resolves nothing.

    Given the draw D = (1, 0) the difference x of the perturbed logits is positive, and
    J(softmax(z/tau))/tau has the entry s(1 − s)/tau, s = sigmoid(x/tau): as tau → 0 the
    density of x at 0 over the probability of the draw.
    """
    logits = jnp.array([0.4, -0.3])
    g = jnp.array([1.3, -0.2])
    a = float(logits[0] - logits[1])
    drawn = jnp.array([jnp.inf, 0.0])
    expected = jax.vjp(lambda z: dk.reinmax(z, drawn), logits)[1](g)[0]
    gaps = []
    for tau in (0.1, 0.01, 0.001):
        # x = tau·y: the weight is the density of the logistic at x, given x > 0.
        y = np.linspace(0, 60, 200_001)
        density = np.exp(-(tau * y - a)) / (1 + np.exp(-(tau * y - a))) ** 2
        density /= 1 / (1 + np.exp(-a))
        s = 1 / (1 + np.exp(-y))
        entry = np.trapezoid(s * (1 - s) * density, y)
        difference = float(g[0] - g[1])
        mean = np.array([entry, -entry]) * difference
        gaps.append(np.abs(mean - expected).max())
        # The quadrature is of what the map does.
        noise = jnp.asarray(gumbel((20_000, 2), 1))
        rao = partial(dk.gumbel_rao, noise=jnp.concatenate([drawn[None], noise]))
        found = jax.vjp(partial(rao, tau=tau), logits)[1](g)[0]
        spread = np.sqrt(entry / tau / len(noise)) * abs(difference)
        assert np.abs(found - mean).max() < 4.5 * spread
    assert gaps[1] < 0.2 * gaps[0]
    assert gaps[2] < 1e-3


def test_a_baseline_changes_the_variance_and_not_the_mean():
    f = quadratic
    exact_value = evaluated(f, LOGITS, es.exact()).exact_value
    plain = dk.evaluate(KEY, lambda r: f(r) + 5, LOGITS, es.reinforce())
    based = dk.evaluate(
        KEY, lambda r: f(r) + 5, LOGITS, es.reinforce(baseline=exact_value + 5)
    )
    for report in (plain, based):
        np.testing.assert_allclose(report.bias, 0, atol=1e-13)
    assert (based.total_variance < 0.2 * plain.total_variance).all()


def test_the_settings_of_rebar_can_be_tuned_on_its_variance():
    def variance(settings):
        record = es.rebar(tau=settings["tau"], eta=settings["eta"])
        report = dk.evaluate(KEY, quadratic, LOGITS, record, num_samples=500)
        return jnp.sum(report.total_variance)

    start = {"tau": jnp.asarray(0.5), "eta": jnp.asarray(1.0)}
    slope = jax.jit(jax.grad(variance))(start)
    value = jax.jit(variance)
    for name, step in (("tau", 1e-5), ("eta", 1e-5)):
        up = value(start | {name: start[name] + step})
        down = value(start | {name: start[name] - step})
        np.testing.assert_allclose(slope[name], (up - down) / (2 * step), rtol=1e-5)
    tuned = jax.tree.map(lambda s, g: s - 0.02 * g, start, slope)
    assert value(tuned) < value(start)


# What every record must keep ----------------------------------------------------------


@EVERY
def test_expect_is_linear_in_its_cotangent(name):
    record = RECORDS[name]
    f, logits = problem(name)
    noise = record.draw(KEY, logits.shape, logits.dtype)
    costs, pullback = jax.vjp(lambda z: record.expect(f, z, noise), logits)
    a, b = (jnp.asarray(RNG.normal(size=costs.shape)) for _ in range(2))
    together = pullback(1e-3 * a + 50 * b)[0]
    apart = 1e-3 * pullback(a)[0] + 50 * pullback(b)[0]
    np.testing.assert_allclose(together, apart, rtol=1e-11, atol=1e-13)


@EVERY
def test_a_batch_is_vmap_over_its_problems(name):
    record = RECORDS[name]
    f, logits = problem(name)
    noise = record.draw(KEY, logits.shape, logits.dtype)

    def one(z, g):
        return record.expect(lambda row: f(row[None])[0], z, g)

    if name in BINARIES:  # Its cost differs from problem to problem.
        slopes = SLOPE

        def costs_of(z, g, slope):
            return record.expect(lambda r: jnp.sum(jnp.sin(r) ** 2 * slope), z, g)

        program = jax.vmap(jax.value_and_grad(costs_of), (0, 1, 0))
        mapped = jax.jit(program)(logits, noise, slopes)
    else:
        mapped = jax.jit(jax.vmap(jax.value_and_grad(one), (0, 1)))(logits, noise)
    np.testing.assert_allclose(mapped[0], record.expect(f, logits, noise), rtol=1e-12)
    np.testing.assert_allclose(
        mapped[1], grad_of(record, f, logits, noise), rtol=1e-11, atol=1e-14
    )


@EVERY
def test_arrays_that_a_cost_closes_over_have_its_gradient(name):
    record = RECORDS[name]
    f, logits = problem(name)
    noise = record.draw(KEY, logits.shape, logits.dtype)

    def total(scale):
        return jnp.sum(record.expect(lambda rows: scale**2 * f(rows), logits, noise))

    value, slope = jax.value_and_grad(total)(1.5)
    np.testing.assert_allclose(slope, 2 * value / 1.5, rtol=1e-10)


@EVERY
def test_the_value_is_unbiased_where_the_cost_is_evaluated_at_draws(name):
    record = RECORDS[name]
    f, logits = problem(name)
    report = evaluated(f, logits, record, num_samples=40_000)
    error = jnp.abs(report.mean_value - report.exact_value).max()
    elsewhere = {"straight_through", "blackbox", "gumbel_softmax"}
    if_biased = name in elsewhere or name.startswith("decoupled")
    assert bool(error > 0.03) == if_biased


@EVERY
def test_the_flag_discrete_is_true(name):
    record = RECORDS[name]
    f, logits = problem(name)
    assert bool(dk.is_discrete(KEY, f, logits, record)) == record.discrete


@EVERY
def test_minus_infinity_is_never_drawn_and_gives_finite_estimates(name):
    record = RECORDS[name]
    f, logits = problem(name)
    logits = logits.at[1, 0].set(-jnp.inf)
    seen = []

    def cost(rows):
        jax.debug.callback(lambda r: seen.append(np.asarray(r)), rows)
        return f(rows)

    noise = record.draw(KEY, logits.shape, logits.dtype)
    found = grad_of(record, cost, logits, noise)
    jax.effects_barrier()
    assert jnp.isfinite(found).all()
    assert found[1, 0] == 0
    drawn = np.stack(seen[:1]) if name != "exact" else np.zeros((1, 2, 3))
    assert (drawn[:, 1, 0] == 0).all()
    report = evaluated(f, logits, record, num_samples=50)
    assert all(jnp.isfinite(leaf).all() for leaf in (report.bias, report.mse))


@EVERY
def test_a_row_of_minus_infinity_alone_harms_no_other_problem(name):
    record = RECORDS[name]
    f, logits = problem(name)
    noise = record.draw(KEY, logits.shape, logits.dtype)
    alone = grad_of(record, f, logits, noise)
    found = grad_of(record, f, logits.at[1].set(-jnp.inf), noise)
    np.testing.assert_allclose(found[0], alone[0], rtol=1e-12)
    np.testing.assert_array_equal(found[1], 0)


@EVERY
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_have_the_dtype_of_the_logits(name, dtype):
    record = RECORDS[name]
    f, logits = problem(name)
    narrow = logits.astype(dtype)
    noise = record.draw(KEY, narrow.shape, narrow.dtype)
    assert noise.dtype == "float32"

    def cost(rows):
        assert rows.dtype == dtype
        return f(rows.astype("float64")).astype(dtype)

    @jax.jit
    def value_and_gradient(z):
        costs, pullback = jax.vjp(lambda z: record.expect(cost, z, noise), z)
        return costs, *pullback(jnp.ones_like(costs))

    costs, found = value_and_gradient(narrow)
    assert costs.dtype == found.dtype == dtype
    assert jnp.isfinite(found).all()


@pytest.mark.parametrize("name", ATTACHED)
def test_attached_estimates_are_reverse_mode_only(name):
    record = RECORDS[name]
    f, logits = problem(name)
    noise = record.draw(KEY, logits.shape, logits.dtype)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jacfwd(lambda z: record.expect(f, z, noise))(logits)


@pytest.mark.parametrize("name", ["reinforce", "rloo", "disarm", "exact"])
def test_costs_of_half_precision_lose_nothing_in_their_differences(name):
    record, (_, logits) = RECORDS[name], problem(name)
    slope = jnp.arange(1.0, logits.shape[-1] + 1)
    noise = record.draw(KEY, logits.shape, "float32")

    def estimate(dtype, scale):
        def cost(rows):
            return (scale * (rows.astype("float64") @ slope)).astype(dtype)

        return grad_of(record, cost, logits.astype("float32"), noise)

    # Exact in float16, but twice the largest cost is infinite there.
    np.testing.assert_allclose(
        estimate("float16", 2.0**14),
        estimate("float64", 2.0**14),
        rtol=1e-5,
        atol=1e-2,
    )


def test_the_exact_record_ignores_what_an_impossible_draw_would_cost():
    logits = LOGITS.at[:, 0].set(-jnp.inf)

    def total(scale):
        def cost(rows):
            return jnp.sum(jnp.log(scale * (1 - rows[:, 0])) * rows[:, 1], -1)

        return es.exact().expect(cost, logits)

    np.testing.assert_allclose(
        jax.grad(total)(2.0), jnp.sum(jax.nn.softmax(logits)[:, 1]) / 2, rtol=1e-12
    )


def test_the_exact_record_has_every_derivative():
    def f(z):
        return es.exact().expect(crossed, z)

    jax.test_util.check_grads(jax.jit(f), (LOGITS,), 2, rtol=1e-6, atol=1e-6)


def test_new_settings_compile_nothing_and_new_estimators_once():
    traces = []

    @jax.jit
    def step(record, noise):
        traces.append(record.name)
        return grad_of(record, quadratic, LOGITS, noise)

    noise = jnp.asarray(gumbel((1, 2, 3)))
    schedule = optax.exponential_decay(1.0, 10, 0.5)
    for make in (es.reinmax, es.gumbel_softmax, es.sampled_straight_through):
        for tau in (1, 0.5, np.float32(0.7), schedule(3), jnp.asarray(0.2)):
            step(make(tau=tau), noise)
    assert len(traces) == 3


def test_a_grid_of_settings_is_one_vmap_over_the_record():
    taus = jnp.array([0.3, 1.0, 3.0])
    records = jax.vmap(lambda tau: es.gumbel_rao(tau=tau, num_samples=2))(taus)
    noise = records.draw(KEY, LOGITS.shape)
    found = jax.vmap(lambda r: grad_of(r, quadratic, LOGITS, noise))(records)
    for tau, row in zip(taus, found, strict=True):
        expected = grad_of(
            es.gumbel_rao(tau=tau, num_samples=2), quadratic, LOGITS, noise
        )
        np.testing.assert_allclose(row, expected, rtol=1e-12)


def test_rows_of_noise_are_the_same_for_all_estimators():
    one = es.reinmax().draw(KEY, (2, 3))
    many = es.gumbel_rao(num_samples=5).draw(KEY, (2, 3))
    np.testing.assert_array_equal(one, many[:1])
    assert es.exact().draw(KEY, (2, 3)).shape == (0, 2, 3)
    sample = es.rloo(num_samples=50).draw(KEY, (200, 10))
    np.testing.assert_allclose(sample.mean(), np.euler_gamma, atol=0.02)
    assert sample.dtype == jnp.float64


# Your own -----------------------------------------------------------------------------


def evolution(f, logits, noise, *, step):
    """Smooths the cost over logits moved by the second noise, antithetically."""
    row = dk.hard(logits + noise[0])
    shift = noise[1] - jnp.euler_gamma

    def value(sign):
        return f(dk.hard(logits + sign * step * shift + noise[0]))

    slope = (value(1.0) - value(-1.0)) / (2 * step * np.pi**2 / 6)
    return es.attach(f(row), logits, slope[..., None] * shift)


def test_a_users_own_estimator_is_a_record():
    mine = es.Estimator("evolution", evolution, {"step": 1.0}, num_draws=2)
    report = evaluated(quadratic, LOGITS, mine, num_samples=20_000)
    assert not bool(report.enumerated)
    assert (report.cosine > 0.9).all()
    assert not bool(dk.is_discrete(KEY, quadratic, LOGITS, mine))


def test_a_wrong_flag_is_found():
    liar = es.Estimator(
        "liar", es.gumbel_softmax().rule, {"tau": jnp.asarray(1.0)}, discrete=True
    )
    assert not bool(dk.is_discrete(KEY, quadratic, LOGITS, liar))


def test_attach_declares_a_gradient_and_keeps_the_costs():
    costs = jnp.array([1.0, jnp.inf])
    declared = jnp.asarray(RNG.normal(size=(2, 3)))

    def f(costs, logits, declared):
        return es.attach(costs, logits, declared)

    out, pullback = jax.vjp(f, costs, LOGITS, declared)
    np.testing.assert_array_equal(out, costs)
    in_costs, in_logits, in_declared = pullback(jnp.array([2.0, -1.0]))
    np.testing.assert_array_equal(in_costs, [2, -1])
    np.testing.assert_array_equal(in_logits, declared * jnp.array([[2.0], [-1.0]]))
    np.testing.assert_array_equal(in_declared, 0)
