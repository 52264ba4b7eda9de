"""evaluate against an unbiased estimator, where a problem has too many draws to sum."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkm_jax as dk
from diffkm_jax import estimators as es

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(2, 2, 3)))
MATRIX = jnp.asarray(RNG.normal(size=(3, 3)))
RLOO = es.rloo(num_samples=4)


def cost(rows):
    """Two problems of two rows each."""
    first, second = rows[:, 0], rows[:, 1]
    return jnp.einsum("bi,ij,bj->b", jnp.sin(2 * first), MATRIX, second) ** 2


def test_a_reference_stands_for_the_exact_gradient_with_its_own_error():
    records = [es.straight_through(), es.reinmax(), es.gumbel_softmax(), es.rebar()]
    options = {"num_samples": 4000, "enumerate_draws": False}
    true = dk.evaluate(KEY, cost, LOGITS, records, **options)
    found = dk.evaluate(KEY, cost, LOGITS, records, reference=RLOO, **options)
    standard = dk.evaluate(KEY, cost, LOGITS, RLOO, **options)
    error = found[0].bias_error  # Of an estimator without noise it is the reference's.
    np.testing.assert_allclose(error, standard.bias_error, rtol=0.1)
    assert (jnp.abs(found[0].exact - true[0].exact) < 4.5 * error).all()
    value_error = float(jnp.abs(found[0].exact_value - true[0].exact_value).max())
    assert value_error < 0.05 * float(jnp.abs(true[0].exact_value).max())
    for one, other in zip(found, true, strict=True):
        for name in ("mean", "variance", "mean_value"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_allclose(one.bias, one.mean - one.exact, atol=1e-12)
        both = jnp.sqrt(other.bias_error**2 + error**2)
        np.testing.assert_allclose(one.bias_error, both, rtol=1e-9)
        # What is common to two biases is in no difference of them.
        for name in ("difference", "difference_error"):
            a, b = getattr(one, name), getattr(other, name)
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=name)
        assert not bool(one.enumerated)
    unbiased = found[3]
    assert (jnp.abs(unbiased.bias) < 4.5 * unbiased.bias_error).all()


def test_of_enumerated_estimators_the_differences_have_no_error():
    records = [es.reinmax(), es.sampled_straight_through()]
    found = dk.evaluate(KEY, cost, LOGITS, records, reference=RLOO, num_samples=100)
    true = dk.evaluate(KEY, cost, LOGITS, records)
    for one, other in zip(found, true, strict=True):
        np.testing.assert_allclose(one.mean, other.mean, atol=1e-12)
        assert (one.bias_error > 0).all()
        assert float(one.difference_error.max()) < 1e-8


def test_more_draws_than_any_sum_has_terms():
    """30 rows of 10: of a sum over the rows the exact gradient is known."""
    logits = jnp.asarray(RNG.normal(size=(30, 10)))
    weights = jnp.asarray(RNG.normal(size=(30, 10)))

    def total(rows):
        return jnp.sum(jnp.sum(rows * weights, -1) ** 2)

    def each(rows):
        return jnp.sum(rows * weights, -1) ** 2

    with pytest.raises(ValueError, match=r"k\*\*r = 10\*\*30 .* reference takes none$"):
        dk.evaluate(KEY, total, logits, es.reinmax())
    exact = dk.evaluate(KEY, each, logits, es.reinmax())
    records = [es.reinmax(), es.rloo(num_samples=8), es.rebar()]
    found = dk.evaluate(
        KEY, total, logits, records, reference=es.rloo(num_samples=16), num_samples=2000
    )
    for report, mean in zip(found, (exact.mean, exact.exact, exact.exact), strict=True):
        bias = report.bias - (mean - exact.exact)
        assert (jnp.abs(bias) < 5 * report.bias_error).all()
    assert abs(float(found[0].exact_value) - float(exact.exact_value.sum())) < 0.2


def test_the_table_and_the_label_say_whose_gradient_it_is():
    report = dk.evaluate(KEY, cost, LOGITS, es.reinmax(), reference=RLOO, num_samples=9)
    assert "the gradient by rloo has" in str(report)
    assert report.label.reference == "rloo"
    assert "exact gradient" in str(dk.evaluate(KEY, cost, LOGITS, es.reinmax()))
    assert json.loads(json.dumps(report.to_dict()))["enumerated"] is False


def test_it_is_an_argument_of_a_program_as_the_estimators_are():
    traces = []

    @jax.jit
    def run(key, record, reference):
        traces.append(1)
        return dk.evaluate(
            key, cost, LOGITS, record, reference=reference, num_samples=9
        )

    one = run(KEY, es.reinmax(), es.rebar(tau=0.5))
    other = run(KEY, es.reinmax(), es.rebar(tau=2.0))
    assert len(traces) == 1
    assert not np.array_equal(one.exact, other.exact)
    alone = dk.evaluate(
        KEY, cost, LOGITS, es.reinmax(), reference=es.rebar(tau=0.5), num_samples=9
    )
    np.testing.assert_allclose(one.exact, alone.exact, rtol=1e-9)


def test_what_is_no_reference():
    with pytest.raises(TypeError, match=r"^reference must be an Estimator, as"):
        dk.evaluate(KEY, cost, LOGITS, RLOO, reference=dk.reinmax)
    for record in (es.exact(), es.straight_through()):
        message = rf"^reference must be None, .* unbiased .* noise.* got {record.name}$"
        with pytest.raises(ValueError, match=message):
            dk.evaluate(KEY, cost, LOGITS, RLOO, reference=record)


def test_a_cost_that_is_a_number_and_logits_without_a_row():
    for record in (RLOO, es.gumbel_softmax(), es.reinmax()):
        report = dk.evaluate(KEY, lambda _: 0.5, LOGITS[0, 0], record, num_samples=9)
        np.testing.assert_allclose(report.exact_value, 0.5)
        np.testing.assert_allclose(report.mean, 0, atol=1e-12)
    with pytest.raises(
        ValueError, match=r"^logits must have a row, got shape \(0, 3\)"
    ):
        dk.evaluate(KEY, lambda rows: rows[:, 0], LOGITS[0, :0], RLOO)
