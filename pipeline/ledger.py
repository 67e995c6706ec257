"""The ledger: what was planned, what is committed, what is left, and whether the sum holds.

In go clips, a config and, unit by unit, tables and outcomes; out come shards that readers may trust, a manifest and a
summary. One unit is a fixed group of clips of one split; one unit gives one shard a table and one ledger entry. A
worker writes its shard under a name of its own attempt and then creates the unit's entry; the first entry wins, and a
shard that no entry names is invisible.

    OUTPUT/plan/run.json            kind, config, versions: written first, compared on every resume
    OUTPUT/plan/g000.arrow          the clips of generation 0 with their units; later generations add, never change
    OUTPUT/ledger/g000-u000000.json the entry of a committed unit: attempt, shards with sha256, an outcome for each clip
    OUTPUT/examples/<split>/...     the shards (frames/, tracks/ and clips/ with day=.../ for scoring)
    OUTPUT/outcomes.jsonl, summary.json, manifest.json, _SUCCESS: written last
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.archives import reading_order
from pipeline.records import CLIP_SCHEMA, SCHEMA_VERSION, Clip, Outcome, State, UsageError, clip_of, outcome_of
from pipeline.storage import Storage

PLAN_SCHEMA = CLIP_SCHEMA.append(pa.field("unit", pa.string(), nullable=False))
ROWS_PER_GROUP = 256
UNSPLIT = "unsplit"
COPIES = "copies"
HEARTBEAT_SECONDS = 10.0
LOCK_EXPIRES_SECONDS = 60.0
NOT_FINISHED = "not_finished"


class LedgerError(UsageError):
    """The output folder cannot be used as asked; the message names it and the cure."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The clips of one shard: all of one split, or all of them copies of others, in a fixed order."""

    unit_id: str
    clips: tuple[Clip, ...]

    @property
    def split(self) -> str | None:
        return self.clips[0].split

    @property
    def is_of_copies(self) -> bool:
        """Whether its clips have the bytes of others, whose results count for them: nothing is to be computed."""
        return self.clips[0].same_as is not None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Whether the ledger holds: `problems` says in words what does not."""

    num_inputs: int
    num_by_state: Mapping[str, int]
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        states = " + ".join(f"{count} {state}" for state, count in self.num_by_state.items())
        if self.holds:
            return f"audit: {self.num_inputs} inputs = {states}; nothing is missing"
        return f"audit FAILED: {self.num_inputs} inputs, {states}: " + "; ".join(self.problems)


class Ledger:
    """The ledger in one output folder. Reads are of what is stored, never of what this process remembers."""

    def __init__(self, url: str) -> None:
        self.storage = Storage(url)

    # Plan

    @property
    def is_planned(self) -> bool:
        return self.storage.exists("plan/run.json")

    def run_info(self) -> dict[str, Any]:
        """kind, config, versions and input of the saved plan. Raises LedgerError if there is none."""
        try:
            return json.loads(self.storage.read("plan/run.json"))
        except FileNotFoundError:
            raise LedgerError(
                f"{self.storage.url} holds no plan (plan/run.json); give the --output folder of a run, for labels the "
                "folder model=... in it"
            ) from None

    def check(self, *, kind: str, config: Mapping[str, Any]) -> None:
        """Raise LedgerError if a run of another kind or config is here."""
        if self.is_planned:
            self._refuse_other(self.run_info(), {"kind": kind, "config": dict(config)})

    def accepts(self, *, kind: str, config: Mapping[str, Any]) -> bool:
        """Whether a run of this kind and config may begin or go on here."""
        try:
            self.check(kind=kind, config=config)
        except LedgerError:
            return False
        return True

    def plan(
        self,
        clips: Sequence[Clip],
        *,
        kind: str,
        config: Mapping[str, Any],
        versions: Mapping[str, str],
        clips_per_shard: int,
    ) -> list[str]:
        """Save the plan, or add to the saved one what is new. Returns what a person should be told, a line each.

        Raises LedgerError if the saved plan was made for another kind of job or under another config.
        """
        info = {"schema_version": SCHEMA_VERSION, "kind": kind, "config": dict(config), "versions": dict(versions)}
        told = []
        if not self.storage.create("plan/run.json", _json(info)):
            saved = self.run_info()
            self._refuse_other(saved, info)
            changed = _differences(saved["versions"], info["versions"])
            if changed:
                told.append(f"versions differ from those the run began with: {changed}")
        planned = self.planned_clips()
        new = [clip for clip in clips if clip.clip_id not in planned]
        if planned:
            given = {clip.clip_id: clip for clip in clips}
            gone = [clip.path for clip_id, clip in planned.items() if clip_id not in given]
            relabelled = [
                clip.path
                for clip_id, clip in planned.items()
                if clip_id in given and (clip.label, clip.split) != (given[clip_id].label, given[clip_id].split)
            ]
            if new:
                told.append(f"{len(new)} new inputs added to the plan of {len(planned)}")
            if gone:
                told.append(f"{len(gone)} inputs of the plan are no longer in the input (kept): {_some(gone)}")
            if relabelled:
                told.append(
                    f"{len(relabelled)} inputs changed label or split (the plan's are kept): {_some(relabelled)}"
                )
        again = [outcome.clip_id for outcome in self.outcomes() if outcome.state is State.RETRYABLE]
        unfinished = {clip.clip_id for unit in self.pending_units() for clip in unit.clips}
        retried = [planned[clip_id] for clip_id in again if clip_id not in unfinished]
        if retried:
            told.append(f"{len(retried)} retryable inputs are tried again")
        self.add_generation([*new, *retried], clips_per_shard=clips_per_shard)
        return told

    def add_generation(self, clips: Sequence[Clip], *, clips_per_shard: int) -> list[Unit]:
        """Append units for `clips` to the plan. A clip's latest unit decides its state."""
        if not clips:
            return []
        generation = len(self._generations())
        groups: dict[str, list[Clip]] = {}
        # By id, which mixes the classes; but what lies in one compressed stream is read in its order.
        for clip in sorted(clips, key=lambda clip: (reading_order(clip.url), clip.clip_id)):
            groups.setdefault(COPIES if clip.same_as else clip.split or UNSPLIT, []).append(clip)
        units = []
        for split in sorted(groups):
            members = groups[split]
            for start in range(0, len(members), clips_per_shard):
                unit_id = f"g{generation:03d}-u{len(units):06d}"
                units.append(Unit(unit_id=unit_id, clips=tuple(members[start : start + clips_per_shard])))
        rows = [{**asdict(clip), "unit": unit.unit_id} for unit in units for clip in unit.clips]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, PLAN_SCHEMA) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema=PLAN_SCHEMA))
        if not self.storage.create(f"plan/g{generation:03d}.arrow", sink.getvalue().to_pybytes()):
            raise LedgerError(f"{self.storage.url}: another run has just extended the plan; start again")
        return units

    def units(self) -> list[Unit]:
        """Every planned unit, generation by generation."""
        groups: dict[str, list[Clip]] = {}
        for data in self.storage.read_many(self._generations()).values():
            table = pa.ipc.open_file(data).read_all()
            for row in table.to_pylist():
                groups.setdefault(row.pop("unit"), []).append(clip_of(row))
        return [Unit(unit_id=unit_id, clips=tuple(clips)) for unit_id, clips in groups.items()]

    def planned_clips(self) -> dict[str, Clip]:
        """Every planned clip by its id."""
        return {clip.clip_id: clip for unit in self.units() for clip in unit.clips}

    def pending_units(self, current: Iterable[Clip] = ()) -> list[Unit]:
        """Planned units without an entry. `current` clips tell where the bytes of the same ids lie today."""
        committed = {name.removeprefix("ledger/").removesuffix(".json") for name in self.storage.sizes("ledger")}
        urls = {clip.clip_id: clip.url for clip in current}
        return [
            replace(unit, clips=tuple(replace(clip, url=urls.get(clip.clip_id, clip.url)) for clip in unit.clips))
            for unit in self.units()
            if unit.unit_id not in committed
        ]

    # Commit

    def commit(
        self,
        unit: Unit,
        *,
        tables: Mapping[str, pa.Table],
        outcomes: Sequence[Outcome],
        facts: Mapping[str, Any],
        partition: str | None = None,
    ) -> dict[str, Any]:
        """Write the unit's shards and then its entry; returns the entry that stands (another attempt's, if first).

        partition: folder of the shards in that of their table, in place of the unit's split.
        """
        if [outcome.clip_id for outcome in outcomes] != [clip.clip_id for clip in unit.clips]:
            raise AssertionError(f"unit {unit.unit_id}: the outcomes are not those of its clips, one each")
        attempt = secrets.token_hex(6)
        shards = []
        for name, table in tables.items():
            data = _parquet(table)
            path = f"{name}/{partition or unit.split or UNSPLIT}/{unit.unit_id}-{attempt}.parquet"
            shards.append(
                {
                    "path": path,
                    "table": name,
                    "split": unit.split,
                    "unit": unit.unit_id,
                    "rows": table.num_rows,
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            )
            self.storage.put(path, data)
        entry = {
            "unit": unit.unit_id,
            "attempt": attempt,
            "facts": dict(facts),
            "shards": shards,
            "outcomes": [asdict(outcome) for outcome in outcomes],
        }
        if self.storage.create(f"ledger/{unit.unit_id}.json", _json(entry)):
            return entry
        for shard in shards:
            self.storage.delete(shard["path"])
        return self.entries([unit.unit_id])[0]

    def entries(self, unit_ids: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """The entries of committed units, sorted by unit."""
        names = (
            list(self.storage.sizes("ledger"))
            if unit_ids is None
            else [f"ledger/{unit_id}.json" for unit_id in unit_ids]
        )
        found = self.storage.read_many(names)
        return [json.loads(found[name]) for name in sorted(names)]

    # Read

    def outcomes(self) -> list[Outcome]:
        """One outcome for every planned clip, sorted by path: that of its latest unit, or retryable if that is not
        committed."""
        return _outcomes(self.units(), self.entries())

    def settled(self) -> list[Outcome] | None:
        """The outcomes of a run with nothing left to do, without reading its entries; None if there may be some.

        They are those of outcomes.jsonl, where _SUCCESS stands and every shard of the manifest is there with its bytes.
        """
        if not self.storage.exists("_SUCCESS"):
            return None
        found = self.storage.read_many(["manifest.json", "outcomes.jsonl"])
        shards = json.loads(found["manifest.json"])["shards"]
        tables = {shard["table"] for shard in shards}
        stored = {name: size for table in tables for name, size in self.storage.sizes(table).items()}
        if any(stored.get(shard["path"]) != shard["bytes"] for shard in shards):
            return None
        return [outcome_of(json.loads(line)) for line in found["outcomes.jsonl"].splitlines()]

    def shards(self, table: str | None = None) -> list[dict[str, Any]]:
        """Every committed shard, sorted by unit; of one table only if named."""
        found = [shard for entry in self.entries() for shard in entry["shards"]]
        return [shard for shard in found if table in (None, shard["table"])]

    def audit(self) -> Audit:
        """Check that every planned clip has one state, and that every committed shard is there with its rows."""
        entries, units = self.entries(), self.units()
        planned = {unit.unit_id: [clip.clip_id for clip in unit.clips] for unit in units}
        problems, written = [], Counter[str]()
        stored = {name: size for table in _tables(entries) for name, size in self.storage.sizes(table).items()}
        for entry in entries:
            clip_ids = [row["clip_id"] for row in entry["outcomes"]]
            if sorted(clip_ids) != sorted(planned.get(entry["unit"], [])):
                problems.append(f"unit {entry['unit']} does not account for exactly the clips planned for it")
            written.update(row["clip_id"] for row in entry["outcomes"] if row["state"] == State.DONE)
            for shard in entry["shards"]:
                if stored.get(shard["path"]) != shard["bytes"]:
                    problems.append(
                        f"shard {shard['path']} has {stored.get(shard['path'], 'no')} bytes, not {shard['bytes']} "
                        f"(put it back, or delete ledger/{entry['unit']}.json and run again)"
                    )
            num_rows = sum(row["num_examples"] for row in entry["outcomes"])
            if entry["shards"] and entry["shards"][0]["rows"] != num_rows:
                problems.append(f"unit {entry['unit']} wrote {entry['shards'][0]['rows']} rows for {num_rows} examples")
        twice = [clip_id for clip_id, count in written.items() if count > 1]
        if twice:
            problems.append(f"{len(twice)} clips are done in more than one unit: {_some(twice)}")
        outcomes = _outcomes(units, entries)
        inputs = {clip_id for clip_ids in planned.values() for clip_id in clip_ids}
        missing = inputs - {outcome.clip_id for outcome in outcomes}
        if missing:
            problems.append(f"{len(missing)} inputs have no state: {_some(sorted(missing))}")
        count = Counter(outcome.state for outcome in outcomes)
        return Audit(
            num_inputs=len(inputs),
            num_by_state={str(state): count[state] for state in State},
            problems=tuple(problems),
        )

    # Finish

    def sweep(self) -> list[str]:
        """Delete shards of committed units that their entries don't name, left by attempts that were killed.

        Only the holder of the lock may. What belongs to a unit without an entry stays: an actor that outlived its
        driver, or was cut off from it, may be about to commit it.
        """
        entries = self.entries()
        tables = _tables(entries) | {"examples", "frames", "tracks", "clips"}
        named = {shard["path"] for entry in entries for shard in entry["shards"]}
        committed = {entry["unit"] for entry in entries}
        orphans = [
            name
            for table in sorted(tables)
            for name in self.storage.sizes(table)
            if name not in named and PurePosixPath(name).stem.rpartition("-")[0] in committed
        ]
        for name in orphans:
            self.storage.delete(name)
        return orphans

    def finish(self, audit: Audit, *, input_description: str) -> dict[str, Any]:
        """Write outcomes.jsonl, manifest.json and, if the audit holds and nothing is pending, _SUCCESS.

        Returns the manifest.

        The manifest names neither a time nor a run, so that a rerun with nothing to do leaves it byte for byte.
        """
        info = self.run_info()
        outcomes = self.outcomes()
        lines = [json.dumps(asdict(outcome), ensure_ascii=False) for outcome in outcomes]
        self.storage.put("outcomes.jsonl", "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
        shards = self.shards()
        num_rows = sum(shard["rows"] for shard in shards)
        manifest = {
            **info,
            "input": input_description,
            "counts": {"inputs": audit.num_inputs, **audit.num_by_state, "rows": num_rows},
            "shards": shards,
        }
        self.storage.put("manifest.json", _json(manifest))
        if audit.holds and not self.pending_units():
            self.storage.put("_SUCCESS", b"")
        else:
            self.reopen()
        return manifest

    def reopen(self) -> None:
        """Take back _SUCCESS before work that may change the output."""
        self.storage.delete("_SUCCESS")

    def lock(self) -> RunLock:
        """A lock on this output; use it as a context manager around everything that writes."""
        return RunLock(self.storage)

    def _generations(self) -> list[str]:
        names = [name for name in self.storage.sizes("plan") if name.endswith(".arrow")]
        return sorted(names, key=lambda name: (len(name), name))  # g999 comes before g1000.

    def _refuse_other(self, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        if saved["kind"] != asked["kind"]:
            raise LedgerError(
                f"{self.storage.url} holds a run of kind {saved['kind']!r}, not {asked['kind']!r}; "
                "give another --output"
            )
        changed = _differences(saved["config"], asked["config"])
        if changed:
            raise LedgerError(
                f"{self.storage.url} was begun under another config: {changed}; "
                "give the same flags, another --output, or --force-new"
            )


class RunLock:
    """One run at a time on one output: an object with a heartbeat, taken over when its owner is dead or silent.

    Raises LedgerError on entry if another run holds it. An owner on this host is known to be dead at once by its
    process id and start time; one elsewhere after LOCK_EXPIRES_SECONDS of silence.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
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
        held = self._read()
        if held is not None and held["token"] == self._owner["token"]:
            self._storage.delete("lock.json")

    def _body(self) -> bytes:
        return _json({**self._owner, "heartbeat": time.time()})

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._storage.read("lock.json"))
        except FileNotFoundError:
            return None

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._storage.put("lock.json", self._body())
            except OSError:
                continue  # A store that is down for a moment; the commits themselves will say so.


def _is_gone(held: Mapping[str, Any]) -> bool:
    if held["host"] != socket.gethostname():
        return time.time() - held["heartbeat"] > LOCK_EXPIRES_SECONDS
    try:
        return abs(psutil.Process(held["pid"]).create_time() - held["started"]) > 1.0
    except psutil.NoSuchProcess:
        return True


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    images = {field.name for field in table.schema if pa.types.is_binary(field.type)}
    # JPEG does not compress further: 0.3 % for a tenth of the speed.
    compression = {name: "none" if name in images else "zstd" for name in _leaf_columns(table.schema)}
    options: dict[str, Any] = {"compression": compression, "use_dictionary": ["clip_id", "label", "split"]}
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)
    return sink.getvalue().to_pybytes()


def _leaf_columns(schema: pa.Schema) -> list[str]:
    names = []
    for field in schema:
        if pa.types.is_struct(field.type):
            names += [f"{field.name}.{child.name}" for child in field.type]
        else:
            names.append(field.name)
    return names


def _tables(entries: Iterable[Mapping[str, Any]]) -> set[str]:
    return {shard["table"] for entry in entries for shard in entry["shards"]}


def _outcomes(units: Iterable[Unit], entries: Iterable[Mapping[str, Any]]) -> list[Outcome]:
    by_unit = {entry["unit"]: entry for entry in entries}
    latest: dict[str, Outcome] = {}
    for unit in units:
        entry = by_unit.get(unit.unit_id)
        if entry is not None:
            latest.update({row["clip_id"]: outcome_of(row) for row in entry["outcomes"]})
        else:
            latest.update({clip.clip_id: _not_finished(clip) for clip in unit.clips})
    return sorted(latest.values(), key=lambda outcome: (outcome.path, outcome.clip_id))


def _not_finished(clip: Clip) -> Outcome:
    return Outcome(
        clip_id=clip.clip_id,
        path=clip.path,
        state=State.RETRYABLE,
        reason=NOT_FINISHED,
        detail="the run ended before this clip's unit was committed; run the same command again",
        attempts=0,
    )


def _differences(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    names = sorted(set(saved) | set(asked))
    return ", ".join(
        f"{name} {saved.get(name)!r} -> {asked.get(name)!r}" for name in names if saved.get(name) != asked.get(name)
    )


def _some(names: Sequence[str], *, most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=True, default=os.fspath) + "\n").encode()
