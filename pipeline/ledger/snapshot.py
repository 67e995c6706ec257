"""What a ledger held when it was read, and what was committed since: tables in a database, and answers from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pipeline.ledger.database import DEFAULT_MEMORY_BYTES, Database, DatabaseError, batches_of, named_queries
from pipeline.ledger.entries import UNIT, as_of_today, entry_texts
from pipeline.ledger.units import PLAN_SCHEMA, PendingUnits, Unit, units_of
from pipeline.records.clips import CLIP_SCHEMA, whole_id
from pipeline.records.columns import columns_of
from pipeline.records.outcomes import OUTCOME_SCHEMA, Outcome, State, outcome_of
from pipeline.storage.archives.members import MEMBERS_START, ZIP_CRC, reading_order
from pipeline.storage.contents import HASHED_ID, MD5, UNKNOWN, UNTOLD_URL, WEB_URL

NOT_FINISHED = "not_finished"
ENTRY_ROWS = pa.schema([UNIT, ("num_bytes", pa.int64()), ("facts", pa.string())])
SHARD_ROWS = pa.schema(
    [
        *(UNIT, ("place", pa.int32()), ("path", pa.string()), ("table", pa.string()), ("split", pa.string())),
        *(("rows", pa.int64()), ("bytes", pa.int64()), ("sha256", pa.string())),
    ]
)
OUTCOME_ROWS = OUTCOME_SCHEMA.append(UNIT)
STORED_ROWS = pa.schema([("path", pa.string()), ("bytes", pa.int64())])
GIVEN_ROWS = pa.schema(
    [
        *CLIP_SCHEMA,
        *(("modified_seconds", pa.float64()), ("is_split_given", pa.bool_())),
        *(("reading_key", pa.string()), ("has_content", pa.bool_())),
    ]
)
# Only these say that two files are alike.
HASHED = f"regexp_full_match(content_id, '{HASHED_ID}') and not regexp_matches(url, '{UNTOLD_URL}')"

# Whether a member of an archive was read; the ids that say which bytes a clip has; and what only makes it likely: the
# CRC-32 in a zip, also of a plan that is older than the column, or the first bytes in a tar.
READ = f"coalesce(regexp_full_match(bytes_id, '{MD5}'), false)"
BYTES = (
    f"[if(is_hashed(content_id, url), content_id, null), "
    f"if(is_md5(bytes_id) and not regexp_matches(url, '{WEB_URL}'), bytes_id, null)]"
)
LIKENESS = (
    f"coalesce('crc ' || nullif(regexp_extract(url, '{ZIP_CRC}', 1), ''), if(bytes_id like '% %', bytes_id, null))"
)

# Only these say that a path holds the bytes that were planned, or others.
KNOWN = f"content_id not in {UNKNOWN} and not regexp_matches(url, '^https?://')"

LISTED_ROWS = pa.schema([UNIT, ("num_bytes", pa.int64())])
# Derived table or view -> those that it is made of.
NEEDS = {
    "repeated": (),
    "planned": ("repeated",),
    "unfinished": ("repeated",),
    "latest_parts": ("repeated", "unfinished"),
    "joined": ("latest_parts",),
    "latest": ("joined",),
}
OF_ENTRIES = {"unfinished", "latest_parts", "joined", "latest"}


class Snapshot:
    """The plan, the entries and today's clips of one run, as tables; see queries.sql for what can be asked.

    Tables that follow from others (`latest`, `planned`, ...) are made when they are first asked for.
    """

    def __init__(self, *, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
        self.database = Database(memory_bytes=memory_bytes)
        self._derived: set[str] = set()
        plan = PLAN_SCHEMA.append(pa.field("ordinal", pa.int64())).append(pa.field("generation", pa.int32()))
        tables = {"plan": plan, "entries": ENTRY_ROWS, "shards": SHARD_ROWS, "outcomes": OUTCOME_ROWS}
        tables |= {"outcome_defaults": OUTCOME_SCHEMA, "given": GIVEN_ROWS, "listed": LISTED_ROWS}
        for name, schema in tables.items():
            self.database.create(name, schema)
        unfinished = Outcome(
            clip_id="",
            path="",
            state=State.RETRYABLE,
            reason=NOT_FINISHED,
            detail="the run ended before this clip's unit was committed; run the same command again",
        )
        self.database.insert("outcome_defaults", pa.Table.from_pylist([asdict(unfinished)], schema=OUTCOME_SCHEMA))
        self.database.run("views")
        shape: dict[str, Any] = {"unit": "VARCHAR", "facts": "JSON"}
        for name in ("shards", "outcomes"):
            columns = self.database.columns(name)
            shape[name] = [{column: columns[column] for column in columns if column not in ("unit", "place")}]
        self.database.execute(
            f"create macro entry_of(text) as from_json_strict(text, '{json.dumps(shape)}'); "
            f"create macro is_state(text) as list_contains({[*map(str, State)]}, text); "
            f"create macro is_hashed(content_id, url) as {HASHED}; create macro is_md5(bytes_id) as {READ}; "
            f"create macro told_bytes(content_id, bytes_id, url) as {BYTES}; "
            f"create macro likeness_of(bytes_id, url) as {LIKENESS}"
        )

    # What is told to it

    def add_plan(self, table: pa.Table, *, generation: int) -> None:
        """Append the rows of one generation of the plan, in their order."""
        count = self.database.value("select count(*) from plan")
        columns = {
            name: table[name] if name in table.column_names else pa.nulls(len(table)) for name in PLAN_SCHEMA.names
        }
        columns["ordinal"] = pa.array(range(count, count + len(table)), pa.int64())
        columns["generation"] = pa.repeat(pa.scalar(generation, pa.int32()), len(table))
        self.database.insert("plan", pa.table(columns))
        self._derived.clear()

    def add_entries(self, objects: Mapping[str, bytes]) -> pa.Table:
        """Add the entries of committed units, as they are stored; returns them as rows of ENTRY_TEXTS.

        Raises DatabaseError and ValueError where one of them is not whole; none is added then.
        """
        self.database.run("add_listed", texts := entry_texts(objects))
        try:
            self.database.run("add_entries", texts)
        except DatabaseError:  # An older one; or one that is not whole, which then fails again.
            self.database.run("add_entries", texts := as_of_today(objects))
        self._derived -= OF_ENTRIES
        return texts

    def add_compacted(self, texts: pa.Table) -> bool:
        """Add those entries of a compacted object (ENTRY_TEXTS) that are listed and were not read yet.

        Returns whether each of its copies is of an entry that is listed. A copy of one that was deleted could later be
        taken for the entry that is made in its place.
        """
        try:
            self.database.run("add_entries", texts)
        except DatabaseError:  # Its entries are older than a column.
            entries = dict(zip(texts["unit"].to_pylist(), texts["entry"].to_pylist(), strict=True))
            place = texts.schema.get_field_index("entry")
            self.database.run("add_entries", texts.set_column(place, "entry", as_of_today(entries)["entry"]))
        self._derived -= OF_ENTRIES
        return not self.database.value("select exists(from given_rows anti join listed using (unit, num_bytes))", texts)

    def list_entries(self, units: Iterable[tuple[str, int]]) -> None:
        """Take the units that have an entry now, and the size of each; what was read of another object is dropped."""
        self.database.create("listed", LISTED_ROWS)
        self.database.insert("listed", batches_of(units, LISTED_ROWS))
        self._forget("select unit from entries anti join listed using (unit, num_bytes)")

    def entry_without_plan(self) -> str | None:
        """A listed unit that no plan has, or None."""
        return self.database.value("select unit from listed anti join plan using (unit) order by unit limit 1")

    def num_unread(self) -> int:
        """How many listed entries were not read."""
        return self.database.value("select count(*) from listed anti join entries using (unit)")

    def unread(self, most: int) -> dict[str, int]:
        """So many listed units at most whose entries were not read, with the size of each, sorted."""
        sql = "select unit, num_bytes from listed anti join entries using (unit) order by unit limit $most"
        return {row["unit"]: row["num_bytes"] for row in self.database.rows(sql, most=most)}

    def forget_entries(self, unit_ids: Sequence[str]) -> None:
        """Drop the entries of units that are to be done again."""
        self._forget("select unnest($units) as unit", units=list(unit_ids))

    def _forget(self, query: str, **values: Any) -> None:
        self.database.execute(f"create or replace table dropped as {query}", **values)
        if not self.database.value("select exists(from dropped)"):
            return
        for name in ("entries", "shards", "outcomes"):
            self.database.execute(f"delete from {name} where unit in (from dropped)")
        self._derived -= OF_ENTRIES

    def mark_old_entries(self) -> None:
        """Remember which units have an entry now: what comes later is of this run."""
        self.database.execute("create or replace table old_entries as select unit from entries")

    def give(self, clips: pa.Table | Iterable[pa.RecordBatch]) -> None:
        """Take today's clips of the input in place of those given before: rows of CLIP_SCHEMA, or of more columns."""
        self.database.create("given", GIVEN_ROWS)
        table: Any = clips
        batches: Iterable[Any] = table.to_batches(max_chunksize=2**16) if isinstance(clips, pa.Table) else clips
        for batch in batches:
            keys = [reading_key(url) if url.startswith(MEMBERS_START) else "" for url in batch["url"].to_pylist()]
            rows = pa.table(batch).select([name for name in GIVEN_ROWS.names if name in batch.schema.names])
            self.database.insert("given", rows.append_column("reading_key", pa.array(keys, pa.string())))
        self.database.execute(f"update given set has_content = ({KNOWN})")

    def recognise(self) -> None:
        """Give clips that today's listing cannot tell by their bytes the ids that were planned at their paths."""
        if self.database.value("select exists(from given where not has_content)"):
            self.settle("planned", "latest")
            self.database.run("recognise")

    def unplanned(self) -> pa.Table:
        """The given clips that no plan has: rows of CLIP_SCHEMA, sorted by path."""
        names = ", ".join(f"g.{name}" for name in CLIP_SCHEMA.names)
        sql = f"select {names} from given g anti join planned using (clip_id) order by g.path, g.clip_id"
        return self.settle("planned").database.table(sql).cast(CLIP_SCHEMA)

    def substitute(self, clips: pa.Table) -> None:
        """Put segments, and clips that join them, in the place of the given clips that they are of."""
        self.database.create("parts", CLIP_SCHEMA)
        self.database.insert("parts", clips)
        self.database.run("substitute")

    def choose_night(self, *, paths_matter: bool, since: float | None, limit: int | None) -> dict[str, int]:
        """Put the clips that a night plans in place of the given ones; how many there are of each kind.

        Args:
            paths_matter: whether the path decides a clip's result too, so that no clip is like another.
            since: seconds of the epoch; clips modified before are left out, unless they have the bytes of others.
            limit: new contents at most.
        """
        facts = ("content_id", "size_bytes", "coalesce(start_pts_seconds, -1)", "coalesce(end_pts_seconds, -1)")
        content = (
            "clip_id"
            if paths_matter
            else f"if(is_hashed(content_id, url), concat_ws(' ', {', '.join(facts)}), clip_id)"
        )
        self.settle("planned", "latest")
        find, choose = (named_queries()[name].replace("{content}", content) for name in ("find_night", "choose_night"))
        self.database.execute(find, since=since, limit=limit)
        counts = next(self.database.rows("night_counts"))
        self.database.execute(choose)
        return counts

    def choose_again(self, clip_ids: Sequence[str]) -> None:
        """Make `chosen` of planned clips and segments, to be planned once more."""
        self.database.run("choose_again", ids=list(clip_ids))

    def clips_per_shard(self) -> int:
        """How many clips the plan put into a unit."""
        return self.database.value(
            "select coalesce(max(rows), 1) from (select count(*) as rows from plan group by unit)"
        )

    # What follows from it

    def settle(self, *names: str) -> Snapshot:
        """Make these derived tables, and those that they need, where they are not there as of now."""
        for name in names:
            if name in self._derived:
                continue
            self.settle(*NEEDS[name])
            self.database.execute(settling_query(name))
            self._derived.add(name)
        return self

    def pending(self) -> PendingUnits:
        """The planned units without an entry, with today's addresses of their clips."""
        self.database.run("pending")
        self.database.run("pending_units")
        return PendingUnits(self.database)

    def num_to_compute(self) -> int:
        """Clips that need an actor: the given ones in no plan that are no copies, and those that are to be tried again
        or have no entry."""
        database = self.settle("planned", "latest").database
        new = database.value(
            "select count(*) from given g anti join planned p on p.clip_id = split_part(g.clip_id, '.', 1) "
            "where g.same_as is null"
        )
        failed = "select count(*) from latest where state = 'retryable' and reason <> $reason"
        retryable = database.value(failed, reason=NOT_FINISHED)
        return new + retryable + self.pending().of("compute").num_clips

    @property
    def is_pending(self) -> bool:
        """Whether a planned unit has no entry."""
        return bool(self.database.value("select exists(from waiting)"))

    def units(self) -> Iterator[Unit]:
        """Every planned unit, generation by generation."""
        return units_of(self.database.rows("select * from plan order by ordinal"))

    def outcomes(self, where: str = "true") -> Iterator[Outcome]:
        """The outcome of each input for which the condition holds, sorted by path."""
        self.settle("latest")
        return map(outcome_of, self.database.rows(f"select * from latest where {where} order by path, clip_id"))

    def units_that_ended_now(self, reason: str) -> list[str]:
        """The units that had no entry when this run began, and in which a clip ended for this reason now, sorted."""
        sql = (
            "select distinct unit from outcomes anti join old_entries using (unit) where reason = $reason order by unit"
        )
        return [row["unit"] for row in self.database.rows(sql, reason=reason)]

    def count(self, column: str) -> dict[Any, int]:
        """How many inputs have each value of a column of `latest`."""
        self.settle("latest")
        rows = self.database.rows(f'select "{column}" as value, count(*) as count from latest group by 1')
        return {row["value"]: row["count"] for row in rows}

    def reasons(self) -> dict[tuple[str, str], int]:
        """How many inputs ended in each state for each reason, sorted; done has none."""
        self.settle("latest")
        sql = "select state, reason, count(*) as count from latest where reason is not null group by 1, 2 order by 1, 2"
        return {(row["state"], row["reason"]): row["count"] for row in self.database.rows(sql)}

    def totals(self, columns: Sequence[str]) -> dict[str, int]:
        """The sum of each of these columns over all inputs."""
        self.settle("latest")
        sums = ", ".join(f'coalesce(sum("{name}"), 0)::bigint as "{name}"' for name in columns)
        return next(self.database.rows(f"select {sums} from latest"))

    def latest(self, where: str = "true", **values: Any) -> pa.Table:
        """Rows of OUTCOME_SCHEMA and their unit: the inputs for which a condition holds, sorted by path."""
        self.settle("latest")
        return self.database.table(f"select * from latest where {where} order by path, clip_id", **values)

    def to_list(self, most: int, clip_ids: Sequence[str] = ()) -> pa.Table:
        """So many inputs at most, first by path, so many that are not done, and these: rows like those of `latest`."""
        return self.settle("latest").database.table("to_list", most=most, ids=list(clip_ids))

    def shards(self, where: str = "true", **values: Any) -> Iterator[dict[str, Any]]:
        """The committed shards for which a condition holds, in the order of the plan, as entries name them."""
        sql = (
            'select s.path, s."table", s.split, s.unit, s.rows, s.bytes, s.sha256 from shards s '
            "left join (select unit, min(ordinal) as first from plan group by unit) p using (unit) "
            f"where {where} order by p.first, s.unit, s.place"
        )
        return self.database.rows(sql, **values)

    def kin_of(self, clip_ids: Iterable[str]) -> pa.Table:
        """The planned clips whose results hang together with these whole clips': segments, what joins them, copies."""
        return self.database.table("kin", ids=sorted({whole_id(clip_id) for clip_id in clip_ids}))

    def without_forgotten(self, clip_ids: Iterable[str]) -> tuple[str, ...]:
        """Those of these clips that are not forgotten yet, sorted."""
        sql = "select distinct clip_id from latest where state = 'forgotten'"
        done = {row["clip_id"] for row in self.settle("latest").database.rows(sql)}
        return tuple(sorted(set(clip_ids) - done))

    def joined_segments(self, clip_ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        """What the segments of these whole clips add up to, as outcomes of the clips."""
        sql = "select * from joined where clip_id in (select unnest($ids)) order by clip_id"
        return self.settle("joined").database.rows(sql, ids=list(clip_ids))

    def segments_of(self, clip_ids: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The latest outcomes of the segments of these whole clips, in the order of their clips and times."""
        self.settle("latest_parts")
        sql = (
            "select * from latest_parts where contains(clip_id, '.') "
            "and split_part(clip_id, '.', 1) in (select unnest($ids)) order by clip_id"
        )
        return self.database.rows(sql, ids=list(clip_ids))


def reading_key(url: str) -> str:
    """Text by which members of one compressed stream sort in the order of the stream; empty for all others."""
    return "/".join(f"{each:020d}" if isinstance(each, int) else str(each) for each in _flat(reading_order(url)))


def _flat(order: Iterable[Any]) -> Iterator[Any]:
    for each in order:
        yield from _flat(each) if isinstance(each, tuple) else (each,)


def settling_query(name: str) -> str:
    """The statement of queries.sql that makes a derived table.

    `joined` combines each column of an outcome over segments as it is declared (`pipeline.records.outcomes`).
    """
    weight = "greatest(num_frames, 1)"
    picked = []
    for each in columns_of(Outcome):
        column, rule = each.name, each.metadata["segments"]
        known = f"filter (is_real and {column} is not null)"
        is_float = OUTCOME_SCHEMA.field(column).type == pa.float64()
        how = {
            "first": f"arg_min_null({column}, rank)",
            "sum": f"round(sum({column}), 3)" if is_float else f"sum({column})::bigint",
            "max": f"max({column}) filter (is_real)",
            "mean": f"sum({column} * {weight}) {known} / sum({weight}) {known}",
        }[rule]
        if column not in ("clip_id", "detail"):
            picked.append(f"{how} as {column}")
    return named_queries()[f"settle_{name}"].replace("{picked}", ", ".join(picked))
