"""Every error of maps, estimators and evaluate, in both packages, with the value."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from maps import MAPS, ONE_DRAW, SEVERAL_DRAWS, gumbel, noise_for, scalar

import diffkm_jax as dk
import diffkm_torch as dt

LOGITS = np.random.default_rng(0).normal(size=(4, 3))
KEY = jax.random.key(0)


class Package:
    """One of the two packages, called with NumPy arrays."""

    def __init__(self, module, array):
        self.module, self.array = module, array

    def convert(self, value):
        return self.array(value) if isinstance(value, np.ndarray) else value

    def call(self, name, *args, **options):
        options = {key: self.convert(value) for key, value in options.items()}
        return getattr(self.module, name)(*map(self.convert, args), **options)

    def expect(self, record, f, logits, noise):
        return record.expect(f, self.convert(logits), self.convert(noise))


BOTH = pytest.mark.parametrize(
    "package",
    [Package(dk, jnp.asarray), Package(dt, torch.as_tensor)],
    ids=["jax", "torch"],
)
BAD_SCALARS = [
    (0, "finite and positive, got 0"),
    (-0.5, "finite and positive, got -0.5"),
    (float("nan"), "finite and positive, got nan"),
    (float("inf"), "finite and positive, got inf"),
    (None, "got None"),
    (np.ones(3), r"scalar \(rank 0\), got shape \(3,\)"),
]


@BOTH
@pytest.mark.parametrize("name", [n for n in MAPS if n != "hard"])
def test_the_scalar_of_a_map(package, name):
    noise = noise_for(name, LOGITS.shape)
    for value, message in BAD_SCALARS:
        with pytest.raises(ValueError, match=f"{scalar(name)} must be .*{message}"):
            package.call(name, LOGITS, **noise, **{scalar(name): value})


@BOTH
@pytest.mark.parametrize("name", MAPS)
def test_the_logits_of_a_map(package, name):
    noise = noise_for(name, LOGITS.shape)
    with pytest.raises(TypeError, match=r"logits must be floating, got dtype .*int64"):
        package.call(name, LOGITS.astype(int), **noise)
    for bad in (np.asarray(1.0), np.ones((2, 0))):
        with pytest.raises(ValueError, match=r"logits must be \[\.\.\., .*got shape"):
            package.call(name, bad, **noise_for(name, bad.shape))


@BOTH
@pytest.mark.parametrize("name", [*ONE_DRAW, *SEVERAL_DRAWS, "conditional_gumbel"])
def test_the_noise_of_a_map(package, name):
    more = {}
    if name == "conditional_gumbel":
        more = {"one_hot": np.eye(3)[[0, 1, 2, 0]], "differentiable": True}
    with pytest.raises(TypeError, match=r"noise must be floating, got dtype .*int64"):
        package.call(name, LOGITS, noise=np.ones((2, 4, 3), int)[0], **more)
    shapes = [(3,), (4, 2), (1, 2, 4, 3)]
    shapes += [(2, 4, 3)] if name in ONE_DRAW else []
    shapes += [(4, 3), (0, 4, 3)] if name in SEVERAL_DRAWS else []
    shapes += [(1, 4, 3)] if name == "gumbel_rao" else []
    for shape in shapes:
        found = str(shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=f"noise must be .*4, 3.*got .*{found}"):
            package.call(name, LOGITS, noise=gumbel(shape), **more)


@BOTH
def test_other_arguments_of_maps(package):
    noise = gumbel(LOGITS.shape)
    for value, message in [*BAD_SCALARS[1:4], BAD_SCALARS[5]]:
        message = message.replace("positive", "not negative")
        with pytest.raises(ValueError, match=f"gap must be .*{message}"):
            package.call("gapped_straight_through", LOGITS, noise, gap=value)
        message = message.replace("not negative", "positive")
        with pytest.raises(ValueError, match=f"tau_backward must be .*{message}"):
            package.call("decoupled_gumbel_softmax", LOGITS, noise, tau_backward=value)
    with pytest.raises(ValueError, match=r"logits must be \[..., n, k\].*\(4,\)"):
        package.call("sinkhorn", LOGITS[:, 0])
    with pytest.raises(ValueError, match="num_iters must be at least 0, got -1"):
        package.call("sinkhorn", LOGITS, num_iters=-1)
    with pytest.raises(TypeError, match="num_iters must be a Python integer"):
        package.call("sinkhorn", LOGITS, num_iters=2.0)
    with pytest.raises(ValueError, match=r"column_weights must be \[k\].*k = 3.*4"):
        package.call("sinkhorn", LOGITS, column_weights=np.ones(4))
    with pytest.raises(TypeError, match="column_weights must be floating"):
        package.call("sinkhorn", LOGITS, column_weights=np.ones(3, complex))


@BOTH
def test_the_conditional_sampler(package):
    drawn, noise = np.eye(3)[[0, 1, 2, 0]], gumbel(LOGITS.shape)
    with pytest.raises(TypeError, match="differentiable"):
        package.call("conditional_gumbel", LOGITS, drawn, noise)
    with pytest.raises(TypeError, match="differentiable must be a bool, got None"):
        package.call("conditional_gumbel", LOGITS, drawn, noise, differentiable=None)
    options = {"differentiable": True}
    with pytest.raises(TypeError, match="one_hot must be floating"):
        package.call("conditional_gumbel", LOGITS, drawn.astype(int), noise, **options)
    with pytest.raises(ValueError, match=r"one_hot must be .*\(4, 3\), got .*\(3,\)"):
        package.call("conditional_gumbel", LOGITS, drawn[0], noise, **options)


# Estimators ---------------------------------------------------------------------------

SCALARS = {
    "straight_through": ["tau"],
    "sampled_straight_through": ["tau"],
    "gumbel_softmax": ["tau"],
    "decoupled_gumbel_softmax": ["tau", "tau_backward"],
    "gumbel_rao": ["tau"],
    "gapped_straight_through": ["tau"],
    "reinmax": ["tau"],
    "blackbox": ["strength"],
    "implicit_mle": ["strength"],
    "rebar": ["tau"],
}


@BOTH
@pytest.mark.parametrize("name", SCALARS)
def test_the_scalars_of_an_estimator(package, name):
    make = getattr(package.module.estimators, name)
    for argument, (value, message) in product(SCALARS[name], BAD_SCALARS):
        with pytest.raises(ValueError, match=f"{argument} must be .*{message}"):
            make(**{argument: package.convert(value)})


@BOTH
def test_scalars_that_may_be_zero(package):
    es = package.module.estimators
    for make, argument in ((es.rebar, "eta"), (es.gapped_straight_through, "gap")):
        make(**{argument: 0})
        with pytest.raises(ValueError, match=f"{argument} must be .*, got -1"):
            make(**{argument: -1})


@BOTH
@pytest.mark.parametrize(
    ("name", "argument", "minimum"),
    [
        ("gumbel_rao", "num_samples", 1),
        ("rloo", "num_samples", 2),
        ("exact", "max_configurations", 1),
    ],
)
def test_the_integers_of_an_estimator(package, name, argument, minimum):
    make = getattr(package.module.estimators, name)
    message = f"{argument} must be at least {minimum}, got {minimum - 1}"
    with pytest.raises(ValueError, match=message):
        make(**{argument: minimum - 1})
    with pytest.raises(TypeError, match=f"{argument} must be a Python integer"):
        make(**{argument: 2.5})


def total(rows):
    return (rows**2).sum()


@BOTH
def test_expect(package):
    record = package.module.estimators.reinmax()
    noise = gumbel((1, 4, 3))
    with pytest.raises(TypeError, match="f must be a function, got 3"):
        package.expect(record, 3, LOGITS, noise)
    with pytest.raises(TypeError, match="logits must be floating"):
        package.expect(record, total, LOGITS.astype(int), noise)
    with pytest.raises(TypeError, match="noise must be floating"):
        package.expect(record, total, LOGITS, noise.astype(int))
    for bad in (noise[0], gumbel((2, 4, 3)), gumbel((1, 4, 2))):
        with pytest.raises(ValueError, match=r"noise must be \(1, 4, 3\), a row per"):
            package.expect(record, total, LOGITS, bad)
    with pytest.raises(ValueError, match=r"noise must be \(1, 4, 3\).*got None"):
        package.expect(record, total, LOGITS, None)
    with pytest.raises(ValueError, match=r"logits must be \[..., k\]"):
        package.expect(record, total, np.asarray(1.0), np.ones(1))


@BOTH
@pytest.mark.parametrize(
    ("cost", "shape"),
    [
        (lambda rows: rows.sum(0), r"\(3,\)"),
        (lambda rows: rows, r"\(4, 3\)"),
        (lambda rows: rows.sum(-1)[:2], r"\(2,\)"),
        (lambda rows: rows.sum(-1)[:, None], r"\(4, 1\)"),
    ],
)
@pytest.mark.parametrize("name", ["reinmax", "reinforce", "exact", "implicit_mle"])
def test_a_cost_whose_shape_is_no_prefix(package, cost, shape, name):
    record = getattr(package.module.estimators, name)()
    noise = gumbel((record.num_draws, 4, 3))
    with pytest.raises(ValueError, match=rf"costs \[\*batch\].*got shape {shape}"):
        package.expect(record, cost, LOGITS, noise)


def total_of_all(f, logits, noise):
    return f(logits).sum()


def one_for_each_draw(f, logits, noise):
    return f(logits[None] + noise)


def blind(f, logits, noise):
    return logits[..., :2, 0]


@BOTH
@pytest.mark.parametrize(
    ("rule", "shape"),
    [(total_of_all, r"\(\)"), (one_for_each_draw, r"\(2, 4\)"), (blind, r"\(2,\)")],
)
def test_a_rule_that_returns_another_shape(package, rule, shape):
    record = package.module.estimators.Estimator("mine", rule, num_draws=2)
    with pytest.raises(ValueError, match=rf"of mine must .*\(4,\), got shape {shape}"):
        package.expect(record, lambda r: r.sum(-1), LOGITS, gumbel((2, 4, 3)))


def mean_of_draws(f, logits, noise):
    return f(logits[None] + noise).mean(0)


@BOTH
def test_a_rule_may_evaluate_many_draws_at_once(package):
    record = package.module.estimators.Estimator("mine", mean_of_draws, num_draws=2)
    noise = gumbel((2, 4, 3))
    costs = package.expect(record, lambda r: r.sum(-1), LOGITS, noise)
    np.testing.assert_allclose(costs, (LOGITS + noise).sum(-1).mean(0), rtol=1e-12)


@BOTH
@pytest.mark.parametrize("name", ["reinforce", "sampled_straight_through", "exact"])
def test_one_cluster_is_no_choice(package, name):
    record = getattr(package.module.estimators, name)()
    noise = gumbel((record.num_draws, 4, 1))
    message = r"k at least 2 .*got shape \(4, 1\): those of Bernoulli .* made by"
    with pytest.raises(ValueError, match=message):
        package.expect(record, lambda r: r.sum(-1), LOGITS[:, :1], noise)


@BOTH
def test_costs_that_are_not_floating(package):
    record = package.module.estimators.reinforce()
    with pytest.raises(TypeError, match="the costs of f must be floating"):
        package.expect(record, lambda r: r.argmax(-1), LOGITS, gumbel((1, 4, 3)))


@BOTH
def test_binary_estimators_and_baselines(package):
    es = package.module.estimators
    with pytest.raises(
        ValueError, match=r"^logits must be \[..., 2\] for disarm, got shape \(4, 3\)"
    ):
        package.expect(es.disarm(), total, LOGITS, gumbel((1, 4, 3)))
    record = es.reinforce(baseline=package.convert(np.ones(3)))
    with pytest.raises(ValueError, match=r"of the costs \(4,\), got shape \(3,\)"):
        package.expect(record, lambda r: r.sum(-1), LOGITS, gumbel((1, 4, 3)))


@BOTH
def test_enumeration_that_is_too_large(package):
    with pytest.raises(ValueError, match=r"rows \(9,\) has .* = 3\*\*9 conf"):
        package.expect(
            package.module.estimators.exact(),
            total,
            np.ones((9, 3)),
            np.ones((0, 9, 3)),
        )


@BOTH
def test_attach(package):
    attach = package.module.estimators.attach

    def call(costs, logits, gradient):
        return attach(*map(package.convert, (costs, logits, gradient)))

    with pytest.raises(TypeError, match="costs must be floating"):
        call(np.ones(4, int), LOGITS, LOGITS)
    with pytest.raises(TypeError, match="gradient must be floating"):
        call(np.ones(4), LOGITS, LOGITS.astype(int))
    with pytest.raises(ValueError, match=r"gradient must be of the shape .*\(4, 3\)"):
        call(np.ones(4), LOGITS, LOGITS[:2])
    for bad in (np.ones(3), LOGITS):
        with pytest.raises(ValueError, match=r"costs must be a prefix \(4,\) of"):
            call(bad, LOGITS, LOGITS)


@BOTH
def test_draws_of_another_dtype(package):
    record = package.module.estimators.reinmax()
    start = KEY if package.module is dk else None
    dtype = int if package.module is dk else torch.int64
    with pytest.raises(TypeError, match="dtype must be floating, got"):
        record.draw(start, (3,), dtype)


@pytest.mark.parametrize("function", [dk.evaluate, dk.is_discrete])
def test_evaluate(function):
    reinmax = dk.estimators.reinmax
    for bad in (reinmax, dk.reinmax):
        with pytest.raises(TypeError, match=r"an Estimator, .*\), got reinmax$"):
            function(KEY, total, LOGITS, bad)
    with pytest.raises(TypeError, match=r"an Estimator, .*\), got reinmax$"):
        dk.evaluate(KEY, total, LOGITS, [reinmax])
    with pytest.raises(TypeError, match="logits must be floating"):
        function(KEY, total, LOGITS.astype(int), reinmax())
    with pytest.raises(
        ValueError, match=r"k at least 2 .*got shape \(4, 1\): those of B"
    ):
        function(KEY, total, LOGITS[:, :1], reinmax())
    with pytest.raises(TypeError, match="f must be a function, got 'f'"):
        function(KEY, "f", LOGITS, reinmax())
    with pytest.raises(ValueError, match="shape a prefix of the rows'"):
        function(KEY, lambda rows: rows, LOGITS, reinmax())
    minimum = 1 if function is dk.is_discrete else 2
    message = f"num_samples must be at least {minimum}, got 0"
    with pytest.raises(ValueError, match=message):
        function(KEY, total, LOGITS, reinmax(), num_samples=0)
    with pytest.raises(TypeError, match="num_samples must be a Python integer"):
        function(KEY, total, LOGITS, reinmax(), num_samples=1e4)


def test_the_sizes_of_an_evaluation():
    with pytest.raises(ValueError, match=r"estimator must be .* a list of some, got"):
        dk.evaluate(KEY, total, LOGITS, [])
    for argument in ("max_configurations", "chunk_size"):
        with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
            dk.evaluate(KEY, total, LOGITS, dk.estimators.reinmax(), **{argument: 0})
