"""Ledgers in tests: planned, looked at and finished as a run does it."""

import json

import pyarrow as pa

from pipeline.ledger.audit import audit
from pipeline.ledger.planning import plan, plan_clips
from pipeline.ledger.snapshot import Snapshot
from pipeline.ledger.units import PLAN_SCHEMA
from pipeline.records.clips import clip_table
from pipeline.records.outcomes import outcome_of
from pipeline.runtime.describe import describe_changes
from pipeline.score.night import plan_night


def planned(ledger, clips, **options):
    """Plan these clips; what changed in words, and the units without an entry."""
    if "defaults" in options:
        snapshot = ledger.snapshot()
        snapshot.give(clip_table(clips))
        changes = plan(ledger, snapshot, **options)
    else:
        snapshot, changes = plan_clips(ledger, clip_table(clips), **options)
    return describe_changes(changes), snapshot.pending()


def planned_night(ledger, corpus, *, plan_options, **options):
    """Plan what a night does of a corpus; the night, and the clips chosen for it."""
    snapshot = ledger.snapshot()
    snapshot.give(corpus.rows)
    snapshot.recognise()
    night = plan_night(snapshot, **options)
    chosen = list(snapshot.database.rows("select * from given order by path, clip_id"))
    if plan_options is not None:
        plan(ledger, snapshot, **plan_options)
    return night, chosen


def pending(ledger, clips=(), *, kinds=("compute", "copies", "joins")):
    """The planned units without an entry, with the addresses of these clips."""
    snapshot = ledger.snapshot()
    snapshot.give(clip_table(clips))
    return list(snapshot.pending().of(*kinds))


def audited(ledger, snapshot=None):
    """The audit of what is stored."""
    snapshot = snapshot or ledger.snapshot()
    ledger.store_listing(snapshot)
    return audit(snapshot)


def sweep(ledger):
    """Delete the orphans; their names."""
    snapshot = ledger.snapshot()
    ledger.store_listing(snapshot)
    return ledger.sweep(snapshot)


def finish(ledger):
    """Write what follows from plan and entries."""
    snapshot = ledger.snapshot()
    ledger.finish(snapshot, audited(ledger, snapshot), input_description="four clips")


def joined(outcomes):
    """The outcomes of segments as those of their clips, in the order given."""
    snapshot = Snapshot()
    rows = [
        dict.fromkeys(PLAN_SCHEMA.names)
        | {
            "clip_id": each.clip_id,
            "path": each.path,
            "unit": each.clip_id,
            "url": "",
            "size_bytes": 0,
            "content_id": "",
        }
        for each in outcomes
    ]
    snapshot.add_plan(pa.Table.from_pylist(rows, schema=PLAN_SCHEMA), generation=0)
    entries = (
        {"unit": each.clip_id, "facts": {}, "shards": [], "outcomes": [{**_values(each), "state": str(each.state)}]}
        for each in outcomes
    )
    snapshot.add_entries({entry["unit"]: json.dumps(entry).encode() for entry in entries})
    whole = {row["clip_id"]: outcome_of(row) for row in snapshot.latest().to_pylist()}
    return [whole[clip_id] for clip_id in dict.fromkeys(each.clip_id.partition(".")[0] for each in outcomes)]


def _values(outcome):
    return {name: getattr(outcome, name) for name in outcome.__slots__}
