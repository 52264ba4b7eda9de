"""Results in a REPL: five lines each, flags by name, public names, and whole help."""

import copy
import inspect
import pickle
import pydoc
import re
import rlcompleter
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax import export
from test_docstrings import NAMES, TORCH_NAMES, failures_of

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_jax import plotting
from diffkm_torch import agreement, bridge
from diffkm_torch.agreement import steps

X = np.random.default_rng(0).normal(size=(60, 3))
X32 = jnp.asarray(X, jnp.float32)
RESULT = dk.fit(X, X[:3])
KEY = jax.random.key(0)


def evaluated(estimators, logits=X[:2]):
    return dk.evaluate(KEY, lambda row: row[..., 0] ** 2, logits, estimators)


PRINTED = {
    "fit": lambda: RESULT,
    "float32": lambda: dk.fit(X32, X32[:3]),
    "bfloat16": lambda: dk.fit(X32.astype(jnp.bfloat16), X32[:3].astype(jnp.bfloat16)),
    "soft": lambda: dk.fit(X, X[:20], temperature=0.5, max_steps=2),
    "NumPy leaves": lambda: jax.tree.map(np.asarray, RESULT),
    "fit_minibatch": lambda: dk.fit_minibatch(KEY, X, X[:3], batch_size=9, num_steps=2),
    "fit_restarts": lambda: dk.fit_restarts(KEY, X, 3, num_restarts=2),
    "fit_bounded": lambda: dk.fit_bounded(X, X[:3], min_size=20),
    "fit_stream": lambda: dk.fit_stream([X], X[:3]),
    "fit_stream by passes": lambda: dk.fit_stream([X], X[:3], passes=20),
    "state": lambda: RESULT.state,
    "adam's state": lambda: dk.init(X[:3], optimizer=optax.adam(0.1)),
    "no remainder": lambda: RESULT.state._replace(remainder=None),
    "certificate": lambda: dk.certificate(X, RESULT.centroids),
    "soft certificate": lambda: dk.certificate(X, X[:3], temperature=0.5),
    "quantize": lambda: dk.quantize(X, X[:3]),
    "residual_quantize": lambda: dk.residual_quantize(
        X, np.stack([X[:3], 0.1 * X[:3]])
    ),
    "lookup_free_quantize": lambda: dk.lookup_free_quantize(X),
    "torch fit": lambda: dt.fit(torch.tensor(X), torch.tensor(X[:3])),
    "torch state": lambda: dt.init(torch.tensor(X[:3]), optimizer=dt.ema()),
    "torch quantize": lambda: dt.quantize(torch.tensor(X), torch.tensor(X[:3])),
    "torch lookup_free_quantize": lambda: dt.lookup_free_quantize(torch.tensor(X)),
}
TORCH = [name for name in PRINTED if "torch" in name]
OTHERS = {
    "evaluate": lambda: evaluated(dk.estimators.reinmax()),
    "statistics": lambda: dk.statistics(X, X[:3]),
}
RECORDS = [*({*PRINTED} - {*TORCH}), *OTHERS]
RECORDS.sort()


@cache
def made(name):
    return (PRINTED | OTHERS)[name]()


def labels_of(text):
    return [line.split("  ")[0].strip() for line in text.splitlines()]


@pytest.mark.parametrize("name", PRINTED)
def test_a_result_prints_as_five_lines(name):
    value = made(name)
    text = repr(value)
    assert text == str(value) == f"{value}"
    assert len(text.splitlines()) == 5
    assert labels_of(text)[0] == type(value).__name__
    assert labels_of(text)[-1] == "look at"
    assert all(len(line) <= 88 and line == line.rstrip() for line in text.splitlines())


