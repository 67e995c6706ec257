"""Runs a corpus through actors into a ledger, and tells how it ended."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import yaml

from pipeline.corpus.types import Corpus
from pipeline.ledger.audit import Audit
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import NOT_FINISHED, Snapshot
from pipeline.ledger.units import Units
from pipeline.records.clips import clip_table
from pipeline.records.outcomes import COUNTED, State
from pipeline.runtime.cluster import check_nodes, start_ray, stop_ray
from pipeline.runtime.console import is_json, log_event, log_status
from pipeline.runtime.pool import Actor, PoolConfig, num_actors, run_units
from pipeline.storage.redaction import redacted_values


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that ended: where its ledger is, its summary and audit, its exit code, and what the ledger then held (None
    where nothing was to be done, and so nothing read)."""

    ledger: Ledger
    summary: dict[str, Any]
    audit: Audit
    exit_code: int
    found: Snapshot | None = None


def run_corpus(
    corpus: Corpus,
    output: str,
    *,
    kind: str,
    plan_config: Mapping[str, Any],
    versions: Mapping[str, str],
    actor: Callable[..., Actor],
    arguments: Mapping[str, Any],
    config: PoolConfig,
    num_gpus: float = 0.0,
    start_shared: Callable[[], Mapping[str, Any]] | None = None,
    close: Callable[[Ledger], Mapping[str, Any]] | None = None,
    clips: pa.Table | None = None,
) -> Run:
    """Plan the corpus into the ledger at `output`, run what is missing, audit, and write summary and manifest.

    `actor(ledger_url=..., **arguments)` is built once in each Ray actor. start_shared: called once Ray runs, gives
    further arguments, such as the handles of actors that all of them share. close: called before the audit; it commits
    the units of copies, which no actor gets, and what it returns joins the summary. clips: rows of CLIP_SCHEMA to plan
    in place of the corpus' own. Raises LedgerError if the output belongs to another config or another run is writing
    it.
    """
    started = time.monotonic()
    ledger = Ledger(output_for(output, kind=kind, plan_config=plan_config, force_new=config.force_new))
    log_status(corpus.description)
    if corpus.ignored:
        reasons = Counter(ignored.reason for ignored in corpus.ignored)
        log_status(
            f"ignored {len(corpus.ignored)} files: " + ", ".join(f"{n} {reason}" for reason, n in reasons.items())
        )
    clips = clip_table(corpus.table if clips is None else clips)
    with ledger.lock() as lock:
        told, pending = ledger.plan(
            clips, kind=kind, config=plan_config, versions=versions, clips_per_shard=config.clips_per_shard
        )
        for line in told:
            log_status(line)
        ledger.storage.put("config.yaml", yaml.safe_dump(redacted_values(asdict(config)), sort_keys=False).encode())
        units = pending.without_copies()
        errors: list[str] = []
        if pending:
            ledger.reopen()
        if units:
            actor_arguments = {"ledger_url": ledger.storage.url, **arguments}
            where, actors = start_ray(), num_actors(config, len(units))
            log_status(f"{where}: {units.num_clips} clips in {len(units)} units on {actors} actors")
            try:
                check_nodes(ledger.storage.url)
                if start_shared is not None:
                    actor_arguments |= start_shared()
                errors = run_units(
                    ledger, units, actor=actor, arguments=actor_arguments, config=config, num_gpus=num_gpus
                )
            finally:
                stop_ray()
        elif not pending:
            log_status("nothing is missing: every input has a state")
        lock.require()
        closing = close(ledger) if close is not None else {}
        found = ledger.snapshot()
        orphans = ledger.sweep(found)
        audit = ledger.audit(found)
        audit = replace(audit, problems=(*audit.problems, *found.not_planned(clips)))
        ledger.finish(audit, input_description=corpus.description, found=found)
        summary = _summary(found, audit, kind=kind, units=units, seconds=time.monotonic() - started)
        summary |= {**closing, "ignored": len(corpus.ignored), "orphans_swept": len(orphans), "errors": errors}
        ledger.storage.put("summary.json", (json.dumps(summary, indent=1) + "\n").encode())
        ignored = [asdict(ignored) for ignored in corpus.ignored]
        ledger.storage.put("ignored.json", (json.dumps(ignored, indent=1) + "\n").encode())
    exit_code = exit_code_of(summary, audit, config)
    return Run(ledger=ledger, summary=summary, audit=audit, exit_code=exit_code, found=found)


