"""What a run adds to its plan, as facts: new inputs, inputs that other bytes replaced, and those tried again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.vocabulary import SCHEMA_VERSION

MAX_NAMED = 5  # examples of a kind of change


@dataclass(frozen=True, kw_only=True)
class Some:
    """How many there are of something, and the first few of them."""

    count: int
    examples: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.count)


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What planning found and added.

    num_planned: inputs of the plan before. num_new: inputs added, of which `replaced` take the place of an input whose
    path holds other bytes now. gone: planned inputs that today's input lacks. relabelled: those whose label or split is
    another today (the plan's are kept). num_retried: inputs that ended retryable and are tried again. versions: the
    packages whose versions differ from those the run began with, in words.
    """

    num_planned: int
    num_new: int
    replaced: Some
    gone: Some
    relabelled: Some
    num_retried: int
    versions: str


def plan(
    ledger: Ledger,
    snapshot: Snapshot,
    *,
    kind: str,
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    clips_per_shard: int,
    tail_clips: int = 0,
    defaults: Mapping[str, Any] | None = None,
) -> Changes:
    """Save the plan, or add what is new of the snapshot's given clips to the saved one.

    clips_per_shard: clips of a unit; the last tail_clips of the run are cut into smaller ones.

    Raises LedgerError if the saved plan was made for another kind of job or under another config.
    """
    changed = ledger.begin(
        kind=kind, config=config, versions=versions, schema_version=SCHEMA_VERSION, defaults=defaults
    )
    database = snapshot.settle("planned").database
    for name in ("find_gone", "find_new", "find_retried"):
        database.run(name)
    count = "select count(distinct split_part(clip_id, '.', 1)) from"
    changes = Changes(
        num_planned=database.value("select count(*) from planned"),
        num_new=database.value(f"{count} new"),
        replaced=some_of(snapshot, "select distinct path from new where replaces is not null order by path"),
        gone=some_of(
            snapshot,
            "select path from gone anti join (select replaces as clip_id from new) using (clip_id) order by ordinal",
        ),
        relabelled=some_of(snapshot, "relabelled"),
        num_retried=database.value(f"{count} retried"),
        versions=changed,
    )
    if changes.num_new or changes.num_retried:
        database.run("choose")
        ledger.add_generation(snapshot, clips_per_shard=clips_per_shard, tail_clips=tail_clips)
    return changes


def plan_clips(
    ledger: Ledger,
    clips: pa.Table,
    *,
    kind: str,
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    clips_per_shard: int,
) -> tuple[Snapshot, Changes]:
    """Plan a table of clips (CLIP_SCHEMA, or more columns) as they are; the snapshot, and what changed in the plan."""
    snapshot = ledger.snapshot()
    snapshot.give(clips)
    snapshot.recognise()
    options = {"kind": kind, "config": config, "versions": versions, "clips_per_shard": clips_per_shard}
    return snapshot, plan(ledger, snapshot, **options)


def some_of(snapshot: Snapshot, query: str) -> Some:
    """The number of rows of a query (or named query) with one column of text, and the first of them."""
    count, examples = 0, []
    for batch in snapshot.database.batches(query):
        examples += batch.column(0).slice(0, max(MAX_NAMED - len(examples), 0)).to_pylist()
        count += batch.num_rows
    return Some(count=count, examples=tuple(examples))