def test_a_fit_prints_its_status_steps_loss_and_sizes():
    lines = dict(line.split("  ", 1) for line in repr(RESULT).splitlines())
    found = {name: text.strip() for name, text in lines.items()}
    first, second, third = map(int, RESULT.counts)
    assert found == {
        "FitResult": "CONVERGED",
        "steps": str(int(RESULT.num_steps)),
        "loss": f"{float(RESULT.loss):.7g}",
        "sizes": f"3 clusters of {first}, {second} and {third}",
        "look at": "centroids [3, 3], labels [60], history",
    }


def test_sizes_are_weights_and_say_what_has_none():
    def sizes(**options):
        return repr(dk.fit(X, X[:8], max_steps=0, **options)).splitlines()[3].split()

    counts = np.asarray(dk.fit(X, X[:8], max_steps=0).counts)
    ends = [counts.min(), counts.max()]
    assert sizes()[1:3] == ["8", "clusters"]
    assert sizes()[-3::2] == [f"{size:.0f}" for size in ends]
    quarters = sizes(weights=np.full(60, 0.25))
    assert quarters[-3::2] == [f"{size / 4:g}" for size in ends]
    active = np.arange(8) < 2
    assert sizes(active=active)[-3:] == ["6", "without", "points"]
    assert sizes(weights=np.zeros(60))[1:] == ["8", "clusters", "without", "points"]
    one = repr(dk.fit(X, X[:1]))
    assert "sizes      1 cluster of 60\n" in one


def test_a_soft_fit_prints_its_temperature():
    result = made("soft")
    assert f"{result.loss:.7g} at temperature 0.5\n" in repr(result)


def ending(optimizer=None, **options):
    return dk.fit(X, X[:3], optimizer=optimizer or dk.newton(), **options)


def with_flags(*names, result=RESULT):
    return result._replace(status=jnp.int32(sum(dk.Status[name] for name in names)))


ADVICE = {
    "MAX_STEPS": (
        lambda: ending(max_steps=1),
        r"history; to go on, fit\(points, result.state",
    ),
    "data": (
        lambda: dk.fit(np.where(X[5] == X, np.nan, X), X[:3]),
        r"points, weights and the start: history\[0\] is nan$",
    ),
    "a step": (
        lambda: ending(optax.sgd(1e200), max_steps=9),
        r"points, weights and optimizer: history\[1\] is inf, the first not finite$",
    ),
    "temperature": (
        lambda: ending(
            max_steps=1, temperature=lambda step: 0.0 * step.astype(float) - 1.0
        ),
        r"temperature, which must be positive and was -1$",
    ),
    "finite losses": (
        lambda: with_flags("NON_FINITE"),
        r"points, weights and optimizer: a step was not finite, where losses were$",
    ),
    "EMPTY_CLUSTER": (
        lambda: dk.fit(X, np.concatenate([X[:3], X[:1] + 99])),
        r'counts; another start, or a policy as empty="farthest"$',
    ),
    "DOMAIN": (
        lambda: dk.fit(jnp.asarray(X), X[:3] ** 2, distance=dk.kl_divergence),
        r"points and centroids, for rows outside the domain of the distance$",
    ),
    "LINEAR_SOLVE": (
        lambda: with_flags("LINEAR_SOLVE", "CONVERGED"),
        r"certificate\(points, result.centroids, ...\) before a gradient$",
    ),
    "NOT_AT_REST": (
        lambda: with_flags("NOT_AT_REST"),
        r"residual; to go on, fit\(points, result.state, ...\), or a smaller tol$",
    ),
    "NO_IMPROVEMENT": (
        lambda: dk.fit_minibatch(
            KEY, X, X[:3], batch_size=9, num_steps=500, patience=2
        ),
        r"history; a larger patience goes on for longer$",
    ),
    "INTERRUPTED": (
        lambda: dk.fit_stream([X, X], X[:3], callback=lambda *_: True),
        r"state, to go on: fit_stream\(batches, result.state, ...\)$",
    ),
}


