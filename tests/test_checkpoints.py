"""python -m diffkm_torch compare with modules, trees and files of parameters."""

import json
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diffkm_torch.__main__ import main
from diffkm_torch._checkpoints import read_arrays, read_tree

SIDES = """\
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

import diffkm_jax as dk


def forward(params, x):
    layers = params["layers"]
    hidden = jnp.tanh(x @ layers["0"]["kernel"] + layers["0"]["bias"][None])
    return hidden @ layers["2"]["kernel"] + layers["2"]["bias"][None]


def wrong(params, x):
    layers = params["layers"]
    bias = jax.lax.stop_gradient(layers["2"]["bias"])
    return forward(
        {"layers": {**layers, "2": {**layers["2"], "bias": bias}}}, x
    )


class Net(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2)
        )

    def forward(self, x):
        return self.layers(x)


class Random(Net):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


def make(width=5):
    return Net(width)


def fails():
    raise ArithmeticError("of mine")


torch.manual_seed(0)
net = Net()


@jax.tree_util.register_dataclass
@dataclass
class Line:
    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return x @ self.weight.T + self.bias[None]


line = Line(jnp.ones((2, 3)), jnp.zeros(2))


def linear():
    return nn.Linear(3, 2)


def as_numpy(x):
    return (x**2).sum()


by_hand = as_numpy, lambda cotangent, x: (2 * cotangent * x,)


def squares(x):
    return (x**2).sum()


def weighted(x, weights):
    return (weights * x**2).sum()
"""
NAMES = "arg0", "layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of a user: sides, arguments and parameters in every kind of file."""
    (tmp_path / "sides_of_a_user.py").write_text(SIDES)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "args.npz", rng.normal(size=(6, 3)))
    kernels = {
        "layers.0.kernel": rng.normal(size=(3, 5)),
        "layers.0.bias": rng.normal(size=5),
        "layers.2.kernel": rng.normal(size=(5, 2)),
        "layers.2.bias": rng.normal(size=2),
    }
    state = {
        name.replace("kernel", "weight"): torch.tensor(a.T.copy())
        for name, a in kernels.items()
    }
    tensors = {name: torch.tensor(a) for name, a in kernels.items()}
    np.savez(tmp_path / "params.npz", **kernels)
    torch.save(tensors, tmp_path / "params.pt")
    save_file(tensors, tmp_path / "params.safetensors")
    np.savez(tmp_path / "state.npz", **{n: t.numpy() for n, t in state.items()})
    torch.save(state, tmp_path / "state.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "state.pth")
    save_file(state, tmp_path / "state.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "sides_of_a_user", raising=False)
    return tmp_path


def compare(ours, theirs, *more, args="args.npz"):
    names = f"sides_of_a_user:{ours}", f"sides_of_a_user:{theirs}"
    quick = "--args", args, "--no-jit", "--dtypes", "float64"
    return main(["compare", *names, *quick, *more])


@pytest.mark.parametrize("ending", ["npz", "pt", "safetensors"])
def test_parameters_of_a_file_are_those_of_both_sides(folder, capsys, ending):
    given = "--params", f"params.{ending}"
    assert compare("forward", "net", *given, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert {p["input"] for p in report["pairs"]} == {"", *NAMES}
    assert "the module holds other numbers" in report["remarks"][0]
    assert compare("wrong", "net", *given) == 1
    printed = capsys.readouterr().out
    assert "d output / d layers.2.bias" in printed
    assert "jax's is not the slope of its own values" in printed


@pytest.mark.parametrize("ending", ["npz", "pt", "pth", "safetensors"])
def test_a_state_is_loaded_into_the_module_in_its_own_dtype(folder, capsys, ending):
    given = "--params", "params.npz", "--state", f"state.{ending}"
    assert compare("forward", "net", *given, "--json") == 0
    assert json.loads(capsys.readouterr().out)["remarks"] == []
    assert sys.modules["sides_of_a_user"].net.layers[0].weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["net", "Net", "make"])
def test_a_name_may_be_a_module_a_class_or_a_factory(folder, name):
    assert compare("forward", name, "--params", "params.npz") == 0


def test_a_callable_tree_is_compared_with_a_module_that_a_function_makes(folder):
    assert compare("line", "linear") == 0


def test_functions_may_be_of_other_frameworks(folder):
    assert compare("squares", "as_numpy", "--frameworks", "jax", "numpy") == 0
    assert compare("squares", "by_hand", "--frameworks", "torch", "numpy") == 0
    assert compare("net", "make", "--frameworks", "torch", "torch") == 0


def test_names_are_matched_by_their_beginnings(folder, capsys):
    arrays = read_arrays(folder / "params.npz")
    moved = {name.replace("layers", "blocks"): a for name, a in arrays.items()}
    np.savez(folder / "moved.npz", **moved)
    (folder / "sides_of_a_user.py").write_text(
        SIDES.replace('["layers"]', '["blocks"]')
    )
    given = "--params", "moved.npz", "--match", "blocks=layers"
    assert compare("forward", "net", *given) == 0
    assert compare("forward", "net", "--params", "moved.npz") == 2
    message = capsys.readouterr().err
    assert "params must match the parameters of module by name" in message
    assert message.count("\n") == 1


def test_a_module_is_compared_in_evaluation_mode_on_request(folder, capsys):
    given = "--params", "params.npz"
    assert compare("forward", "Random", *given, "--eval") == 0
    assert compare("forward", "Random", *given) == 2
    assert "must return the same" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_arguments_may_be_in_any_of_these_files(folder, ending):
    tensors = {"arg0": torch.ones(4, 3), "weights": torch.ones(4, 3)}
    save = {"pt": torch.save, "safetensors": save_file}[ending]
    save(tensors, folder / f"args.{ending}")
    assert compare("weighted", "weighted", args=f"args.{ending}") == 0


def test_bfloat16_becomes_float32(folder):
    half = torch.tensor([1.5, 2.5], dtype=torch.bfloat16)
    save_file({"a.b": half}, folder / "half.safetensors")
    (array,) = read_tree(folder / "half.safetensors")["a"].values()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [1.5, 2.5])


def refused(folder, capsys, *given, ours="forward", theirs="net"):
    """The one line of an error."""
    assert compare(ours, theirs, *given) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


class Payload:
    """What must not be run when it is read."""

    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("option", ["--params", "--state"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.npz", r"none\.npz: cannot be read as \.npz: .*No such file"),
        ("none.pt", r"none\.pt: cannot be read as \.pt: .*No such file"),
        ("none.safetensors", r"none\.safetensors: cannot be read as .*[Nn]o such file"),
        ("params.txt", r"params\.txt: its name must end in one of \.npz, \.pt, \.pth"),
        ("bad.npz", r"bad\.npz: cannot be read as \.npz"),
        ("one.npz", r"one\.npz: .*it holds one array, without a name"),
        ("bad.pt", r"bad\.pt: cannot be read as \.pt"),
        ("bad.safetensors", r"bad\.safetensors: cannot be read as \.safetensors"),
        ("run.pt", r"run\.pt: .*weights_only=True: .*save a state_dict"),
        ("model.pt", r"model\.pt: .*weights_only=True: .*save a state_dict"),
        ("list.pt", r"list\.pt: it must hold a state dict, got list"),
        ("other.pt", r"other\.pt: it must hold a state dict, .*'lr' is float"),
        ("empty.npz", r"empty\.npz: it must hold at least one array"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(folder, capsys, option, name, message):
    for ending in ("npz", "pt", "safetensors"):
        (folder / f"bad.{ending}").write_bytes(b"no checkpoint")
    (folder / "params.txt").write_text("1 2")
    with (folder / "one.npz").open("wb") as file:
        np.save(file, np.ones(3))
    (folder / "run.pt").write_bytes(pickle.dumps({"a": Payload()}, protocol=2))
    torch.save(nn.Linear(3, 2), folder / "model.pt")
    torch.save([torch.ones(2)], folder / "list.pt")
    torch.save({"a": torch.ones(2), "lr": 0.1}, folder / "other.pt")
    np.savez(folder / "empty.npz")
    assert re.search(message, refused(folder, capsys, option, name))


def test_names_that_do_not_match_are_refused(folder, capsys):
    torch.save({"layers.0.weight": torch.ones(5, 3)}, folder / "short.pt")
    given = "--params", "params.npz", "--state", "short.pt"
    message = refused(folder, capsys, *given)
    names = r"only the module layers\.0\.bias \(5,\), layers\.2\.bias \(2,\)"
    assert re.search(names, message)
    np.savez(folder / "both.npz", **{"a": np.ones(3), "a.b": np.ones(3)})
    message = refused(folder, capsys, "--params", "both.npz")
    assert "'a.b' is both an array and the head of another" in message
    given = "--params", "params.npz", "--match", "layer=layers"
    assert "match must name paths" in refused(folder, capsys, *given)


def test_options_without_a_module_are_refused(folder, capsys):
    both = {"ours": "squares", "theirs": "squares"}
    message = refused(folder, capsys, "--state", "state.pt", **both)
    assert "--state must go with an nn.Module" in message
    message = refused(folder, capsys, "--eval", **both)
    assert "--eval must go with an nn.Module" in message
    message = refused(folder, capsys, "--params", "params.npz", **both)
    assert "params must go with an nn.Module" in message
    assert "of mine" in refused(folder, capsys, theirs="fails")
    with pytest.raises(SystemExit):
        compare("forward", "net", "--match", "layers")
    assert "must be OLD=NEW, got 'layers'" in capsys.readouterr().err


def test_safetensors_that_is_not_installed_is_named(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    message = refused(folder, capsys, "--params", "params.safetensors")
    assert "needs the package safetensors: pip install safetensors" in message
