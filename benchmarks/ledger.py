"""What the ledger costs at a size: made-up clips in, seconds and peak memory of planning, audit and finishing out."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from rich.console import Console

from benchmarks.machine import machine
from benchmarks.tables import table
from pipeline.ledger.audit import audit
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.planning import plan
from pipeline.ledger.snapshot import Snapshot
from pipeline.ledger.units import PendingUnits
from pipeline.records.clips import CLIP_SCHEMA
from pipeline.records.outcomes import COUNTED, Outcome, State
from pipeline.report import MAX_LISTED
from pipeline.runtime.console import log_status
from pipeline.runtime.describe import describe_audit
from pipeline.storage.store import Storage

T = TypeVar("T")
CLIPS_AT_ONCE = 100_000


@dataclass(frozen=True, kw_only=True)
class LedgerConfig:
    """Plans, audits and finishes a ledger of made-up clips; no clip is read, every entry and shard is empty."""

    study: str
    """ledger."""
    output: str = "build/ledger"
    """Local folder of ledger.json; the ledger itself is made in it and deleted afterwards."""
    clips: int = 1_000_000
    """Clips (count)."""
    clips_per_shard: int = 32
    """Clips in one unit (count)."""

    def __post_init__(self) -> None:
        if self.clips < 1 or self.clips_per_shard < 1:
            raise ValueError("--clips and --clips-per-shard: give 1 or more")


def ledger(config: LedgerConfig) -> dict[str, Any]:
    """Measure each step once, in order, in this process; writes ledger.json and returns what it holds."""
    storage = Storage(config.output)
    folder = Path(storage.path("made"))
    shutil.rmtree(folder, ignore_errors=True)
    steps: list[dict[str, Any]] = []

    def timed(name: str, work: Callable[[], T]) -> T:
        log_status(name)
        wall, cpu = time.monotonic(), time.process_time()
        found = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        steps.append(
            {
                "step": name,
                "seconds": time.monotonic() - wall,
                "cpu_seconds": time.process_time() - cpu,
                "peak_memory_mib": peak,
            }
        )
        return found

    found = Ledger(str(folder))
    job: dict[str, Any] = {"kind": "examples", "config": {}, "versions": {}, "clips_per_shard": config.clips_per_shard}
    snapshot = timed("open an empty ledger", found.snapshot)
    snapshot.mark_old_entries()
    timed("take the listing", lambda: snapshot.give(made_batches(config.clips)))
    timed("plan", lambda: (snapshot.recognise(), plan(found, snapshot, **job)))
    pending = timed("pending units", snapshot.pending)
    num_units = len(pending)
    timed("made-up entries", lambda: _commit_all(pending, folder))
    timed("read, entry by entry", lambda: found.refresh(snapshot, compacts=True))
    found_audit = timed("audit", lambda: (found.store_listing(snapshot), audit(snapshot))[1])
    timed("finish", lambda: found.finish(snapshot, found_audit, input_description="made-up"))
    timed("what summary and page tell", lambda: _tell(snapshot))
    snapshot.database.close()
    again = timed("read again, entries in few objects", found.snapshot)
    timed("take the listing again", lambda: again.give(made_batches(config.clips)))
    timed("plan again, nothing new", lambda: (again.recognise(), plan(found, again, **job)))
    timed("plan a night", lambda: again.choose_night(paths_matter=False, since=None, limit=None))
    again.database.close()
    results = {
        "machine": machine(),
        "clips": config.clips,
        "units": num_units,
        "audit": describe_audit(found_audit),
        "audit_holds": found_audit.holds,
        "steps": steps,
    }
    storage.put("ledger.json", (json.dumps(results, indent=1) + "\n").encode())
    shutil.rmtree(folder)
    return results


def made_batches(count: int) -> Iterator[pa.RecordBatch]:
    """The clips of `made_clips`, some at a time."""
    for start in range(0, count, CLIPS_AT_ONCE):
        yield from made_clips(min(CLIPS_AT_ONCE, count - start), first=start).to_batches()


def made_clips(count: int, *, first: int = 0) -> pa.Table:
    """Clips of one split with the ids, names and addresses of a bucket."""
    parts = []
    for start in range(first, first + count, CLIPS_AT_ONCE):
        numbers = range(start, min(start + CLIPS_AT_ONCE, first + count))
        digits = np.random.default_rng(start).bytes(26 * len(numbers)).hex()
        ids = [digits[52 * row : 52 * row + 52] for row in range(len(numbers))]
        columns = {
            "clip_id": [each[:20] for each in ids],
            "path": [f"train/Anger/{number:09d}.avi" for number in numbers],
            "url": [f"s3://corpus/train/Anger/{number:09d}.avi" for number in numbers],
            "size_bytes": list(numbers),
            "content_id": [each[20:] for each in ids],
            "label": ["Anger"] * len(numbers),
            "split": ["train"] * len(numbers),
        }
        empty = [None] * len(numbers)
        parts.append(pa.table({name: columns.get(name, empty) for name in CLIP_SCHEMA.names}, schema=CLIP_SCHEMA))
    return pa.concat_tables(parts)


def _commit_all(pending: PendingUnits, folder: Path) -> None:
    """An entry and an empty shard for every unit, without the fsync of a commit: not what is measured."""
    done = asdict(Outcome(clip_id="", path="", state=State.DONE, num_frames=8, seconds=0.6))
    (folder / "ledger").mkdir()
    (folder / "examples" / "train").mkdir(parents=True)
    for unit in pending:
        path = f"examples/train/{unit.unit_id}-made.parquet"
        shard = {"path": path, "table": "examples", "split": "train", "unit": unit.unit_id, "rows": 0, "bytes": 0}
        outcomes = [{**done, "clip_id": clip.clip_id, "path": clip.path} for clip in unit.clips]
        entry = {"unit": unit.unit_id, "attempt": "made", "facts": {}, "shards": [{**shard, "sha256": "0" * 64}]}
        (folder / "ledger" / f"{unit.unit_id}.json").write_text(json.dumps({**entry, "outcomes": outcomes}))
        (folder / path).touch()


def _tell(snapshot: Snapshot) -> None:
    snapshot.reasons()
    snapshot.totals(list(COUNTED.values()))
    list(snapshot.database.rows("ended_now"))
    snapshot.to_list(MAX_LISTED)


def print_ledger(results: Mapping[str, Any]) -> None:
    """Print a row a step."""
    rows = [
        [step["step"], f"{step['seconds']:.1f}", f"{step['cpu_seconds']:.1f}", f"{step['peak_memory_mib']:,}"]
        for step in results["steps"]
    ]
    title = f"Ledger of {results['clips']:,} clips in {results['units']:,} units"
    Console(width=None if sys.stdout.isatty() else 120).print(
        table(title, ("step", "s", "CPU s", "peak memory so far, MiB"), rows)
    )