@pytest.mark.parametrize("name", ADVICE)
def test_the_last_line_says_what_to_look_at(name):
    make, expected = ADVICE[name]
    result = make()
    if name in dk.Status.__members__:
        assert dk.Status[name] in result.flags
    *_, last = repr(result).splitlines()
    assert last.startswith("look at ")
    assert re.search(expected, last)


def test_every_flag_has_advice():
    plain = repr(RESULT).splitlines()[-1]
    for name in set(dk.Status.__members__) - {"CONVERGED"}:
        assert repr(with_flags(name)).splitlines()[-1] != plain, name


def test_both_packages_print_the_same():
    for options in ({}, {"max_steps": 1}, {"temperature": 0.5, "max_steps": 9}):
        ours = dk.fit(X, X[:3], **options)
        theirs = dt.fit(torch.tensor(X), torch.tensor(X[:3]), **options)
        assert repr(ours) == repr(theirs)
        # Of rounding they have each their own.
        states = [repr(r.state).splitlines() for r in (ours, theirs)]
        assert states[0][:2] + states[0][3:] == states[1][:2] + states[1][3:]
        assert ours.flags == dk.Status(theirs.flags)
        assert theirs.converged.dtype == torch.bool
        assert bool(ours.converged) == bool(theirs.converged)
    quantized = [m.quantize(a(X), a(X[:3])) for m, a in PAIRS]
    assert repr(quantized[0]) == repr(quantized[1])
    quantized = [m.lookup_free_quantize(a(X)) for m, a in PAIRS]
    assert repr(quantized[0]) == repr(quantized[1])


PAIRS = [(dk, jnp.asarray), (dt, torch.tensor)]


def test_a_nan_is_printed():
    result = RESULT._replace(loss=jnp.nan, counts=RESULT.counts.at[1].set(jnp.nan))
    lines = repr(result).splitlines()
    assert lines[2].split() == ["loss", "nan"]
    assert "nan" in lines[3]
    counts = X[:9, 0] * np.nan
    assert "of nan" in repr(RESULT._replace(counts=counts))


def test_a_traced_result_prints_its_tracers_and_has_converged():
    seen = []

    @jax.jit
    def program(x):
        result = dk.fit(x, x[:3])
        seen.append((repr(result), repr(dk.certificate(x, result.centroids))))
        seen.append((repr(evaluated(dk.estimators.reinmax(), x)),))
        with pytest.raises(ValueError, match=r"^flags must be of a result that is not"):
            result.flags  # noqa: B018
        return result, result.converged, jnp.where(result.converged, result.loss, 0)

    result, converged, loss = program(X)
    assert bool(converged)
    assert loss == result.loss
    assert result.flags == dk.Status.CONVERGED
    assert len(repr(result).splitlines()) == 5
    fields = "FitResult(centroids=JitTracer(float64[3,3]), labels="
    assert fields.replace("Jit", "") in seen[0][0].replace("Jit", "").replace(
        "DynamicJaxpr", ""
    )
    assert seen[0][1].startswith("Certificate(margin=")
    assert seen[1] == ("reports of reinmax, traced: print what the program returns",)


def test_a_batch_of_fits_has_arrays_of_flags_and_prints_its_arrays():
    starts = np.stack([X[:3], X[:3] * np.nan])
    result = jax.vmap(lambda c: dk.fit(X, c))(starts)
    np.testing.assert_array_equal(result.converged, [True, False])
    assert isinstance(result.flags, np.ndarray)
    assert result.flags[0] == dk.Status.CONVERGED
    assert dk.Status.NON_FINITE in result.flags[1]
    assert repr(result).startswith("FitResult(centroids=Array([[[")
    one = jax.tree.map(lambda a: a[0], result)
    assert len(repr(one).splitlines()) == 5


def test_a_result_under_grad_prints_and_has_converged():
    def value(x):
        result = dk.fit(x, X[:3])
        assert repr(result).startswith(("FitResult(", "FitResult  "))
        return jnp.where(result.converged, result.loss, 0.0)

    assert jnp.isfinite(jax.grad(value)(X)).all()


