"""Leaves of JAX's parameter trees matched to torch's parameters, by name and layout."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from diffkm_torch.agreement._parameters import match_parameters

RNG = np.random.default_rng(0)


@jax.tree_util.register_dataclass
@dataclass
class Linear:
    """As equinox has it: torch's layout, and what is no array among the leaves."""

    weight: Any
    bias: Any
    activation: Any = None
    size: Any = 3


@jax.tree_util.register_dataclass
@dataclass
class Boxed:
    """As flax nnx has its arrays."""

    value: Any


def zeros(*shape):
    return np.zeros(shape)


def shapes(module):
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def buffers(module):
    found = module.named_buffers()
    return {name: tuple(b.shape) for name, b in found if b.is_floating_point()}


def matched(tree, module, match=None):
    found = match_parameters(tree, shapes(module), match, buffers=buffers(module))
    return {m.path: m.name for m in found}


def loaded(module, tree, match=None):
    """The module in float64 with the parameters and buffers of a tree."""
    module, leaves = module.double(), jax.tree.leaves(tree)
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for m in match_parameters(tree, shapes(module), match, buffers=buffers(module)):
            named[m.name].copy_(torch.tensor(m.to_torch(np.asarray(leaves[m.index]))))
    return module.eval()


MLP = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
DENSE = {
    "Dense_0": {"bias": zeros(4), "kernel": zeros(3, 4)},
    "Dense_1": {"bias": zeros(2), "kernel": zeros(4, 2)},
}
RENAMED = {"Dense_0": "0", "Dense_1": "2"}
NAMES = {
    "Dense_0.bias": "0.bias",
    "Dense_0.kernel": "0.weight",
    "Dense_1.bias": "2.bias",
    "Dense_1.kernel": "2.weight",
}


@pytest.mark.parametrize("tree", [DENSE, {"params": DENSE}])
@pytest.mark.parametrize(
    "match",
    [
        RENAMED,
        {f"params.{path}": name for path, name in RENAMED.items()},
        NAMES,
        NAMES.get,
        lambda path: (NAMES[path], (1, 0)) if "kernel" in path else NAMES[path],
    ],
)
def test_modules_arrays_and_functions_rename(tree, match):
    assert matched(tree, MLP, match) == NAMES


def test_the_longest_head_of_a_path_decides():
    match = RENAMED | {"Dense_1.bias": "0.bias", "Dense_0.bias": "2.bias"}
    tree = {
        "Dense_0": DENSE["Dense_0"] | {"bias": zeros(2)},
        "Dense_1": DENSE["Dense_1"] | {"bias": zeros(4)},
    }
    found = matched(tree, MLP, match)
    assert found["Dense_1.bias"] == "0.bias"
    assert found["Dense_0.kernel"] == "0.weight"


def test_a_function_that_returns_none_leaves_the_rule():
    tree = {"0": DENSE["Dense_0"], "two": DENSE["Dense_1"]}

    def match(path):
        head, _, leaf = path.partition(".")
        name = {"kernel": ("2.weight", (1, 0)), "bias": "2.bias"}[leaf]
        return name if head == "two" else None

    assert matched(tree, MLP, match)["0.kernel"] == "0.weight"


def test_names_of_torch_have_the_layout_of_torch():
    flat = {name: p.detach().numpy() for name, p in MLP.named_parameters()}
    found = match_parameters(flat, shapes(MLP))
    assert {m.path: m.name for m in found} == {name: name for name in flat}
    assert all(m.axes is None for m in found)


def test_leaves_that_are_no_floating_arrays_are_ignored_and_the_index_counts_them():
    layer = Linear(zeros(2, 3), zeros(2), jnp.tanh)
    tree = [jnp.tanh, 3, None, np.arange(3), jax.random.key(0), 0.5, layer]
    module = nn.Module()
    module.add_module("6", nn.Linear(3, 2))
    found = match_parameters(tree, shapes(module))
    assert [m.path for m in found] == ["6.weight", "6.bias"]
    leaves = jax.tree.leaves(tree)
    assert [leaves[m.index].shape for m in found] == [(2, 3), (2,)]


def test_boxes_and_slashes_are_no_part_of_a_path():
    tree = {"lin": {"kernel": Boxed(zeros(3, 2)), "bias": Boxed(zeros(2))}}
    module = nn.ModuleDict({"lin": nn.Linear(3, 2)})
    names = {"lin.bias": "lin.bias", "lin.kernel": "lin.weight"}
    assert matched(tree, module) == names
    flat = {"lin/kernel": zeros(3, 2), "lin/bias": zeros(2)}
    assert matched(flat, module) == names


