"""What the start of a child needs of multiprocessing and of this system."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import IO

# The main module is one for all threads.
_starting = threading.Lock()


def wait_for_end_of_fork_server(*, seconds: float = 10.0) -> None:
    """Wait until its end can be seen: its pipes close a moment earlier, and till then it is asked for a child again."""
    server = getattr(forkserver, "_forkserver")  # noqa: B009 - no public name for it
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        # Not taken note of for good: the next start does, and makes another.
        while server._forkserver_pid is not None and time.monotonic() < deadline:
            if os.waitid(os.P_PID, server._forkserver_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(0.01)


def fork_server_has_ended() -> bool:
    """Whether the server that forked the children is gone: then nobody can say any more how they ended."""
    server = getattr(forkserver, "_forkserver")  # noqa: B009 - no public name for it
    if server._forkserver_pid is None:
        return True
    try:
        return os.waitid(os.P_PID, server._forkserver_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def find_this_package() -> None:
    """Let processes that this one starts import this checkout or installation first, whatever folder the user is in."""
    repository, before = str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")
    if before.split(os.pathsep)[0] != repository:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [repository, before]))


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Keep multiprocessing from running the parent's main script in the child: in a Ray worker that imports ray."""
    with _starting:
        main = sys.modules["__main__"]
        kept = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
        main.__spec__ = None
        if "__file__" in kept:
            del main.__file__
        try:
            yield
        finally:
            for name, value in kept.items():
                setattr(main, name, value)


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Keep a Ctrl-C, which a terminal sends to all processes, from a fork server that starts: it would end by a
    traceback. This process's own waits for the end of the block."""
    resource_tracker.ensure_running()  # Started with the fork server, it would let them in again.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def nameless_file() -> IO[bytes]:
    """A file for appending that no folder holds, so that nobody who is killed can leave it behind."""
    if hasattr(os, "memfd_create"):
        file = os.fdopen(os.memfd_create("sandbox"), "rb+", buffering=0)
    else:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by _stop
    fcntl.fcntl(file, fcntl.F_SETFL, os.O_RDWR | os.O_APPEND)
    return file