def print_summary(run: Run) -> None:
    """The end of a run in words: counts, reasons, speed, the audit, and where everything is."""
    summary = run.summary
    if is_json():
        log_event("summary", **summary, output=run.ledger.storage.url, exit_code=run.exit_code)
        return
    log_status(
        f"{summary['inputs']} inputs: {summary['done']} done, {summary['no_face']} without a face, "
        f"{summary['quarantined']} quarantined, {summary['retryable']} retryable"
    )
    for reason, count in summary["reasons"].items():
        log_status(f"    {count:6d}  {reason}")
    log_status(
        f"{summary['frames']} frames, {summary['examples']} examples; this run: {summary['processed']} clips in "
        f"{summary['seconds']:.1f} s ({summary['clips_per_second']:.2f} clips/s)"
    )
    if summary["peak_worker_memory_mib"]:
        log_status(f"peak memory of a worker: {summary['peak_worker_memory_mib']} MiB")
    for error in summary["errors"]:
        log_status(f"warning: a part of the run was tried again: {error}")
    if summary["quarantined"] or summary["retryable"]:
        log_status(f"warning: not every clip is done: python jobs/quarantine.py list {run.ledger.storage.url}")
    log_status(str(run.audit))
    log_status(f"output: {run.ledger.storage.url}")


def _summary(found: Snapshot, audit: Audit, *, kind: str, units: Units, seconds: float) -> dict[str, Any]:
    """Counts over the whole output, and of this run: `processed` clips got a state, `scored` ones a label."""
    ended_now = found.of_units(units.unit_ids)
    reasons = {f"{state}: {reason}": count for (state, reason), count in found.reasons().items()}
    peak_bytes = max((head["facts"].get("peak_child_memory_bytes", 0) for head in found.heads), default=0)
    return {
        "inputs": audit.num_inputs,
        **audit.num_by_state,
        **{name: found.total(counted) for name, counted in COUNTED.items()},
        "reasons": dict(sorted(reasons.items())),
        "processed": ended_now.num_rows,
        "scored" if kind == "labels" else "preprocessed": ended_now["state"].to_pylist().count(State.DONE),
        "seconds": round(seconds, 3),
        "clips_per_second": round(ended_now.num_rows / seconds, 3) if seconds else 0.0,
        "peak_worker_memory_mib": round(peak_bytes / 2**20),
        "audit": str(audit),
        "audit_holds": audit.holds,
    }


def exit_code_of(summary: Mapping[str, Any], audit: Audit, config: PoolConfig) -> int:
    """0, 1 where the audit does not hold, 3 where too many clips are not done or the run was cut off."""
    if not audit.holds:
        return 1
    not_done = summary["quarantined"] + summary["retryable"]
    over = config.max_quarantined is not None and not_done > config.max_quarantined
    unfinished = summary["reasons"].get(f"{State.RETRYABLE}: {NOT_FINISHED}", 0)
    return 3 if over or unfinished else 0


def output_for(output: str, *, kind: str, plan_config: Mapping[str, Any], force_new: bool) -> str:
    """The folder of the run: `output`, or with force_new the first one beside it that takes this config."""
    if not force_new:
        return output
    names = [output.rstrip("/"), *(f"{output.rstrip('/')}-{number}" for number in range(2, 1000))]
    return next(name for name in names if Ledger(name).accepts(kind=kind, config=plan_config))