LEAVES = {
    "None": lambda _: None,
    "strings": str,
    "shapes": lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)),
    "specs": lambda _: jax.sharding.PartitionSpec(),
    "tuples": np.shape,
    "objects": lambda _: object(),
    "NaN": lambda a: jnp.full(jnp.shape(a), jnp.nan),
    "complex": lambda a: jnp.full(jnp.shape(a), 1j),
    "keys": lambda _: KEY,
    "scalars": lambda _: 1.5,
    "vectors": lambda _: np.ones(2),
    "nothing": lambda _: np.ones(0),
    "large": lambda a: np.full(np.shape(a), 1e300),
}


@pytest.mark.parametrize("leaves", LEAVES)
@pytest.mark.parametrize("name", RECORDS)
def test_other_leaves_print_and_never_raise(name, leaves):
    mapped = jax.tree.map(LEAVES[leaves], made(name))
    assert isinstance(mapped, type(made(name)))
    text = repr(mapped)
    assert text
    if leaves not in ("NaN", "large"):
        assert text.startswith(type(mapped).__name__ + "(")


def test_flags_of_no_numbers_say_what_to_do():
    for other in (dk.fit_specs(), jax.eval_shape(dk.fit, X, X[:3])):
        assert repr(other).startswith("FitResult(centroids=")
        with pytest.raises(ValueError, match=r"^flags must be of a result that is not"):
            other.flags  # noqa: B018
    stream = made("fit_stream")._replace(status=None)
    with pytest.raises(ValueError, match=r"^flags must be of a result that is not"):
        stream.flags  # noqa: B018
    mapped = made("torch fit")._replace(status=None)
    with pytest.raises(ValueError, match=r"^flags must be of a result whose status"):
        mapped.flags  # noqa: B018


def test_what_is_deleted_prints_its_shape():
    state = jax.tree.map(jnp.copy, RESULT.state)
    jax.tree.map(lambda a: a.delete(), state)
    assert "centroids=ShapeDtypeStruct(shape=(3, 3)" in repr(state)
    assert "ShapeDtypeStruct" in repr(RESULT._replace(state=state, loss=state.step))


def test_printing_compiles_nothing_and_no_guard_of_transfers_stops_it(caplog):
    values = [made(name) for name in [*PRINTED, *OTHERS]]
    texts = [repr(value) for value in values[:-1]]
    jax.clear_caches()
    with jax.log_compiles(), jax.transfer_guard("disallow"):
        assert [repr(value) for value in values[:-1]] == texts
    assert caplog.records == []


def same(found, value):
    assert type(found) is type(value)
    assert jax.tree.structure(found) == jax.tree.structure(value)
    jax.tree.map(np.testing.assert_array_equal, found, value)
    assert repr(found) == repr(value)


@pytest.mark.parametrize("name", RECORDS)
def test_a_result_stays_a_tuple_a_tree_and_can_be_copied(name):
    value = made(name)
    assert isinstance(value, tuple)
    same(jax.tree.map(lambda a: a, value), value)
    same(copy.copy(value), value)
    same(copy.deepcopy(value), value)
    same(pickle.loads(pickle.dumps(value)), value)
    same(value._replace(**value._asdict()), value)


@pytest.mark.parametrize("name", TORCH)
def test_a_result_of_torch_can_be_copied(name):
    value = made(name)
    for found in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert type(found) is type(value)
        assert repr(found) == repr(value)


def test_an_exported_fit_prints_as_the_fit():
    specs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (X, X[:3])]
    data = export.export(jax.jit(dk.fit))(*specs).serialize()
    found = export.deserialize(data).call(X, X[:3])
    assert repr(found) == repr(RESULT)
    assert found.flags == RESULT.flags


