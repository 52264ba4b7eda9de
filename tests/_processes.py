"""Programs of several processes, which no test leaves behind."""

import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextmanager
def running(program, *commands):
    """Processes of a program in tests/, one for each list of arguments."""
    started = []
    try:
        for command in commands:
            line = [sys.executable, str(ROOT / "tests" / program), *map(str, command)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            started.append(subprocess.Popen(line, cwd=ROOT, text=True, **pipes))
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def check_ends(processes, seconds):
    """Waits so long for each, and fails with what they print unless all end well."""
    printed = [process.communicate(timeout=seconds)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert not any(codes), "\n".join(printed)


def free_port():
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]
