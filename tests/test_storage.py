"""What is saved is read again bit for bit, and who is killed loses nothing."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import killed
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import diffkm_jax as dk

X = np.random.default_rng(0).normal(size=(40, 3))
C = X[:4]
OPTIMIZERS = {
    "newton": dk.newton(),
    "macqueen": dk.macqueen(),
    "averages": dk.ema(0.9),
    "a schedule": dk.ema(lambda step: 0.9 - 0.0 * step.astype(float)),
    "momentum": optax.sgd(1e-3, momentum=0.9),
    "adam": optax.scale_by_adam(),
    "chain": optax.chain(dk.newton(), optax.trace(0.5)),
    "inject": optax.inject_hyperparams(optax.sgd)(learning_rate=1e-3),
}


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)

    def same(a, b):
        assert jnp.result_type(a) == jnp.result_type(b)
        assert isinstance(a, jax.Array) == isinstance(b, jax.Array)
        np.testing.assert_array_equal(a, b)

    jax.tree.map(same, found, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_of_every_optimizer_come_back(name, tmp_path):
    optimizer, path = OPTIMIZERS[name], tmp_path / "state"
    state = dk.init(C, optimizer=optimizer)
    if name not in ("adam", "inject"):  # They add integers to floats.
        state, _ = dk.update(X, state, optimizer=optimizer)
    dk.save(path, state)
    assert_same(dk.load(path), state)
    assert_same(dk.load(path, like=dk.init(C, optimizer=optimizer)), state)


def test_results_come_back(tmp_path):
    x = jnp.asarray(X, jnp.bfloat16)
    results = [
        dk.fit(X, C),
        dk.fit(x, x[:4], temperature=0.5, max_steps=2),
        dk.fit_stream([X], C, passes=2),
        dk.fit_stream([X], C),
    ]
    for result in results:
        dk.save(str(tmp_path / "result.npz"), result)
        found = dk.load(str(tmp_path / "result.npz"))
        assert type(found) is type(result)
        assert type(found.status) is type(result.status)
        assert_same(found, result)


def test_sharded_results_come_back_on_one_device(tmp_path):
    where = NamedSharding(jax.make_mesh((4,), ("data",)), P("data"))
    result = dk.fit(jax.device_put(X, where), C)
    dk.save(tmp_path / "a", result)
    assert_same(dk.load(tmp_path / "a"), result)


class Mine(optax.EmptyState):
    """The state of an optimizer of one's own."""


def test_a_class_of_ones_own_is_read_by_a_value_like_it(tmp_path):
    state = dk.init(C)._replace(opt_state=(Mine(), jnp.arange(3.0)))
    dk.save(tmp_path / "a", state)
    with pytest.raises(ValueError, match=r"^like must be given for .*a, which hold"):
        dk.load(tmp_path / "a")
    assert_same(dk.load(tmp_path / "a", like=state), state)
    with pytest.raises(ValueError, match=r"^like must be as what was saved, whose arr"):
        dk.load(tmp_path / "a", like=dk.init(C))


def test_keys_come_back(tmp_path):
    state = dk.init(C)._replace(opt_state=(jax.random.key(3), jax.random.PRNGKey(3)))
    dk.save(tmp_path / "a", state)
    typed, raw = dk.load(tmp_path / "a").opt_state
    assert typed.dtype == jax.random.key(3).dtype
    np.testing.assert_array_equal(jax.random.key_data(typed), raw)


def test_nothing_is_lost_where_a_file_cannot_be_written(tmp_path, monkeypatch):
    path, state = tmp_path / "a.npz", dk.init(C)
    dk.save(path, state)
    path.chmod(0o640)
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", fail)
        with pytest.raises(OSError, match="disk full"):
            dk.save(path, dk.init(C + 1))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    assert path.read_bytes() == before
    dk.save(path, dk.init(C + 1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def broken(tmp_path, what):
    path = tmp_path / "a.npz"
    dk.save(path, dk.init(C))
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif what == "other":
        np.savez(path, points=X)
    elif what == "an array":
        with path.open("wb") as file:
            np.save(file, X)
    elif what == "a part":
        with np.load(path) as file:
            arrays = dict(file)
        arrays.pop("value.centroids")
        np.savez(path, **arrays)
    elif what == "text":
        path.write_text("points")
    else:
        with np.load(path) as file:
            arrays = dict(file)
        header = json.loads(str(arrays["diffkm"]))
        arrays["diffkm"] = np.array(json.dumps(header | {"format": 2}))
        np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cut", "^path must be a whole file of save, got .*a.npz$"),
        ("other", "^path must be a whole file of save, got .*a.npz$"),
        ("an array", "^path must be a whole file of save, got .*a.npz$"),
        ("a part", "^path must be a whole file of save, got .*a.npz$"),
        ("text", "^path must be a whole file of save, got .*a.npz$"),
        ("later", "^path must be of format 1 or before, got 2 in .*: install the diff"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(what, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        dk.load(broken(tmp_path, what))


def test_what_else_cannot_be_saved_or_loaded(tmp_path):
    with pytest.raises(FileNotFoundError):
        dk.load(tmp_path / "none.npz")
    with pytest.raises(TypeError, match=r"^value must be a State, a FitResult"):
        dk.save(tmp_path / "a", {"centroids": C})
    with pytest.raises(TypeError, match=r"^value\.opt_state must be an array, got 'a'"):
        dk.save(tmp_path / "a", dk.init(C)._replace(opt_state="a"))
    assert list(tmp_path.iterdir()) == []
    dk.save(tmp_path / "a", dk.init(C))
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match=r"^path must be read in JAX's x64 mode"),
    ):
        dk.load(tmp_path / "a")


def kill_until_it_ends(folder, name, kills, seed):
    """Starts a fit again and again, and kills it at random moments; how often."""
    rng, done = np.random.default_rng(seed), 0
    command = [sys.executable, str(Path(killed.__file__)), str(folder), name]
    env = os.environ | {"PYTHONPATH": str(Path(dk.__file__).parents[1])}
    while not (folder / "end.npz").exists():
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        try:
            process.stdout.readline()
            if done < kills:
                time.sleep(rng.uniform(0.1, 1.0))
                process.send_signal(signal.SIGKILL)
            assert process.wait(60) in (0, -signal.SIGKILL)
            done += process.returncode != 0
        finally:
            process.kill()
            process.stdout.close()
    return done


def check_kills(name, kills, tmp_path):
    done = kill_until_it_ends(tmp_path, name, kills, kills)
    (tmp_path / "whole").mkdir()
    with jax.enable_x64(False):
        expected = killed.FITS[name](tmp_path / "whole" / "state.npz")
        assert_same(dk.load(tmp_path / "end.npz"), expected)
    assert int(expected.step) == killed.STEPS
    return done


def test_a_stream_that_is_killed_goes_on_bit_for_bit(tmp_path):
    assert check_kills("stream", 2, tmp_path) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", killed.FITS)
def test_fits_that_are_killed_many_times_go_on_bit_for_bit(name, tmp_path):
    assert check_kills(name, 12, tmp_path) > 3


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"^no folder .*there to write fit.npz$"
    ):
        dk.save(tmp_path / "there" / "fit.npz", dk.init(C))
    assert list(tmp_path.iterdir()) == []
