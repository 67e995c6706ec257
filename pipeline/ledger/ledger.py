"""The ledger in one output folder: plan, entries, shards, and the files that are made from them.

    OUTPUT/plan/run.json            kind, config, versions: written first, compared on every resume
    OUTPUT/plan/g000.arrow          clips with their units; later generations add, never change
    OUTPUT/ledger/g000-u000000.json the entry of a committed unit: shards with sha256, an outcome for each clip
    OUTPUT/examples/<split>/...     the shards (frames/, tracks/ and clips/ with day=.../ for scoring)
    OUTPUT/compact/*.arrow          many entries in one object: copies, for ledgers whose entries take minutes to fetch
    OUTPUT/outcomes.jsonl, manifest.json, _SUCCESS: made from plan and entries

A worker writes its shards and then creates the unit's entry; the first entry wins. What is derived is never believed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pipeline.ledger.audit import Audit
from pipeline.ledger.database import DEFAULT_MEMORY_BYTES, DatabaseError, batches_of
from pipeline.ledger.entries import compacted, entry_of, uncompacted
from pipeline.ledger.files import arrow_bytes, json_bytes, json_with_list, parquet_bytes
from pipeline.ledger.lock import LedgerError, RunLock
from pipeline.ledger.snapshot import STORED_ROWS, Snapshot
from pipeline.ledger.units import Unit, without_addresses
from pipeline.records.arrow import pc
from pipeline.records.documents import arrow_table, parse_json
from pipeline.records.evolution import fixed
from pipeline.records.outcomes import OUTCOME_SCHEMA, Outcome
from pipeline.storage.redaction import unquoted
from pipeline.storage.store import Storage

ENTRIES_AT_ONCE = 1000
# The last units of a run are a quarter of the others: an actor that ends waits no longer than for one of these.
TAIL_SHARE = 4
UNITS_PER_GENERATION = 2**12
RUN_INFO = "plan/run.json"
ENTRY_CURE = "delete it, and its unit is done again"
TABLES = ("examples", "frames", "tracks", "clips", "shots", "embeddings", "segments", "segment_shots")
_INFO = {"kind": str, "config": dict, "versions": dict}
_ENTRY = re.compile(r"ledger/(g\d{3,}-u\d{6,})\.json")
_COMPACTED = re.compile(r"compact/[0-9a-f]{16}\.arrow")
_GENERATION = re.compile(r"plan/g(\d{3,})\.arrow")


class Ledger:
    """The ledger at `url`. Reads are of what is stored, never of what this process remembers."""

    def __init__(self, url: str) -> None:
        self.storage = Storage(url)

    # The plan

    @property
    def is_planned(self) -> bool:
        """Whether a run was begun here."""
        return self.storage.exists(RUN_INFO)

    def run_info(self) -> dict[str, Any]:
        """kind, config and versions of the saved plan. Raises LedgerError if there is none, or if it is damaged."""
        try:
            info = parse_json(self.storage.read(RUN_INFO), "it")
            if not all(isinstance(info[name], kind) for name, kind in _INFO.items()):
                raise ValueError("it is not whole")
        except FileNotFoundError:
            raise LedgerError(
                f"{self.storage.url} holds no plan (plan/run.json); give the --output folder of a run, for labels the "
                "folder model=... in it"
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise self._unreadable(RUN_INFO, error, "put it back, or give another output") from None
        return info

    def check(self, *, kind: str, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        """Raise LedgerError if a run of another kind or config is here.

        defaults: what counts for a name that the saved config is older than.
        """
        if not self.is_planned:
            return
        saved = self.run_info()
        if saved["kind"] != kind:
            raise LedgerError(
                f"{self.storage.url} holds a run of kind {saved['kind']!r}, not {kind!r}; give another --output"
            )
        if changed := differences(fixed(kind, {**(defaults or {}), **saved["config"]}), fixed(kind, config)):
            raise LedgerError(
                f"{self.storage.url} was begun under another config: {changed}; give the same flags, another --output, "
                "or --force-new"
            )

    def begin(
        self,
        *,
        kind: str,
        config: Mapping[str, Any],
        versions: Mapping[str, str],
        schema_version: int,
        defaults: Mapping[str, Any] | None = None,
    ) -> str:
        """Save what the run is, or compare it with what is saved; the versions that differ, in words ("" if none do).

        Raises LedgerError where `check` does.
        """
        info = {
            "schema_version": schema_version,
            "kind": kind,
            "config": dict(config),
            "versions": dict(versions),
        }
        if self.storage.create(RUN_INFO, json_bytes(info)):
            return ""
        self.check(kind=kind, config=config, defaults=defaults)
        return differences(self.run_info()["versions"], versions)

    def add_generation(self, snapshot: Snapshot, *, clips_per_shard: int, tail_clips: int = 0) -> int:
        """Append the clips of the snapshot's table `chosen` to the plan, in units; returns how many rows.

        The last `tail_clips` of them are cut into units of a quarter of the size. A clip's latest unit decides its
        state. More than `UNITS_PER_GENERATION` units make several generations, so that one at a time is held in memory.

        Raises LedgerError where another run extended the plan meanwhile.
        """
        database = snapshot.database
        database.run("sort_for_units")
        tail = max(0, database.value("select count(*) from sorted") - tail_clips)
        database.run("number_units", size=clips_per_shard, tail=tail, tail_size=-(-clips_per_shard // TAIL_SHARE))
        count = database.value("num_units")
        first = 1 + max(self._generations(), default=-1)
        for number in range(-(-count // UNITS_PER_GENERATION)):
            generation, start = first + number, number * UNITS_PER_GENERATION
            rows = next(database.rows("rows_of_generation", start=start, end=start + UNITS_PER_GENERATION))
            table = database.table("generation", name=f"g{generation:03d}-u", start=start, **rows)
            table = without_addresses(table)
            self.reopen()  # First: _SUCCESS must never stand beside a plan with more to do.
            if not self.storage.create(f"plan/g{generation:03d}.arrow", arrow_bytes(table)):
                raise LedgerError(f"{self.storage.url}: another run has just extended the plan; start again")
            snapshot.add_plan(table, generation=generation)
        return database.value("select count(*) from sorted")

    def take_back(self, snapshot: Snapshot, unit_ids: Sequence[str]) -> None:
        """Make units pending again whose rows hold no more; the shards are swept once there are others."""
        self.reopen()  # First: _SUCCESS must never stand beside a plan with more to do.
        self.drop_compacted()
        for unit_id in unit_ids:
            self.storage.delete(f"ledger/{unit_id}.json")
        snapshot.forget_entries(unit_ids)

    # Committing

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

        A shard's name has its sha256 in it: the same work gives the same names, and so the same manifest.

        Args:
            partition: folder of the shards in that of their table, in place of the unit's split.
        """
        if [outcome.clip_id for outcome in outcomes] != [clip.clip_id for clip in unit.clips]:
            raise AssertionError(f"unit {unit.unit_id}: the outcomes are not those of its clips, one each")
        where = partition or unit.split or "unsplit"
        shards = [
            {"table": name, "split": unit.split, "unit": unit.unit_id}
            | self.put_shard(f"{name}/{where}", unit.unit_id, table)
            for name, table in tables.items()
        ]
        entry = {
            "unit": unit.unit_id,
            "attempt": secrets.token_hex(6),
            "facts": dict(facts),
            "shards": shards,
            "outcomes": [asdict(outcome) for outcome in outcomes],
        }
        if self.storage.create(f"ledger/{unit.unit_id}.json", json_bytes(entry)):
            return entry
        (standing,) = self.entries([unit.unit_id])
        kept = {shard["path"] for shard in standing["shards"]}
        for shard in shards:
            if shard["path"] not in kept:
                self.storage.delete(shard["path"])
        return standing

    def put_shard(self, folder: str, unit_id: str, table: pa.Table) -> dict[str, Any]:
        """Write a shard of a unit; its path, rows, bytes and sha256."""
        data = parquet_bytes(table)
        sha256 = hashlib.sha256(data).hexdigest()
        path = f"{folder}/{unit_id}-{sha256[:12]}.parquet"
        self.storage.put(path, data)
        return {"path": path, "rows": table.num_rows, "bytes": len(data), "sha256": sha256}

    def entries(self, unit_ids: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """The entries of committed units, sorted by unit. Raises LedgerError for one that cannot be read."""
        names = self.committed_units() if unit_ids is None else unit_ids
        found = self.storage.read_many([f"ledger/{unit_id}.json" for unit_id in names])
        return [self._entry_of(name, found[name]) for name in sorted(found)]

    def committed_units(self) -> dict[str, int]:
        """The units that have an entry, and the size of its object in bytes, sorted."""
        sizes = self.storage.sizes("ledger")
        return {match[1]: size for name, size in sizes.items() if (match := _ENTRY.fullmatch(name))}

    # Reading

    def snapshot(self, *, memory_bytes: int = DEFAULT_MEMORY_BYTES, compacts: bool = False) -> Snapshot:
        """The plan and every committed entry, as they are stored now. compacts: see `refresh`.

        Raises LedgerError for a file that cannot be read, and where entries are there whose plan is lost.
        """
        snapshot = Snapshot(memory_bytes=memory_bytes)
        for number, (name, size_bytes) in self._generations().items():
            snapshot.add_plan(self._plan_in(name, size_bytes), generation=number)
        self.refresh(snapshot, compacts=compacts)
        return snapshot

    def snapshot_of(self, unit_ids: Collection[str], *, since: int) -> Snapshot:
        """As `snapshot`, but only of these units and of those in generations of the plan from `since` on."""
        snapshot, found = Snapshot(), set(unit_ids)
        numbers = {int(unit_id[1:].partition("-")[0]) for unit_id in found}
        for number, (name, size_bytes) in self._generations().items():
            if number >= since or number in numbers:
                table = self._plan_in(name, size_bytes)
                if number >= since:
                    found.update(pc.unique(table["unit"]).to_pylist())
                else:
                    table = table.filter(pc.is_in(table["unit"], pa.array(sorted(found), pa.string())))
                snapshot.add_plan(table, generation=number)
        self.refresh(snapshot, unit_ids=found)
        return snapshot

    @property
    def num_generations(self) -> int:
        """How many generations the plan has."""
        return len(self._generations())

    def _plan_in(self, name: str, size_bytes: int) -> pa.Table:
        data = self.storage.read(name)
        try:
            return arrow_table(data, "it")
        except ValueError as error:
            what, cure = f"{name} ({len(data)} of {size_bytes} bytes)", "put it back, or give another output"
            raise self._unreadable(what, error, cure) from None

    def refresh(self, snapshot: Snapshot, *, compacts: bool = False, unit_ids: Collection[str] | None = None) -> None:
        """Bring the snapshot's entries up to what is stored.

        Args:
            unit_ids: of these alone.
            compacts: of the holder of the lock alone: entries that had to be fetched one by one are stored once more,
                `ENTRIES_AT_ONCE` in one object, where they are more. Objects with copies of what is another entry now,
                or none, and those that cannot be read are deleted.

        Raises LedgerError for an entry of no planned unit.
        """
        units = ((match[1], size) for name, size in self.storage.listing("ledger") if (match := _ENTRY.fullmatch(name)))
        snapshot.list_entries(each for each in units if unit_ids is None or each[0] in unit_ids)
        if (lost := snapshot.entry_without_plan()) is not None:
            raise LedgerError(
                f"{self.storage.url}: ledger/{lost}.json is of no unit in plan/; the plan was lost, or copied in part: "
                "put plan/ back (finish the copy), or give another output"
            )
        if snapshot.num_unread() > (0 if unit_ids is None else ENTRIES_AT_ONCE):
            for name in self.storage.sizes("compact"):
                texts = uncompacted(name, self.storage.read(name))
                is_current = texts is not None and snapshot.add_compacted(texts)
                if compacts and not is_current and _COMPACTED.fullmatch(name):
                    self.storage.delete(name)
        is_worth = snapshot.num_unread() > ENTRIES_AT_ONCE
        while some := snapshot.unread(ENTRIES_AT_ONCE):
            found = self.storage.read_many([f"ledger/{unit_id}.json" for unit_id in some])
            texts = self._add(snapshot, {name[7:-5]: found[name] for name in sorted(found)})
            if compacts and is_worth:
                self.compact(texts)

    def _add(self, snapshot: Snapshot, objects: Mapping[str, bytes]) -> pa.Table:
        """Add fetched entries. Raises LedgerError for one that is not whole."""
        try:
            return snapshot.add_entries(objects)
        except (DatabaseError, ValueError) as error:
            for unit_id, data in objects.items() if len(objects) > 1 else ():
                self._add(Snapshot(), {unit_id: data})  # Which one it is.
            raise self._unreadable(f"ledger/{next(iter(objects))}.json", error, ENTRY_CURE) from None

    def shards(self, table: str | None = None) -> list[dict[str, Any]]:
        """Every committed shard, in the order of the plan; of one table only if named."""
        return [shard for shard in self.snapshot().shards() if table in (None, shard["table"])]

    def store_listing(self, snapshot: Snapshot) -> None:
        """Tell the snapshot which shards are stored (table `stored`). Names that are not ours are left out."""
        database = snapshot.database
        database.create("stored", STORED_ROWS)
        for table in TABLES:  # Hidden names are of a file manager or a copying tool.
            names = ((name, size) for name, size in self.storage.listing(table) if "/." not in name)
            database.insert("stored", batches_of(names, STORED_ROWS))
        database.run("view_stored")

    # Finishing

    def sweep(self, snapshot: Snapshot) -> list[str]:
        """Delete shards of committed units that their entries don't name, left by attempts that were killed.

        Only the holder of the lock may. What belongs to a unit without an entry stays: an actor that outlived its
        driver, or was cut off from it, may be about to commit it.
        """
        orphans = [row["path"] for row in snapshot.database.rows("orphans")]
        for name in orphans:
            self.storage.delete(name)
        snapshot.database.execute("delete from stored where path in (select unnest($paths))", paths=orphans)
        return orphans

    def finish(self, snapshot: Snapshot, audit: Audit, *, input_description: str) -> None:
        """Write outcomes.jsonl, manifest.json and, if the audit holds and nothing is pending, _SUCCESS.

        The manifest names neither a time nor a run, so that a rerun with nothing to do leaves it byte for byte.
        """
        database = snapshot.settle("latest").database
        columns = ", ".join(OUTCOME_SCHEMA.names)
        lines = database.batches(
            f"select to_json(o)::varchar as line from (select {columns} from latest order by path, clip_id) o"
        )
        self.storage.put_stream(
            "outcomes.jsonl", (f"{line}\n".encode() for b in lines for line in b["line"].to_pylist())
        )
        counts = {"inputs": audit.num_inputs, **audit.counted}
        num_rows = database.value("select coalesce(sum(rows), 0)::bigint from shards")
        head = {**self.run_info(), "input": input_description, "counts": {**counts, "rows": num_rows}}
        self.storage.put_stream("manifest.json", json_with_list(head, "shards", snapshot.shards()))
        if audit.holds and not snapshot.is_pending:
            self.storage.put("_SUCCESS", b"")
        else:
            self.reopen()

    def reopen(self) -> None:
        """Take back _SUCCESS before work that may change the output."""
        self.storage.delete("_SUCCESS")

    def lock(self) -> RunLock:
        """A lock on this output; use it as a context manager around everything that writes."""
        return RunLock(self.storage)

    # Compacted entries

    def compact(self, texts: pa.Table) -> None:
        """Store copies of entries (ENTRY_TEXTS) in one object."""
        self.storage.put(*compacted(texts))

    def drop_compacted(self) -> None:
        """Before an entry may get other contents under its name."""
        for name in self.storage.sizes("compact"):
            self.storage.delete(name)

    # Files of ours

    def _generations(self) -> dict[int, tuple[str, int]]:
        """The generations of the plan, with name and size. Raises LedgerError where a file of the plan is lost."""
        sizes = self.storage.sizes("plan")
        matches = filter(None, map(_GENERATION.fullmatch, sizes))
        found = {int(match[1]): (match[0], sizes[match[0]]) for match in matches}
        wanted = [RUN_INFO, *(f"plan/g{number:03d}.arrow" for number in range(max(found, default=-1) + 1))]
        lost = [name for name in wanted if found and name not in sizes]
        if lost:
            raise LedgerError(
                f"{self.storage.url}/{lost[0]} is not there, though {found[max(found)][0]} is; the plan was copied in "
                "part: put it back (finish the copy), or give another output"
            )
        return dict(sorted(found.items()))

    def _entry_of(self, name: str, data: bytes) -> dict[str, Any]:
        try:
            return entry_of(data)
        except ValueError as error:
            raise self._unreadable(name, error, ENTRY_CURE) from None

    def _unreadable(self, name: str, error: Exception, cure: str) -> LedgerError:
        # What DuckDB quotes of it may be of anything.
        reason = unquoted(" ".join(str(error).split()))[:120] or type(error).__name__
        return LedgerError(f"{self.storage.url}/{name} cannot be read: {reason}; {cure}")


def differences(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The values that differ by name, in words."""
    names = sorted(set(saved) | set(asked))
    return ", ".join(
        f"{name} {saved.get(name)!r} -> {asked.get(name)!r}" for name in names if saved.get(name) != asked.get(name)
    )
