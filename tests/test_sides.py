"""compare_gradients with any two sides: modules, trees of parameters, NumPy."""

import copy
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_torch.agreement import compare_gradients

RNG = np.random.default_rng(0)
X, C = RNG.normal(size=(6, 3)), RNG.normal(size=(4, 3))
WIDE = {"dtypes": ["float64"]}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def params_of(module):
    """Of flax's kind."""
    return {
        name: {
            "kernel": jnp.asarray(module[i].weight.detach().numpy().T),
            "bias": jnp.asarray(module[i].bias.detach().numpy()),
        }
        for name, i in (("first", 0), ("second", 2))
    }


MATCH = {"first": "0", "second": "2"}


def forward(params, x, activation=jnp.tanh):
    first, second = params["first"], params["second"]
    hidden = activation(x @ first["kernel"] + first["bias"][None])
    return hidden @ second["kernel"] + second["bias"][None]


@jax.tree_util.register_dataclass
@dataclass
class Layer:
    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return x @ self.weight.T + self.bias[None]


@jax.tree_util.register_dataclass
@dataclass
class Tree:
    """A callable tree of arrays, as equinox's modules are."""

    layers: list
    width: int = field(metadata={"static": True}, default=5)

    def __call__(self, x):
        return self.layers[1](jnp.tanh(self.layers[0](x)))


def tree_of(module):
    arrays = [jnp.asarray(p.detach().numpy()) for p in module.parameters()]
    return Tree([Layer(*arrays[:2]), Layer(*arrays[2:])])


def test_a_module_is_compared_in_every_parameter_both_ways():
    module = network()
    names = {"arg0", "0.weight", "0.bias", "2.weight", "2.bias"}
    for pair in ((forward, module), (module, forward)):
        frameworks = ("jax", "torch") if pair[0] is forward else ("torch", "jax")
        report = compare_gradients(
            *pair, X, params=params_of(module), match=MATCH, frameworks=frameworks
        )
        assert report.agree
        assert report.unjudged == 0
        assert {p.input for p in report.pairs} - {""} == names
        assert {p.dtype for p in report.pairs} == {"float64", "float32"}


def test_gradients_are_in_the_layout_of_torch_and_the_layer_with_a_fault_is_named():
    module = network()

    def wrong(params, x):
        second = dict(
            params["second"], bias=jax.lax.stop_gradient(params["second"]["bias"])
        )
        return forward({**params, "second": second}, x)

    report = compare_gradients(
        wrong, module, X, params=params_of(module), match=MATCH, **WIDE
    )
    assert {p.input for p in report.disagreements} == {"2.bias"}
    assert "jax's is zero" in report.disagreements[0].note
    shapes = {p.input: p.shape for p in report.pairs}
    assert shapes["0.weight"] == (5, 3)


def test_a_callable_tree_brings_its_own_parameters():
    module = network()
    match = {"layers.0": "0", "layers.1": "2"}
    report = compare_gradients(tree_of(module), module, X, match=match)
    assert report.agree
    assert {p.input for p in report.pairs} >= {"0.weight", "2.bias"}


def test_two_modules_are_compared_and_the_first_gives_the_numbers():
    first, second = network(), network()
    with torch.no_grad():
        second[0].weight.add_(1)
    report = compare_gradients(first, second, X)
    assert report.agree
    assert report.names == ("torch 1", "torch 2")
    assert "0.weight" in report.remarks[0]
    relu = nn.Sequential(first[0], nn.ReLU(), first[2])
    assert not compare_gradients(first, relu, X).agree
    with pytest.raises(ValueError, match=r"(?s)params .*0\.bias"):
        compare_gradients(first, nn.Linear(3, 2), X)


def test_two_modules_of_other_names_are_matched_by_a_mapping():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.v = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.v(torch.tanh(self.w(x)))

    report = compare_gradients(network(), Named(), X, match={"0": "w", "2": "v"})
    assert report.agree
    assert {p.input for p in report.pairs} >= {"w.weight", "v.bias"}