def test_a_saved_result_prints_as_it_did(tmp_path):
    for name in ("fit", "soft", "fit_stream", "state"):
        dk.save(tmp_path / "a.npz", made(name))
        assert repr(dk.load(tmp_path / "a.npz")) == repr(made(name))


def test_a_sharded_result_prints_as_it_would_on_one_device():
    mesh = jax.make_mesh((4,), ("data",))
    assert repr(dk.fit_sharded(X, X[:3], mesh=mesh)) == repr(RESULT)


def test_tensors_that_require_gradients_print():
    x = torch.tensor(X, requires_grad=True)
    result = dt.fit(x, x[:3])
    assert result.loss.requires_grad
    assert repr(result) == repr(RESULT)
    assert not result.converged.requires_grad
    quantized = dt.quantize(x, x[:3])
    assert repr(quantized) == repr(made("torch quantize"))


def test_tensors_that_are_mapped_over_print_and_never_raise():
    seen = []

    def loss(x):
        found = dt.quantize(x, x[:3])
        seen.append(repr(found))
        return found.codebook_loss

    torch.func.vmap(loss)(torch.tensor(np.stack([X, X])))
    torch.func.grad(loss)(torch.tensor(X))
    assert seen[0].startswith("Quantized(values=")
    meta = made("torch quantize")
    meta = type(meta)(*(a.to("meta") for a in meta))
    assert repr(meta).startswith("Quantized(values=")


def test_a_result_that_crossed_the_bridge_prints_as_it_would_in_jax():
    x = torch.tensor(X, requires_grad=True)
    result = bridge.jax_to_torch(dk.fit)(x, torch.tensor(X[:3]))
    assert isinstance(result, dk.FitResult)
    assert result.loss.requires_grad
    assert repr(result) == repr(RESULT)
    assert result.flags == dk.Status.CONVERGED
    assert result.converged.dtype == torch.bool
    assert bool(result.converged)
    seen = []
    crossed = made("quantize")._replace(values=x, counts=torch.ones(3, dtype=float))
    torch.func.vmap(lambda c: seen.append(repr(crossed._replace(counts=c))) or c)(x)
    assert "3 of 3 codes" in repr(crossed)
    assert seen[0].startswith("Quantized(values=")
    logits = torch.tensor(X[:2], requires_grad=True)
    report = bridge.jax_to_torch(lambda z: evaluated(dk.estimators.reinmax(), z))
    assert repr(report(logits.detach())) == repr(made("evaluate"))
    assert repr(report(logits)).startswith("Report(exact=tensor(")


def test_a_stack_of_statuses_has_flags():
    result = made("torch fit")._replace(status=torch.tensor([1, 10]))
    both = dt.Status.MAX_STEPS | dt.Status.EMPTY_CLUSTER
    assert result.flags == [dt.Status.CONVERGED, both]
    assert result.converged.tolist() == [True, False]
    assert repr(result).startswith("FitResult(centroids=")


def test_a_stream_has_a_bool_and_a_status_that_pass_through_a_program():
    result = made("fit_stream by passes")
    assert result.converged is True
    assert result.flags is result.status
    through = jax.jit(lambda r: r)(result)
    assert through.flags == result.flags
    assert repr(through) == repr(result)


PROPERTIES = {
    "FitResult": dk.FitResult,
    "StreamResult": dk.StreamResult,
    "torch FitResult": dt.FitResult,
}


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("which", ["flags", "converged"])
def test_the_examples_of_the_properties_run(name, which):
    function = getattr(PROPERTIES[name], which).fget
    failures = failures_of(function, which, NAMES | TORCH_NAMES)
    assert not failures, failures
    assert "Returns:" in function.__doc__
    assert ("Raises:" in function.__doc__) == (which == "flags")


