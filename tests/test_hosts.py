"""Two processes cluster as one does, and do not wait for what cannot come."""

import re
import socket
import time

import hosts
import numpy as np
import pytest
from _processes import check_ends, free_port, running

# In seconds. On two idle cores all of it takes 11 when nothing is compiled.
LIMIT = 120


def commands(task, port, folder):
    return [(task, port, process, folder) for process in range(hosts.PROCESSES)]


def test_two_processes_compute_what_one_does(tmp_path):
    with running("hosts.py", *commands("results", free_port(), tmp_path)) as processes:
        expected = hosts.results()
        check_ends(processes, LIMIT)
    found = [dict(np.load(tmp_path / f"{i}.npz")) for i in range(hosts.PROCESSES)]
    assert set.union(*map(set, found)) == set(expected)
    assert "explicit fit.labels|32" in set(found[1]) - set(found[0])
    for name, array in [item for held in found for item in held.items()]:
        assert array.dtype == expected[name].dtype
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, expected[name], 1e-12, 1e-12, name)
        else:
            np.testing.assert_array_equal(array, expected[name], name)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_process_ends_when_another_has_died(dead, tmp_path):
    """At once after the first, and else after a missing sign of life.

    By default, HEARTBEAT is 100 seconds in JAX.
    """
    with running("hosts.py", *commands("endless", free_port(), tmp_path)) as processes:
        begin = time.monotonic()
        while len(list(tmp_path.iterdir())) < hosts.PROCESSES:
            assert [process.poll() for process in processes] == [None, None]
            assert time.monotonic() < begin + LIMIT
            time.sleep(0.05)
        processes[dead].kill()
        output, _ = processes[1 - dead].communicate(timeout=4 * hosts.HEARTBEAT)
        assert processes[1 - dead].returncode != 0
        assert re.search(r"another task died|Gloo .* failed", output)


def test_a_port_in_use_ends_a_process_and_is_named(tmp_path):
    """Whether JAX then raises an error or ends the process by itself, is chance."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with running("hosts.py", ("results", port, 0, tmp_path)) as (process,):
            output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "Failed to add port to server" in output
    assert f":{port}'" in output
