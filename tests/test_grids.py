"""evaluate over grids and lists, the tables that it prints, and tune."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffkm_jax as dk
from diffkm_jax import estimators as es

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(2, 3)))
MATRIX = jnp.asarray(RNG.normal(size=(3, 3)))
TAUS = [0.5, 1.0, 2.0]
RECORDS = [es.gumbel_softmax(), es.reinmax(), es.rloo(num_samples=2), es.rebar()]


def cost(rows):
    return jnp.einsum("bi,ij,bj->b", jnp.sin(2 * rows), MATRIX, rows) ** 2


def same(found, expected):
    for name in found._fields[:-1]:
        a, b = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13, err_msg=name)


def at(record, tau):
    settings = record.settings
    has = {"tau": jnp.asarray(tau)} if "tau" in settings else {}
    return es.Estimator(
        record.name, record.rule, settings | has, record.num_draws, record.discrete
    )


def test_a_grid_is_the_reports_of_its_points():
    curves = dk.evaluate(KEY, cost, LOGITS, RECORDS, grid={"tau": TAUS}, num_samples=50)
    for i, tau in enumerate(TAUS):
        records = [at(record, tau) for record in RECORDS]
        point = dk.evaluate(KEY, cost, LOGITS, records, num_samples=50)
        for curve, expected in zip(curves, point, strict=True):
            fields = {name: getattr(curve, name)[i] for name in curve._fields[:-1]}
            same(curve._replace(**fields), expected)


def test_records_of_one_kind_in_any_place_are_each_their_own():
    records = [es.reinmax(), es.gumbel_softmax(), *(es.reinmax(tau=t) for t in TAUS)]
    records.insert(3, es.gumbel_softmax(tau=0.5))
    together = dk.evaluate(KEY, cost, LOGITS, records, num_samples=50)
    assert [r.label.name for r in together] == [r.name for r in records]
    for record, found in zip(records, together, strict=True):
        alone = dk.evaluate(KEY, cost, LOGITS, record, num_samples=50)
        difference = found.mean - together[0].mean
        np.testing.assert_allclose(found.difference, difference, atol=1e-12)
        zeros = {"difference": 0 * difference, "difference_error": 0 * difference}
        same(found._replace(**zeros), alone)


def test_many_draws_of_a_discrete_estimator_are_sampled_by_their_labels():
    record = es.rloo(num_samples=8)
    assert 3**8 > 4096
    found = dk.evaluate(KEY, cost, LOGITS, record, num_samples=20_000)
    assert not bool(found.enumerated)
    assert (jnp.abs(found.bias) < 4.5 * found.bias_error).all()
    noisy = dk.evaluate(
        KEY, cost, LOGITS, record, num_samples=20_000, enumerate_draws=False
    )
    np.testing.assert_allclose(found.total_variance, noisy.total_variance, rtol=0.1)
    excluded = LOGITS.at[0, 2].set(-jnp.inf)
    found = dk.evaluate(KEY, cost, excluded, record, num_samples=2000)
    assert (jnp.abs(found.bias) < 5 * found.bias_error + 1e-12).all()


def softened(f, logits, noise):
    return f(jax.nn.softmax(logits + noise.sum(0)))


def test_a_flag_by_which_labels_are_drawn_is_tested_too():
    liar = es.Estimator("mine", softened, num_draws=8, discrete=True)
    with pytest.raises(ValueError, match="mine must not be declared discrete"):
        dk.evaluate(KEY, cost, LOGITS, liar, num_samples=9)


def test_a_report_prints_a_table_and_is_a_dictionary():
    report = dk.evaluate(KEY, cost, LOGITS, es.reinmax(tau=0.5))
    head, line, note = str(report).splitlines()
    assert head.split()[:4] == ["estimator", "settings", "bias", "its"]
    bias = np.linalg.norm(report.bias)
    deviation = np.sqrt(np.sum(report.variance))
    assert line.split()[:5] == [
        "reinmax",
        "tau=0.5",
        f"{bias:.3g}",
        "0",
        f"{deviation:.3g}",
    ]
    assert line.endswith("all draws")
    assert f"has {np.linalg.norm(report.exact):.3g}." in note
    found = json.loads(json.dumps(report.to_dict()))
    assert (found["name"], found["settings"]) == ("reinmax", {"tau": 0.5})
    np.testing.assert_allclose(found["bias"], report.bias)
    assert found["enumerated"] is True


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_bias_of_rounding_is_printed_as_none(dtype):
    logits, target = LOGITS.astype(dtype), MATRIX[:1].astype(dtype)

    def quartic(rows):
        return ((rows - target) ** 4).sum(-1)

    report = dk.evaluate(KEY, quartic, logits, es.rloo())
    assert report.mean.dtype == dtype
    assert str(report).splitlines()[1].split()[:3] == ["rloo", "0", "0"]
    report = dk.evaluate(KEY, quartic, logits, es.rloo(), enumerate_draws=False)
    assert float(str(report).splitlines()[1].split()[1]) > 0


def test_a_list_prints_one_table_with_a_line_for_every_point():
    records = [es.reinmax(), es.rloo(num_samples=2), es.relax(quadratic, jnp.ones(3))]
    grid = {"tau": TAUS}
    reports = dk.evaluate(KEY, cost, LOGITS, records, grid=grid, num_samples=9)
    lines = str(reports).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [
        "reinmax",
        "reinmax",
        "reinmax",
        "rloo",
        "relax",
    ]
    assert "params (3,)" in lines[-2]
    curve = jax.vmap(lambda t: dk.evaluate(KEY, cost, LOGITS, es.reinmax(tau=t)))
    mapped = str(curve(jnp.array(TAUS))).splitlines()
    for a, b in zip(mapped[1:-1], lines[1:4], strict=True):
        assert a.split() == b.split()


def test_a_report_mapped_over_logits_has_a_line_for_each():
    many = jnp.stack([LOGITS, 2 * LOGITS])
    report = jax.vmap(lambda z: dk.evaluate(KEY, cost, z, es.reinmax()))(many)
    _, first, second, _ = str(report).splitlines()
    assert first.split()[:2] == second.split()[:2] == ["reinmax", "tau=1"]
    assert first != second


def quadratic(params, z):
    return jnp.sum(params[None] * z**2, axis=-1)


def test_a_traced_report_says_so():
    seen = []

    @jax.jit
    def program(z):
        reports = dk.evaluate(KEY, cost, z, [es.reinmax(), es.rloo(num_samples=2)])
        seen.append(str(reports))
        with pytest.raises(ValueError, match=r"^report must not be traced: return"):
            reports[0].to_dict()
        return reports

    assert str(program(LOGITS)).count("all draws") == 2
    assert seen == ["reports of reinmax, rloo, traced: print what the program returns"]


WRONG = {
    "lengths": ({"tau": [1.0], "eta": [1.0, 2.0]}, "^grid must have as many values of"),
    "name": ({"taw": [1.0]}, "^grid must name settings of .*\\[.*'tau'\\], got 'taw'"),
    "range": ({"tau": [1.0, 0.0]}, "^tau must be finite and positive, got 0.0"),
    "below": ({"eta": [-1.0]}, "^eta must be finite and not negative, got -1.0"),
    "none": (
        {"tau": []},
        "^grid must hold one-dimensional arrays with values, got tau",
    ),
    "rank": ({"tau": 1.0}, "^grid must hold one-dimensional arrays .*of shape \\(\\)"),
    "words": ({"tau": ["a"]}, r"^grid\['tau'\] must be "),
    "no grid": ([0.5], "^grid must map names of settings to arrays"),
    "empty": ({}, "^grid must map names of settings to arrays"),
}


@pytest.mark.parametrize("name", WRONG)
def test_grids_that_cannot_be_meant(name):
    grid, message = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=message):
        dk.evaluate(KEY, cost, LOGITS, RECORDS, grid=grid)


# tune ---------------------------------------------------------------------------------


def fourth(row):
    return (row @ jnp.array([1.0, 2.0, 4.0])) ** 4


@pytest.mark.parametrize(
    "record",
    [
        es.rebar(),
        es.relax(lambda params, z: z @ params, jnp.zeros(3)),
        es.reinforce(),
        es.rodeo(alpha=0.0, beta=-2.0),
    ],
    ids=lambda record: record.name,
)
def test_what_is_tuned_has_less_variance_and_no_bias(record):
    logits, options = jnp.array([1.0, 0.0, -1.0]), {"optimizer": optax.adam(0.2)}
    tuned = dk.tune(KEY, fourth, logits, record, num_steps=300, **options)
    before, after = dk.evaluate(KEY, fourth, logits, [record, tuned])
    assert after.total_variance < 0.8 * before.total_variance
    assert (jnp.abs(after.bias) < 4.5 * after.bias_error + 1e-9).all()
    for name, value in record.settings.items():
        assert jnp.shape(tuned.settings[name]) == jnp.shape(value)


def test_tuning_without_a_step_changes_nothing_and_weights_stay_in_range():
    logits = jnp.array([1.0, 0.0, -1.0])
    same_one = dk.tune(KEY, fourth, logits, es.rebar(tau=0.7), num_steps=0)
    np.testing.assert_allclose(same_one.settings["tau"], 0.7)
    wild = optax.sgd(1.0)
    found = dk.tune(KEY, fourth, logits, es.rebar(), num_steps=5, optimizer=wild)
    assert found.settings["tau"] > 0
    assert found.settings["eta"] >= 0


def powered(f, logits, noise, *, baseline, power, kind):
    row = dk.hard(logits + noise[0])
    costs = f(row) ** power if kind == "power" else f(row)
    score = row - jax.nn.softmax(logits)
    return es.attach(costs, logits, es.over_rows(costs - baseline, row) * score)


def cost_of_one(row):
    return row[0]


GAPPED = es.gapped_straight_through(gap=None)


def test_settings_that_say_how_to_compute_stay_as_they_are():
    settings = {"baseline": 0.0, "power": 2, "kind": "power"}
    record = es.Estimator("mine", powered, settings, discrete=True)
    logits, options = jnp.array([1.0, 0.0, -1.0]), {"optimizer": optax.adam(0.2)}
    tuned = dk.tune(KEY, jnp.sum, logits, record, num_steps=100, **options)
    assert tuned.settings["power"] == 2
    assert tuned.settings["kind"] == "power"
    run = jax.jit(lambda z: dk.evaluate(KEY, cost_of_one, z, [tuned, GAPPED]))
    mine, gapped = run(logits)
    assert str(mine).count("power=2, kind=power") == 1
    assert "gap=None" in str(gapped)
    assert mine.to_dict()["settings"]["kind"] == "power"
    assert gapped.to_dict()["settings"]["gap"] is None
    # The cost of every draw is 1.
    np.testing.assert_allclose(tuned.settings["baseline"], 1, atol=0.05)


def test_what_cannot_be_tuned_is_said():
    def tune(record, **options):
        return dk.tune(KEY, cost, LOGITS, record, **options)

    with pytest.raises(ValueError, match=r"^estimator must have noise, and floating"):
        tune(es.rloo())
    with pytest.raises(ValueError, match=r"^estimator must have noise, and floating"):
        tune(es.straight_through())
    with pytest.raises(TypeError, match=r"^estimator must be an Estimator"):
        tune(dk.reinmax)
    with pytest.raises(TypeError, match=r"^optimizer must be one of optax's, got 3"):
        tune(es.rebar(), optimizer=3)
    with pytest.raises(ValueError, match=r"^num_samples must be at least 1"):
        tune(es.rebar(), num_samples=0)
    with pytest.raises(ValueError, match=r"^num_steps must be at least 0"):
        tune(es.rebar(), num_steps=-1)
    with pytest.raises(TypeError, match=r"^key must be "):
        dk.tune(3, cost, LOGITS, es.rebar())