def test_a_valid_certificate_says_so_and_others_what_to_look_at():
    assert "Certificate  valid\n" in repr(made("certificate"))
    assert "which is licensed" in repr(made("certificate"))
    bad = {
        "another full step may change labels": dk.certificate(X, X[:3]),
        "below zero, at a saddle or not at rest": made("soft certificate"),
        "margin: ties": dk.certificate(X, X[[0, 0, 1]]),
        "gradient is not finite": dk.certificate(jnp.asarray(X) * jnp.nan, X[:3]),
        "more num_iterations tell": made("soft certificate")._replace(
            smallest_eigenvalue=jnp.float32(0.1), eigenvalue_error=jnp.float32(1)
        ),
    }
    for words, found in bad.items():
        assert "Certificate  NOT VALID\n" in repr(found)
        assert words in repr(found).splitlines()[-1]


def test_a_codebook_that_is_not_used_is_to_be_looked_at():
    far = np.concatenate([X[:3], X[:1] + 99])
    lines = repr(dk.quantize(X, far)).splitlines()
    assert lines[-1].endswith("counts [4]: 1 code without points")
    assert "3 of 4 codes, perplexity 2." in lines[1]


def test_a_perplexity_is_printed_as_it_is():
    found = made("residual_quantize")
    least, most = jnp.sort(found.perplexity)
    assert f"perplexity {least:.4g} to {most:.4g}" in repr(found)


def test_reports_show_their_tables():
    both = evaluated([dk.estimators.reinmax(), dk.estimators.straight_through()])
    for report in (made("evaluate"), both):
        assert repr(report) == str(report)
        assert repr(report).startswith("estimator ")
    x = X[:9]
    found = agreement.compare_gradients(dk.kmeans_loss, dt.kmeans_loss, x, x[:2])
    assert repr(found) == str(found)
    assert repr(found).startswith("Gradients agree in")
    assert copy.deepcopy(found) == found


PLACES = {
    "dk": dk,
    "dk.estimators": dk.estimators,
    "dk.fitting": dk.fitting,
    "dk.distances": dk.distances,
    "dk.plotting": plotting,
    "dt": dt,
    "dt.estimators": dt.estimators,
    "dt.fitting": dt.fitting,
    "dt.modules": dt.modules,
    "dt.optimizers": dt.optimizers,
    "agreement": agreement,
    "agreement.steps": steps,
    "bridge": bridge,
}


@pytest.mark.parametrize("name", PLACES)
def test_dir_shows_the_public_names(name):
    module = PLACES[name]
    later = {"agreement", "bridge"} if module is dt else set()
    shown = {n for n in dir(module) if not n.startswith("__")}
    assert shown == {*module.__all__} | later
    assert {"__all__", "__doc__", "__name__"} <= {*dir(module)}
    assert dir(module) == sorted(dir(module))


def test_completion_offers_public_names_only():
    completer = rlcompleter.Completer({"dk": dk})
    found, i = [], 0
    while text := completer.complete("dk.", i):
        found, i = [*found, text.removeprefix("dk.").rstrip("()")], i + 1
    assert {*found} == {*dk.__all__}


NAMED = {
    f"{name}.{public}": getattr(module, public)
    for name, module in PLACES.items()
    for public in module.__all__
    if not inspect.ismodule(getattr(module, public))
}


@pytest.mark.parametrize("name", NAMED)
def test_help_shows_the_docstring_and_the_signature(name):
    value = NAMED[name]
    text = pydoc.plain(pydoc.render_doc(value))
    head, first = text.splitlines()[0], inspect.getdoc(value).splitlines()[0]
    assert head.removeprefix("Python Library Documentation: ").split()[0] in (
        "class",
        "function",
    )
    assert first in text
    assert str(inspect.signature(value)) in text


def test_an_optimizer_is_the_same_object_at_every_call():
    for optimizer in (dk.newton, dk.macqueen):
        assert optimizer() is optimizer()
        assert inspect.isfunction(optimizer)
        with pytest.raises(TypeError, match=r"takes 0 positional arguments but 1"):
            optimizer(3)