def test_a_dense_layer_returns_the_same():
    x, kernel, bias = (
        RNG.normal(size=(5, 3)),
        RNG.normal(size=(3, 4)),
        RNG.normal(size=4),
    )
    module = loaded(nn.Linear(3, 4), {"kernel": kernel, "bias": bias})
    found = module(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(found, x @ kernel + bias)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_returns_the_same(groups):
    x, kernel = RNG.normal(size=(2, 7, 6, 4)), RNG.normal(size=(3, 2, 4 // groups, 6))
    module = nn.Conv2d(4, 6, (3, 2), groups=groups, bias=False)
    module = loaded(module, {"kernel": kernel})
    ours = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    theirs = module(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(theirs.detach().numpy(), ours, atol=1e-12)


def test_a_batch_norm_has_its_statistics():
    arrays = {name: RNG.uniform(1, 2, 3) for name in ("scale", "bias", "mean", "var")}
    tree = {
        "batch_stats": {name: arrays[name] for name in ("mean", "var")},
        "params": {name: arrays[name] for name in ("scale", "bias")},
    }
    module, x = loaded(nn.BatchNorm1d(3), tree), RNG.normal(size=(5, 3))
    ours = (x - arrays["mean"]) / np.sqrt(arrays["var"] + 1e-5)
    found = module(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(found, ours * arrays["scale"] + arrays["bias"])


def test_buffers_need_no_leaf_and_parameters_do():
    assert matched({"scale": zeros(3), "bias": zeros(3)}, nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"are none in params, bias \(3,\) in module"):
        matched({"scale": zeros(3)}, nn.BatchNorm1d(3))


def test_an_embedding_is_not_transposed():
    (found,) = match_parameters({"embedding": zeros(4, 4)}, {"weight": (4, 4)})
    assert found.axes is None


@pytest.mark.parametrize(
    ("key", "shape", "there"),
    [
        ("kernel", (3, 4), (4, 3)),
        ("kernel", (2, 3, 4, 5), (5, 4, 2, 3)),
        ("kernel", (7, 4, 5), (5, 4, 7)),
        ("bias", (4, 1, 1), (4,)),
        ("bias", (4,), (4,)),
    ],
)
def test_layouts_go_there_and_back_entry_by_entry(key, shape, there):
    name = "weight" if key == "kernel" else key
    (found,) = match_parameters({key: zeros(*shape)}, {name: there})
    array = RNG.normal(size=shape)
    assert found.to_torch(array).shape == there
    np.testing.assert_array_equal(found.to_jax(found.to_torch(array)), array)


def refused(tree, module, match=None, kind=ValueError):
    with pytest.raises(kind) as error:
        matched(tree, module, match)
    return str(error.value)


def test_what_has_no_counterpart_is_listed_and_a_matching_proposed():
    message = refused(DENSE, MLP)
    assert message.startswith("params must match the parameters of module by name")
    assert "Dense_0.kernel (3, 4)" in message
    assert "2.weight (2, 4)" in message
    assert f"match={RENAMED!r} fits" in message


def test_a_proposal_is_by_the_order_of_torch_where_that_of_a_dict_is_another():
    tree = {
        "BatchNorm_0": {"scale": zeros(4), "bias": zeros(4)},
        "Conv_0": {"kernel": zeros(3, 3, 2, 4), "bias": zeros(4)},
        "Dense_0": {"kernel": zeros(4, 2), "bias": zeros(2)},
    }
    tree |= {f"Dense_{i}": {"kernel": zeros(2, 2), "bias": zeros(2)} for i in (2, 10)}
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
    module = nn.Sequential(*layers, nn.Linear(2, 2), nn.Linear(2, 2))
    names = "Conv_0", "BatchNorm_0", "Dense_0", "Dense_2", "Dense_10"
    proposed = {name: str(i) for i, name in enumerate(names)}
    assert f"match={proposed!r} fits" in refused(tree, module)
    assert len(matched(tree, module, proposed)) == 10


def test_a_proposal_for_names_of_ones_own_has_the_axes():
    tree = {"b1": zeros(4), "b2": zeros(2), "w1": zeros(3, 4), "w2": zeros(4, 2)}
    proposed = {
        "w1": ("0.weight", (1, 0)),
        "b1": "0.bias",
        "w2": ("2.weight", (1, 0)),
        "b2": "2.bias",
    }
    assert f"match={proposed!r} fits" in refused(tree, MLP)
    assert matched(tree, MLP, proposed)["w2"] == "2.weight"


def test_nothing_is_proposed_that_does_not_fit():
    assert "fits" not in refused({"Dense_0": {"kernel": zeros(3, 5)}}, MLP)


def test_a_shape_that_does_not_fit_says_both():
    module = nn.Linear(4, 3, bias=False)
    found = refused({"kernel": zeros(3, 4)}, module)
    assert (
        "kernel is (3, 4), with the axes (1, 0), and weight of torch is (3, 4)" in found
    )
    assert refused({"weight": zeros(4, 4)}, module).startswith(
        "params must fit in shape"
    )
    wrong = {"a": ("weight", (0, 0))}
    assert refused({"a": zeros(3, 4)}, module, wrong).startswith(
        "match must fit in shape"
    )


def test_no_two_arrays_are_one_parameter():
    module = nn.Linear(3, 4)
    message = refused({"kernel": zeros(3, 4), "weight": zeros(4, 3)}, module)
    assert "kernel and weight are both weight" in message


def test_a_match_must_name_paths_and_names():
    assert refused(DENSE, MLP, RENAMED | {"Dense_7": "4"}).startswith(
        "match must name paths of params (Dense_0.bias"
    )
    message = refused(DENSE, MLP, RENAMED | {"Dense_1": "1"})
    assert message.startswith("match must match the parameters of module")
    assert "match={'Dense_1': '2'} fits" in message
    assert (
        refused(DENSE, MLP, 3, TypeError) == "match must be a dict or a function, got 3"
    )
    message = refused(DENSE, MLP, RENAMED | {"Dense_1": 2}, TypeError)
    assert message == "match must give a name, or (name, axes), got 2"
    message = refused(DENSE, MLP, {"Dense_0": ("0", (1, 0))}, TypeError)
    assert message.startswith("match must give axes for single arrays")


def test_a_tree_without_floating_arrays_is_refused():
    assert refused({"a": 3}, MLP) == (
        "params must hold at least one floating array, got none"
    )
