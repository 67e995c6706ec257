"""The clips of a run that ended badly: listed, shown, and given back to the plan."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.ledger import Ledger
from pipeline.records import Outcome, State, UsageError, whole_id

LISTED = (State.QUARANTINED, State.RETRYABLE)


def quarantined(ledger: Ledger) -> list[Outcome]:
    """Every quarantined or retryable clip, sorted by path. Raises LedgerError if the folder holds no run."""
    ledger.run_info()
    return [outcome for outcome in ledger.outcomes() if outcome.state in LISTED]


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

    The next run of the same command does them. Retryable clips need no plan: every run tries them again.
    """
    with ledger.lock():
        planned = ledger.planned_clips()
        # A clip and its copies have one result, whichever of them was named.
        bad = {each.clip_id for each in outcomes if each.state is State.QUARANTINED}
        named = bad | {clip.same_as for clip_id, clip in planned.items() if clip_id in bad and clip.same_as}
        again = [clip for clip in planned.values() if (clip.same_as or whole_id(clip.clip_id)) in named]
        ledger.add_generation(again, clips_per_shard=clips_per_shard)
    return len(again)
