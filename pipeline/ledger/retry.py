"""The clips of a run that ended badly: listed, shown, and given back to the plan."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute

from pipeline.ledger.files import outcomes_of, rows_of
from pipeline.ledger.ledger import Ledger
from pipeline.records.arrow import pc
from pipeline.records.clips import clip_of, whole_id
from pipeline.records.outcomes import NOT_THERE, Outcome, State
from pipeline.records.vocabulary import UsageError

LISTED = (State.QUARANTINED, State.RETRYABLE)


def quarantined(ledger: Ledger) -> list[Outcome]:
    """Every quarantined or retryable clip, and the quarantined segments of clips that are done, sorted by path.

    Raises LedgerError if the folder holds no run.
    """
    ledger.run_info()
    found = ledger.snapshot()
    is_listed = pc.field("state").isin([state.value for state in LISTED])
    segments = found.segments.filter(is_listed & ~pc.field("reason").isin(NOT_THERE))
    listed = list(outcomes_of(found.latest.filter(is_listed)))
    bad = {outcome.clip_id for outcome in listed}
    parts = [part for part in outcomes_of(segments) if whole_id(part.clip_id) not in bad]
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


def retry(ledger: Ledger, outcomes: Sequence[Outcome], *, clips_per_shard: int = 32) -> int:
    """Plan the quarantined clips among `outcomes` again, in units of their own; returns how many.

    The next run of the same command does them. Of a clip that was cut only the quarantined segments are done again, and
    its result is joined anew. Retryable clips need no plan: every run tries them again.
    """
    named = {each.clip_id for each in outcomes if each.state is State.QUARANTINED}
    with ledger.lock():
        found = ledger.snapshot()
        # A clip and its copies have one result, whichever of them was named.
        kin = [clip_of(row) for row in rows_of(found.kin_of(whole_id(clip_id) for clip_id in named))]
        originals = named | {clip.same_as for clip in kin if clip.clip_id in named and clip.same_as}
        segments = found.segments_of(whole_id(clip.clip_id) for clip in kin)
        films = {whole_id(clip_id) for clip_id in segments["clip_id"].to_pylist()}
        failed = segments.filter(pc.field("state") == State.QUARANTINED.value)["clip_id"].to_pylist()
        parts = {clip_id for clip_id in failed if clip_id in named or whole_id(clip_id) in originals}
        again = [clip for clip in kin if clip.clip_id in parts or (clip.same_as or whole_id(clip.clip_id)) not in films]
        # Before the plan grows: cut off in between, the next run joins once more what it has.
        joined = [clip.clip_id for clip in kin if clip.same_as in films]
        ledger.take_back(found.latest_of(pa.chunked_array([joined], pa.string()))["unit"].to_pylist())
        ledger.add_generation(again, clips_per_shard=clips_per_shard)
    return len({whole_id(clip.clip_id) for clip in again} | set(joined))
