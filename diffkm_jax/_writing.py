"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def write_whole(out: Path, into: Callable[[BinaryIO], None]) -> None:
    """Writes a file whole or not at all, with the access of what it replaces.

    What is in it is written by a function of the open file. It is on the disk before it
    has its name, so that a process may be killed, or the machine stop, at any moment.
    Raises OSError.
    """
    out, came = out.resolve(), []

    def stop(number: int, frame: Any) -> None:
        came.append(number)
        raise KeyboardInterrupt

    try:
        # A signal waits while the folder is made and removed, and ends the writing.
        with on_termination(lambda number, frame: came.append(number)):
            # Beside the output, because a rename is atomic inside a file system only;
            # nobody else can enter it.
            if not out.parent.is_dir():
                raise FileNotFoundError(f"no folder {out.parent} to write {out.name}")
            folder = tempfile.mkdtemp(dir=out.parent, prefix=".diffkm-")
            try:
                with on_termination(stop):
                    part = Path(folder, out.name)
                    with part.open("xb") as file:
                        into(file)
                        file.flush()
                        os.fsync(file.fileno())
                    if out.exists():
                        copy_access(out, part)
                    part.replace(out)
            finally:
                shutil.rmtree(folder)
    finally:
        if came:
            signal.raise_signal(came[0])


@contextmanager
def on_termination(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handles what would end the process at once, in the main thread."""
    old = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
                if number not in old and signal.getsignal(number) != signal.SIG_IGN:
                    old[number] = signal.signal(number, handler)
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def copy_access(old: Path, new: Path) -> None:
    """Gives a file the group and the permissions of another, or fewer."""
    status = old.stat()
    mode = stat.S_IMODE(status.st_mode)
    if new.stat().st_gid != status.st_gid:
        try:
            os.chown(new, -1, status.st_gid)
        except OSError:
            mode &= ~stat.S_IRWXG  # What its group may do, another may not.
    new.chmod(mode)
