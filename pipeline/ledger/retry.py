"""The clips of a run that ended badly: listed, chosen by name, and given back to the plan; shards verified."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from pipeline.ledger.ledger import Ledger
from pipeline.records.clips import CLIP_SCHEMA, clip_of, whole_id
from pipeline.records.outcomes import NOT_THERE, Outcome, State, outcome_of
from pipeline.records.vocabulary import UsageError
from pipeline.storage.retry import ABSENT_OR_THERE, StorageError, StoreLostError

SHARDS_AT_ONCE = 8


def quarantined(ledger: Ledger, *, with_faceless: bool = False) -> list[Outcome]:
    """Every quarantined or retryable clip, and the quarantined segments of clips that are done, sorted by path.

    with_faceless: those without a face too, which a night that looks harder may retry. Raises LedgerError if the folder
    holds no run.
    """
    ledger.run_info()
    snapshot = ledger.snapshot()
    states = ("quarantined", "retryable", *(("no_face",) if with_faceless else ()))
    listed = list(snapshot.outcomes(f"state in {states}"))
    bad = {outcome.clip_id for outcome in listed}
    absent = ", ".join(f"'{reason}'" for reason in NOT_THERE)
    rows = snapshot.settle("latest_parts").database.rows(
        "select * from latest_parts where contains(clip_id, '.') and state in ('quarantined', 'retryable') "
        f"and reason not in ({absent})"
    )
    parts = [part for part in map(outcome_of, rows) if whole_id(part.clip_id) not in bad]
    return sorted([*listed, *parts], key=lambda outcome: (outcome.path, outcome.clip_id))


def chosen(outcomes: Sequence[Outcome], names: Sequence[str]) -> list[Outcome]:
    """The outcomes whose clip_id, path or reason is among `names`; all of them if there are no names.

    Raises UsageError for a name that is none of theirs.
    """
    if not names:
        return list(outcomes)
    for name in names:
        if not any(name in (outcome.clip_id, outcome.path, outcome.reason) for outcome in outcomes):
            raise UsageError(f"{name!r} is no clip_id, path or reason of a quarantined clip; see `list`")
    return [outcome for outcome in outcomes if {outcome.clip_id, outcome.path, outcome.reason} & set(names)]


def retry(ledger: Ledger, outcomes: Sequence[Outcome]) -> int:
    """Plan the quarantined and faceless clips among `outcomes` again, in units of their own; returns how many.

    The next run of the same command does them. Of a clip that was cut only the quarantined segments are done again, and
    its result is joined anew. Retryable clips need no plan: every run tries them again.
    """
    named = {each.clip_id for each in outcomes if each.state in (State.QUARANTINED, State.NO_FACE)}
    with ledger.lock():
        snapshot = ledger.snapshot()
        # A clip and its copies have one result, whichever of them was named.
        kin = [clip_of(row) for row in snapshot.kin_of(named).select(CLIP_SCHEMA.names).to_pylist()]
        originals = named | {clip.same_as for clip in kin if clip.clip_id in named and clip.same_as}
        segments = list(snapshot.segments_of({whole_id(clip.clip_id) for clip in kin}))
        films = {whole_id(row["clip_id"]) for row in segments}
        failed = [row["clip_id"] for row in segments if row["state"] == State.QUARANTINED]
        parts = {clip_id for clip_id in failed if clip_id in named or whole_id(clip_id) in originals}
        again = [clip for clip in kin if clip.clip_id in parts or (clip.same_as or whole_id(clip.clip_id)) not in films]
        # Before the plan grows: cut off in between, the next run joins once more what it has.
        joined = [clip.clip_id for clip in kin if clip.same_as in films]
        units = snapshot.latest("clip_id in (select unnest($ids))", ids=joined)["unit"].to_pylist()
        ledger.take_back(snapshot, units)
        ids = [clip.clip_id for clip in again]
        snapshot.choose_again(ids)
        ledger.add_generation(snapshot, clips_per_shard=snapshot.clips_per_shard())
    return len({whole_id(clip_id) for clip_id in ids} | set(joined))


@dataclass(frozen=True, kw_only=True)
class Verified:
    """How many shards were read, and each one's fault in words whose bytes are not those that were committed.

    foreign: Parquet files among the shards that no entry names.
    """

    num_shards: int
    num_bytes: int
    faults: tuple[str, ...]
    foreign: tuple[str, ...]


def verify(ledger: Ledger) -> Verified:
    """Read every shard that an entry names against its sha256. Raises LedgerError if the folder holds no run."""
    ledger.run_info()
    snapshot = ledger.snapshot()
    num_shards, num_bytes, faults = 0, 0, []
    shards = snapshot.shards()
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
        while some := list(islice(shards, SHARDS_AT_ONCE)):
            faults += filter(None, threads.map(partial(_fault_of_shard, ledger), some))
            num_shards += len(some)
            num_bytes += sum(shard["bytes"] for shard in some)
    ledger.store_listing(snapshot)
    foreign = tuple(row["path"] for row in snapshot.database.rows("foreign_shards"))
    return Verified(num_shards=num_shards, num_bytes=num_bytes, faults=tuple(faults), foreign=foreign)


def _fault_of_shard(ledger: Ledger, shard: Mapping[str, Any]) -> str | None:
    """What is wrong with one shard, in words with the cure; None where its bytes are those that were committed."""
    path, cure = shard["path"], f"put it back, or delete ledger/{shard['unit']}.json and run the job again"
    try:
        data = ledger.storage.read(path)
    except ABSENT_OR_THERE:
        return f"{path} is not there; {cure}"
    except StoreLostError:
        raise
    except StorageError as error:
        return str(error)
    if hashlib.sha256(data).hexdigest() == shard["sha256"]:
        return None
    if len(data) != shard["bytes"]:
        return f"{path} has {len(data)} bytes, not the {shard['bytes']} that were committed; {cure}"
    return f"{path} has other bytes than were committed (its sha256 differs); {cure}"