class Counting(nn.Module):
    """Twice the same, if its buffers are each time those given."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return x * self.count


def test_a_buffer_that_a_forward_pass_moves_is_each_time_the_given_one():
    module = Counting()
    pair = module, lambda x: 1.0 * x
    assert compare_gradients(*pair, X, frameworks=("torch", "torch")).agree
    assert module.count == 0


def test_functions_of_other_integers_are_other_programs():
    x, k, m = X[:2], np.arange(3), np.arange(3, 6)
    first = (lambda x, k, m: (x * k[None]).sum(), lambda x, k, m: (x * k).sum())
    second = (lambda x, k, m: (x * m[None]).sum(), lambda x, k, m: (x * m).sum())
    with jax.numpy_dtype_promotion("standard"):
        assert compare_gradients(*first, x, k, m, **WIDE).agree
        assert compare_gradients(*second, x, k, m, **WIDE).agree
        assert not compare_gradients(first[0], second[1], x, k, m, **WIDE).agree
    unused = (lambda x, k: x.sum(),) * 2
    for n in (2, 3):
        assert compare_gradients(*unused, x, np.arange(n), **WIDE).agree


def test_float64_noise_is_no_exact_tie():
    x = RNG.normal(size=(20, 3)) * 1e-3 + 1e5
    c = RNG.normal(size=(4, 3)) * 1e-3 + 1e5

    def expanded(x, c):
        d = (x**2).sum(-1)[:, None] - 2 * x @ c.T + (c**2).sum(-1)[None]
        return jax.nn.softmax(-d)

    def direct(x, c):
        return torch.softmax(-((x[:, None] - c) ** 2).sum(-1), -1)

    assert compare_gradients(expanded, direct, x, c, **WIDE).disagreements == ()


def test_a_module_is_left_untouched_and_its_buffers_do_not_move():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = copy.deepcopy(module.state_dict())
    report = compare_gradients(module, module, X)
    assert report.agree
    assert module[0].weight.dtype == torch.float32
    assert module[0].weight.grad is None
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("train", [False, True])
def test_batch_statistics_among_the_parameters_are_given_to_both(train):
    torch.manual_seed(0)
    module = nn.Sequential(nn.BatchNorm1d(3)).train(train)
    mean, var = RNG.normal(size=3), RNG.uniform(0.5, 2, 3)
    params = {
        "params": {"BatchNorm_0": {"scale": np.full(3, 1.5), "bias": np.ones(3)}},
        "batch_stats": {"BatchNorm_0": {"mean": mean, "var": var}},
    }

    def normalized(params, x):
        of = params["params"]["BatchNorm_0"]
        stats = params["batch_stats"]["BatchNorm_0"]
        mean, var = (x.mean(0), x.var(0)) if train else (stats["mean"], stats["var"])
        scaled = (x - mean[None]) / jnp.sqrt(var + 1e-5)[None]
        return scaled * of["scale"][None] + of["bias"][None]

    match = {"BatchNorm_0": "0"}
    report = compare_gradients(normalized, module, X, params=params, match=match)
    assert report.agree
    assert {p.input for p in report.pairs} == {"", "arg0", "0.weight", "0.bias"}


def test_parameters_that_nothing_compares_are_said_to_be_held():
    module = network().double()
    arrays = {k: jnp.asarray(v.detach().numpy()) for k, v in module.named_parameters()}

    def fixed(x):
        hidden = jnp.tanh(x @ arrays["0.weight"].T + arrays["0.bias"][None])
        return hidden @ arrays["2.weight"].T + arrays["2.bias"][None]

    report = compare_gradients(fixed, module, X, **WIDE)
    assert report.agree
    assert "4 parameters" in report.remarks[0]
    assert report.remarks[0] in str(report)


def test_wrt_may_name_a_parameter():
    module = network()
    options = {"params": params_of(module), "match": MATCH, **WIDE}
    report = compare_gradients(forward, module, X, wrt="2.weight", **options)
    assert {p.input for p in report.pairs} == {"", "2.weight"}


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_two_functions_of_one_framework(framework):
    module = {"jax": dk, "torch": dt}[framework]
    pair = module.kmeans_loss, partial(module.kmeans_loss)
    report = compare_gradients(*pair, X, C, frameworks=(framework, framework))
    assert report.agree
    double = compare_gradients(
        pair[0],
        lambda x, c: 2 * module.kmeans_loss(x, c),
        X,
        C,
        frameworks=(framework, framework),
    )
    assert f"{framework} 2's is 2 times {framework} 1's" in str(double)


def test_random_keys_pass_where_both_sides_are_jax():
    def noisy(x, key):
        return x * jax.random.normal(key, x.shape, x.dtype)

    report = compare_gradients(
        noisy, jax.jit(noisy), X, jax.random.key(0), frameworks=("jax", "jax")
    )
    assert report.agree


def loss(x, c):
    """In NumPy."""
    d = ((x[:, None] - c) ** 2).sum(-1)
    return d.min(1).sum()


def loss_vjp(cotangent, x, c):
    labels = ((x[:, None] - c) ** 2).sum(-1).argmin(1)
    residual = 2 * cotangent * (x - c[labels])
    of_centroids = np.zeros_like(c)
    np.add.at(of_centroids, labels, -residual)
    return residual, of_centroids


@pytest.mark.parametrize("theirs", [loss, (loss, loss_vjp)], ids=["slopes", "by hand"])
@pytest.mark.parametrize("ours", ["jax", "torch"])
def test_numpy_is_a_side_by_differences_or_by_hand(ours, theirs):
    function = {"jax": dk.kmeans_loss, "torch": dt.kmeans_loss}[ours]
    report = compare_gradients(function, theirs, X, C, frameworks=(ours, "numpy"))
    assert report.agree
    assert report.unjudged == 0
    is_by_hand = isinstance(theirs, tuple)
    wide = [p for p in report.pairs if p.dtype == "float64"]
    assert max(p.scaled for p in wide) < (1e-14 if is_by_hand else 1e-9)
    assert bool(report.remarks) != is_by_hand
    wrong = compare_gradients(
        lambda x, c: 1.001 * function(x, c), theirs, X, C, frameworks=(ours, "numpy")
    )
    assert {p.verdict for p in wrong.pairs} == {"disagree"}


def test_arrays_that_a_function_closes_over_are_reported():
    narrow = jnp.asarray(C, jnp.float32)
    tensor = torch.tensor(C, dtype=torch.float32)
    with jax.numpy_dtype_promotion("standard"):
        report = compare_gradients(
            lambda x: (x @ narrow.T).sum(), lambda x: (x * tensor[0]).sum(), X, **WIDE
        )
    assert [remark.split(":")[0] for remark in report.remarks] == [
        "jax_fn closes over float32[4, 3]",
        "torch_fn closes over tensor, torch.float32[4, 3]",
    ]


def test_a_module_in_a_closure_is_named_in_the_error():
    module = network()
    with pytest.raises(RuntimeError) as caught:
        compare_gradients(lambda x: x, lambda x: module(x), X, **WIDE)
    notes = "".join(caught.value.__notes__)
    assert "torch_fn closes over the module module" in notes
    assert "hand in the module itself" in notes


RAISES = [
    ((forward, network()), {"params": {"a": np.ones(3)}}, "params"),
    ((lambda x: x, lambda x: x), {"params": {"a": np.ones(3)}}, "params must go with"),
    ((network(), network()), {"params": {}}, "params must go with one JAX function"),
    (
        (network(), lambda x: x),
        {"frameworks": ("jax", "torch")},
        "frameworks must name",
    ),
    ((loss, loss), {"frameworks": ("jax",)}, "frameworks must be two of"),
    ((loss, loss), {"frameworks": "jax"}, "frameworks must be two of"),
    ((loss, loss), {"match": {"a": "b"}}, "match must go with params"),
    ((loss, loss), {"seed": -1}, "seed must be an integer, 0 or more, got -1"),
    ((loss, loss), {"tol": "1e-3"}, "tol must be between 0 and 1"),
    ((loss, loss), {"frameworks": ("jax", "numpy"), "order": 2}, "order must be 1"),
    (
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), lambda x: x),
        {"frameworks": ("torch", "torch")},
        r"jax_fn must return the same .*1 draws as long as it trains: hand in .eval",
    ),
    (
        (lambda x: x * np.random.default_rng().normal(), lambda x: x),
        {},
        "jax_fn must return the same .*draw its noise once",
    ),
    (
        (lambda x: x, (lambda x: x, lambda ct, x: ct[0])),
        {"frameworks": ("jax", "numpy")},
        r"torch_fn's vjp must return the gradients in arg0",
    ),
    (
        (nn.Linear(3, 2, device="meta"), lambda x: x),
        {"frameworks": ("torch", "torch")},
        r"jax_fn must be on the CPU, but weight is on device meta",
    ),
]


@pytest.mark.parametrize(("pair", "options", "message"), RAISES)
def test_bad_input_raises_by_name(pair, options, message):
    with pytest.raises(ValueError, match=message):
        compare_gradients(*pair, X, **options)


def test_differences_of_many_entries_are_refused():
    with pytest.raises(ValueError, match=r"args must hold at most 4096 entries"):
        compare_gradients(
            lambda x: x.sum(),
            lambda x: x.sum(),
            np.ones((100, 50)),
            frameworks=("jax", "numpy"),
        )


def test_a_random_key_is_refused_where_one_side_is_not_jax():
    with pytest.raises(TypeError, match=r"arg1 is a random key, of which only JAX"):
        compare_gradients(lambda x, k: x, lambda x, k: x, X, jax.random.key(0))
