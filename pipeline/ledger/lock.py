"""One run at a time on one output."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import psutil

from pipeline.ledger.files import json_bytes
from pipeline.records.vocabulary import UsageError
from pipeline.storage.retry import StorageError
from pipeline.storage.store import Storage

HEARTBEAT_SECONDS = 10.0


LOCK_EXPIRES_SECONDS = 60.0


class LedgerError(UsageError):
    """The output folder cannot be used as asked; the message names it and the cure."""


class RunLock:
    """One run at a time on one output: an object with a heartbeat, taken over when its owner is dead or silent.

    Raises LedgerError on entry if another run holds it. An owner on this host is known to be dead at once by its
    process id and start time; one elsewhere after LOCK_EXPIRES_SECONDS of silence. A run that was silent for so long
    (its store was out of reach) and finds another's lock leaves it there, and `require` then refuses.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._hasty = Storage(storage.url, num_tries=2)  # The next heartbeat is the next try.
        process = psutil.Process()
        self._owner = {
            "token": secrets.token_hex(8),
            "host": socket.gethostname(),
            "pid": process.pid,
            "started": process.create_time(),
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> RunLock:
        if not self._storage.create("lock.json", self._body()):
            held = self._read()
            if held is not None and not _is_gone(held):
                raise LedgerError(
                    f"another run (pid {held['pid']} on {held['host']}) is writing {self._storage.url}; wait until it "
                    f"ends; if it is gone, its lock expires {LOCK_EXPIRES_SECONDS:.0f} s after its last sign of life"
                )
            self._storage.put("lock.json", self._body())
            time.sleep(0.2)  # Two runs that take over the same dead lock: the last write stands, the other sees it.
            standing = self._read()
            if standing is None or standing["token"] != self._owner["token"]:
                raise LedgerError(f"another run has just taken {self._storage.url}; wait until it ends")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(StorageError):  # The lock then expires, and what ended the run is told.
            held = self._read()
            if held is not None and held["token"] == self._owner["token"]:
                self._hasty.delete("lock.json")

    def require(self) -> None:
        """Raise LedgerError if the lock was lost to another run, which took this one for dead."""
        held = self._read()
        if held is None or held["token"] != self._owner["token"]:
            by = f"by pid {held['pid']} on {held['host']}" if held else "by hand"
            raise LedgerError(
                f"the lock of {self._storage.url} was taken {by} while this run could not reach it; what was "
                "committed is kept; wait until the other run ends, then run the same command again"
            )

    def _body(self) -> bytes:
        return json_bytes({**self._owner, "heartbeat": time.time()})

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._hasty.read("lock.json"))
        except FileNotFoundError:
            return None

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                held = self._read()
                if held is not None and held["token"] == self._owner["token"]:
                    self._hasty.put("lock.json", self._body())
            except (OSError, ValueError):
                continue  # A store that is down for a moment; the commits themselves will say so.


def _is_gone(held: Mapping[str, Any]) -> bool:
    if held["host"] != socket.gethostname():
        return time.time() - held["heartbeat"] > LOCK_EXPIRES_SECONDS
    try:
        return abs(psutil.Process(held["pid"]).create_time() - held["started"]) > 1.0
    except psutil.NoSuchProcess:
        return True
