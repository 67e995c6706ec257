"""Takes the entries of a run's units as they are committed, wherever its actors are."""

from __future__ import annotations

from typing import Any

from pipeline.ledger.files import json_bytes
from pipeline.ledger.ledger import ENTRIES_AT_ONCE, Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.outcomes import OWN_FAULT
from pipeline.runtime.job import SystematicFault
from pipeline.storage.redaction import redacted

# How often a unit is begun that actors did not bring to its end.
ROUNDS = 3
# Clips that met a fault of our own code: so many, and more than one in so many of a run, end it.
MIN_FAULTS, MAX_FAULT_SHARE = 10, 10


class Receiver:
    """Takes the entries of a run as they come: some at a time into the snapshot, and compacted into the ledger."""

    def __init__(self, ledger: Ledger, snapshot: Snapshot, *, num_clips: int) -> None:
        self._ledger, self._snapshot = ledger, snapshot
        self._max_faults = max(MIN_FAULTS - 1, num_clips // MAX_FAULT_SHARE)
        self._entries: dict[str, bytes] = {}
        self._num_faults = 0

    def add(self, entry: dict[str, Any]) -> None:
        """Take one committed entry. Raises SystematicFault."""
        self._entries[entry["unit"]] = json_bytes(entry)
        faults = [row for row in entry["outcomes"] if row["reason"] == OWN_FAULT]
        self._num_faults += len(faults)
        if len(self._entries) >= ENTRIES_AT_ONCE:
            self.flush(is_many=True)
        if self._num_faults > self._max_faults:
            self.flush()
            raise SystematicFault(
                f"{self._num_faults} clips met a fault of our own code, the last: {faults[-1]['detail']}; this is no "
                "fault of the clips, which are tried again by the next run; report it with the lines above"
            )

    def flush(self, *, is_many: bool = False) -> None:
        """Put what has come into the snapshot."""
        texts = self._snapshot.add_entries(self._entries)
        if is_many:
            self._ledger.compact(texts)
        self._entries = {}


def first_line(error: BaseException) -> str:
    """What went wrong, in a line for the summary."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redacted(f"{type(error).__name__}: {lines[-1] if lines else ''}")[:500]
