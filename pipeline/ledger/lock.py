"""One run at a time on one output: an object that its owner rewrites with a rising count of heartbeats.

Whether the owner lives is decided by what the observer sees on its own clock: a heartbeat that moves, or does not for
`LOCK_EXPIRES_SECONDS`. Clocks of other machines are not read. A process id says more at once, but only to a process
that counts ids from the same namespace of the same boot of the same machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from pipeline.ledger.files import json_bytes
from pipeline.records.documents import parse_json
from pipeline.records.vocabulary import UsageError
from pipeline.storage.retry import StorageError
from pipeline.storage.store import Storage

HEARTBEAT_SECONDS = 3.0
LOCK_EXPIRES_SECONDS = 60.0
LOOK_SECONDS = 0.5


class LedgerError(UsageError):
    """The output folder cannot be used as asked; the message names it and the cure."""


class RunLock:
    """A context manager that holds the lock of one output.

    Args:
        say_waiting: called once, with the seconds at most, where it is not known at once whether an owner lives.

    Raises:
        LedgerError: on entry, if another run holds it. A run that was silent for so long that another took its lock
            leaves it there, and `require` then refuses.
    """

    def __init__(self, storage: Storage, *, say_waiting: Callable[[float], None] = lambda _: None) -> None:
        self._storage = storage
        self._hasty = Storage(storage.url, num_tries=2)  # The next heartbeat is the next try.
        self._say_waiting = say_waiting
        self._owner = {"token": secrets.token_hex(8), **identity()}
        self._num_beats = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> RunLock:
        if not self._storage.create("lock.json", self._body()):
            held = self._read()
            if held is not None and not self._is_gone(held):
                raise LedgerError(
                    f"another run (pid {held.get('pid')} on {held.get('host')}) is writing {self._storage.url}; "
                    f"wait until it ends; if it is gone, its lock expires {LOCK_EXPIRES_SECONDS:.0f} s after its last "
                    "sign of life"
                )
            began = time.monotonic()
            self._storage.put("lock.json", self._body())
            # Two runs that take over the same dead lock: the last write stands, and the other sees it.
            time.sleep(0.2 + 2 * (time.monotonic() - began))
            standing = self._read()
            if standing is None or standing.get("token") != self._owner["token"]:
                raise LedgerError(f"another run has just taken {self._storage.url}; wait until it ends")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(StorageError):  # The lock then expires, and what ended the run is told.
            held = self._read()
            if held is not None and held.get("token") == self._owner["token"]:
                self._hasty.delete("lock.json")

    def require(self) -> None:
        """Raise LedgerError if the lock was lost to another run, which took this one for dead."""
        held = self._read()
        if held is None or held.get("token") != self._owner["token"]:
            by = f"by pid {held.get('pid')} on {held.get('host')}" if held else "by hand"
            raise LedgerError(
                f"the lock of {self._storage.url} was taken {by} while this run could not reach it; what was "
                "committed is kept; wait until the other run ends, then run the same command again"
            )

    def _is_gone(self, held: Mapping[str, Any]) -> bool:
        """Whether the owner is dead: by its process where that can be told, else by watching its heartbeat."""
        here = identity()
        # Older versions wrote the time of day at which they began: that is another one once the clock was set.
        is_tick = isinstance(held.get("started"), str)
        if is_tick and all(held.get(name) == here[name] for name in ("host", "boot", "pid_namespace")):
            return held["started"] != started(held.get("pid"))
        self._say_waiting(LOCK_EXPIRES_SECONDS)
        deadline = time.monotonic() + LOCK_EXPIRES_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(LOOK_SECONDS, LOCK_EXPIRES_SECONDS / 4))
            now = self._read()
            if now is None:
                return True
            if now != held:
                return False
        return True

    def _body(self) -> bytes:
        return json_bytes({**self._owner, "heartbeat": self._num_beats})

    def _read(self) -> dict[str, Any] | None:
        """What the lock says; {} where it is damaged, and None where there is none."""
        try:
            return dict(parse_json(self._hasty.read("lock.json"), "lock.json"))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            return {}

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                held = self._read()
                if held is not None and held.get("token") == self._owner["token"]:
                    self._num_beats += 1
                    self._hasty.put("lock.json", self._body())
            except (OSError, ValueError):
                continue  # A store that is down for a moment; the commits themselves will say so.


def identity() -> dict[str, Any]:
    """This process: machine, boot, namespace of process ids, id and start time; None for what is not known here."""
    return {
        "host": socket.gethostname(),
        "boot": _line("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else "one",
        "pid": os.getpid(),
        "started": started(os.getpid()),
    }


def started(pid: Any) -> str | None:
    """What tells a process from an earlier or later one of the same id; None where none runs under it.

    On Linux it is counted from the boot: the time of day at which a process began is another one after the clock was
    set. A process that ended and that nobody waits for counts as gone.
    """
    if os.path.exists("/proc/self/stat"):
        found = _line(f"/proc/{pid}/stat")
        state, *numbers = found.rpartition(")")[2].split() if found else ("X",)
        return None if state in "XxZ" else f"tick {numbers[18]}"
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.1f}"
    except (psutil.NoSuchProcess, TypeError, ValueError):
        return None


def _line(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
