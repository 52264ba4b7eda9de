"""What a report says of wrong records, and its slopes in the settings of right ones."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkm_jax as dk
from diffkm_jax import estimators as es

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(2, 3)))
MATRIX = jnp.asarray(RNG.normal(size=(3, 3)))


def cost(rows):
    return jnp.einsum("bi,ij,bj->b", jnp.sin(2 * rows), MATRIX, rows) ** 2


# Declared discrete --------------------------------------------------------------------


def softened(f, logits, noise):
    return f(jax.nn.softmax(logits + noise[0]))


LIARS = [
    replace(es.gumbel_softmax(), discrete=True),
    replace(es.gumbel_softmax(hard=True), discrete=True),
    replace(es.gumbel_rao(num_samples=1), discrete=True),
    es.Estimator("mine", softened, discrete=True),
]


@pytest.mark.parametrize("record", LIARS, ids=lambda record: record.name)
def test_a_record_that_is_wrongly_declared_discrete_is_refused(record):
    with pytest.raises(ValueError, match=f"{record.name} must not be declared discr"):
        dk.evaluate(KEY, cost, LOGITS, record)


def test_inside_a_program_its_report_is_nan_but_for_the_exact_one():
    records = [LIARS[0], es.reinforce()]
    wrong, right = jax.jit(lambda z: dk.evaluate(KEY, cost, z, records))(LOGITS)
    assert jnp.isnan(wrong.mean).all()
    assert jnp.isnan(wrong.variance).all()
    assert jnp.isnan(wrong.mean_value).all()
    np.testing.assert_array_equal(wrong.exact, right.exact)
    np.testing.assert_allclose(right.bias, 0, atol=1e-13)


def test_a_flag_that_is_not_relied_on_is_not_tested():
    options = {"num_samples": 100, "enumerate_draws": False}
    found, honest = (
        dk.evaluate(KEY, cost, LOGITS, record, **options)
        for record in (LIARS[0], es.gumbel_softmax())
    )
    np.testing.assert_array_equal(found.mean, honest.mean)


@pytest.mark.parametrize(
    "value", [jnp.nan, pytest.param(jnp.inf, marks=pytest.mark.slow)]
)
def test_costs_that_are_not_finite_are_no_reason_to_refuse(value):
    def some(rows):
        return jnp.where(rows[:, 0] > 0.5, value, cost(rows))

    assert dk.is_discrete(KEY, some, LOGITS, es.reinforce())
    report = dk.evaluate(KEY, some, LOGITS, es.reinforce())
    assert bool(report.enumerated)


def in_few_bits(f, logits, noise):
    row = dk.hard(logits + noise[0].astype(logits.dtype))
    costs = f(row)
    return es.attach(costs, logits, costs[:, None] * row)


def test_draws_that_half_precision_would_tie_are_no_reason_to_refuse():
    record = es.Estimator("mine", in_few_bits, discrete=True)
    logits = jnp.zeros((100, 64), jnp.bfloat16)
    report = dk.evaluate(KEY, lambda rows: rows[:, 0], logits, record)
    assert bool(report.enumerated)


# Slopes -------------------------------------------------------------------------------

HARD = {
    "straight_through": es.straight_through,
    "sampled_straight_through": es.sampled_straight_through,
    "gapped_straight_through": es.gapped_straight_through,
    "gumbel_softmax_hard": partial(es.gumbel_softmax, hard=True),
    "gumbel_rao": partial(es.gumbel_rao, num_samples=2),
    "reinmax": es.reinmax,
    "implicit_mle": lambda *, tau: es.implicit_mle(strength=tau, scaled=True),
    "rebar": es.rebar,
}
SLOW = [name for name in HARD if name != "sampled_straight_through"]
# What is infinite, or no number.
OTHERS = {"snr": 0.0, "enumerated": 0.0, "label": 0.0}


@pytest.mark.parametrize(
    "name",
    [
        "sampled_straight_through",
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_the_slope_of_a_report_in_tau_is_that_of_its_numbers(name):
    @jax.jit
    def report(tau):
        records = [es.reinforce(), HARD[name](tau=tau)]
        return dk.evaluate(KEY, cost, LOGITS, records, num_samples=9)[1]._replace(
            **OTHERS
        )

    tau, step = jnp.asarray(0.7), 1e-6
    slopes = jax.jit(jax.jacrev(report))(tau)
    above, below = report(tau + step), report(tau - step)
    for name, slope in slopes._asdict().items():
        central = (getattr(above, name) - getattr(below, name)) / (2 * step)
        np.testing.assert_allclose(slope, central, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    "make",
    [
        lambda value: es.gapped_straight_through(gap=value),
        pytest.param(
            lambda value: es.decoupled_gumbel_softmax(tau=value),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda value: es.decoupled_gumbel_softmax(tau_backward=value),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["gap", "tau", "tau_backward"],
)
def test_the_slope_in_a_setting_that_a_map_stops_is_nan_where_it_is_not_known(make):
    @jax.jit
    @jax.jacrev
    def slopes(value):
        report = dk.evaluate(KEY, cost, LOGITS, make(value), num_samples=9)
        return report.variance, report.exact

    variance, exact = slopes(jnp.asarray(0.7))
    assert jnp.isnan(variance).all()
    np.testing.assert_array_equal(exact, 0)
