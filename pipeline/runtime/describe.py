"""Facts of planning, audits and runs in words, a line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.ledger.audit import RARE_STATES, Audit
from pipeline.ledger.planning import MAX_NAMED, Changes, Some
from pipeline.ledger.retry import Verified
from pipeline.records.outcomes import OWN_FAULT, Outcome


def describe_changes(changes: Changes) -> list[str]:
    """What planning changed, for the person who started the run."""
    lines = []
    if changes.versions:
        lines.append(f"versions differ from those the run began with: {changes.versions}")
    if changes.num_planned and changes.num_new:
        lines.append(f"{changes.num_new} new inputs added to the plan of {changes.num_planned}")
    if changes.replaced:
        lines.append(
            f"{changes.replaced.count} inputs have other bytes than were planned, and take the place of the old ones: "
            f"{name_some(changes.replaced)}"
        )
    if changes.gone:
        lines.append(
            f"{changes.gone.count} inputs of the plan are no longer in the input (kept): {name_some(changes.gone)}"
        )
    if changes.relabelled:
        lines.append(
            f"{changes.relabelled.count} inputs changed label or split (the plan's are kept): "
            f"{name_some(changes.relabelled)}"
        )
    if changes.num_retried:
        lines.append(f"{changes.num_retried} retryable inputs are tried again")
    return lines


def describe_audit(audit: Audit) -> str:
    """The audit in one line: the sum of the states, and every fault with its cure."""
    states = " + ".join(f"{count} {state}" for state, count in audit.counted.items())
    foreign = f"; {_describe_foreign(audit.foreign_shards)}" if audit.foreign_shards else ""
    if audit.holds:
        return f"audit: {audit.num_inputs} inputs = {states}; nothing is missing{foreign}"
    faults = "; ".join(describe_faults(audit))
    return f"audit FAILED: {audit.num_inputs} inputs, {states.replace(' + ', ', ')}: {faults}{foreign}"


def describe_faults(audit: Audit) -> list[str]:
    """Every fault that an audit found, with its cure where there is one."""
    lines = [f"unit {unit} does not account for exactly the clips planned for it" for unit in audit.unaccounted_units]
    lines += [
        f"shard {shard.path} has {'no' if shard.stored is None else shard.stored} bytes, not {shard.bytes} (put it "
        f"back, or delete ledger/{shard.unit}.json and run again)"
        for shard in audit.lost_shards
    ]
    lines += [
        f"unit {unit} wrote {rows} rows for {examples} examples" for unit, rows, examples in audit.miscounted_units
    ]
    if audit.done_twice:
        lines.append(f"{len(audit.done_twice)} clips are done in more than one unit: {name_first(audit.done_twice)}")
    if audit.without_state:
        lines.append(f"{len(audit.without_state)} inputs have no state: {name_first(audit.without_state)}")
    if audit.not_planned:
        lines.append(f"{len(audit.not_planned)} inputs are not in the plan: {name_first(audit.not_planned)}")
    if not lines:
        lines.append(f"the states sum to {sum(audit.num_by_state.values())}")
    return lines


def describe_quarantined(found: Sequence[Outcome], *, run: str | None) -> list[str]:
    """A line for each clip that ended badly, and their counts by reason. run: which of several, None of one."""
    lines = [f"{each.clip_id}  {each.state:11}  {each.reason:16}  {each.path!r}" for each in found]
    counts = Counter(outcome.reason for outcome in found).most_common()
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
    total = f"{len(found)} clips: {reasons or 'nothing is quarantined'}"
    return [*lines, total if run is None else f"{run}: {total}"]


def describe_verified(found: Sequence[Verified]) -> list[str]:
    """Every shard whose bytes are not those that were committed, a line each, and how many were read."""
    lines = [line for each in found for line in (*each.faults, *map(_describe_foreign, filter(None, [each.foreign])))]
    num_shards, num_bytes = sum(each.num_shards for each in found), sum(each.num_bytes for each in found)
    num_faults = sum(len(each.faults) for each in found)
    end = f"{num_faults} are not as committed" if num_faults else "each has the sha256 of its ledger entry"
    return [*lines, f"{num_shards} shards ({num_bytes / 2**20:.1f} MiB) read: {end}"]


def _describe_foreign(names: Sequence[str]) -> str:
    what = (
        "1 Parquet file that no entry names is"
        if len(names) == 1
        else (f"{len(names)} Parquet files that no entry names are")
    )
    return f"{what} among the shards, and readers of the folder would count the rows: move away {name_first(names)}"


def name_some(some: Some) -> str:
    """The first few, and how many more there are."""
    more = some.count - len(some.examples)
    return ", ".join(some.examples) + (f" and {more} more" if more else "")


def name_first(names: Sequence[str]) -> str:
    """The first few of these names, and how many more there are."""
    return name_some(Some(count=len(names), examples=tuple(names[:MAX_NAMED])))


def describe_summary(summary: Mapping[str, Any], *, output: str) -> list[str]:
    """The end of a run: counts, reasons, speed, the audit, and where everything is."""
    states = (
        f"{summary['inputs']} inputs: {summary['done']} done, {summary['no_face']} without a face, "
        f"{summary['quarantined']} quarantined, {summary['retryable']} retryable"
    )
    rare = [f"{summary[state]} {state}" for state in RARE_STATES if summary.get(state)]
    lines = [", ".join([states, *rare])]
    lines += [f"    {count:6d}  {reason}" for reason, count in summary["reasons"].items()]
    now = f"{summary['processed']} clips in {summary['seconds']:.1f} s ({summary['clips_per_second']:.2f} clips/s)"
    now = now if summary["processed"] else f"nothing to do, in {summary['seconds']:.1f} s"
    lines.append(f"{summary['frames']} frames, {summary['examples']} examples; this run: {now}")
    if summary["peak_worker_memory_mib"]:
        lines.append(f"peak memory of a worker: {summary['peak_worker_memory_mib']} MiB")
    lines += [f"warning: a part of the run was tried again: {error}" for error in summary["errors"]]
    if summary["own_faults"]:
        lines.append(
            f"warning: {summary['own_faults']} clips ended as `{OWN_FAULT}`, which is a fault of this program and not "
            "of the clips: please report it with what `quarantine.py show` says of them"
        )
    if summary["quarantined"] or summary["retryable"]:
        lines.append(f"warning: not every clip is done: python jobs/quarantine.py list {output}")
    return [*lines, summary["audit"], f"output: {output}"]


def clips_per_second(num_clips: int, seconds: float) -> float:
    """The one rate: clips that a run ended, by all of the seconds since it began (listing and starting too)."""
    return num_clips / seconds if seconds > 0 else 0.0
