"""Runs a job on a corpus: plan, do what is missing, audit, and write summary and manifest."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import yaml

from pipeline.corpus.types import Corpus
from pipeline.ledger.audit import Audit, audit
from pipeline.ledger.files import json_list
from pipeline.ledger.forgotten import read_records
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.lock import RunLock
from pipeline.ledger.planning import plan
from pipeline.ledger.snapshot import NOT_FINISHED, Snapshot
from pipeline.records.outcomes import COUNTED, GROWING, OWN_FAULT, State
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.config import PoolConfig, num_actors
from pipeline.runtime.console import is_json, log_event, log_status
from pipeline.runtime.describe import clips_per_second, describe_audit, describe_changes, describe_summary
from pipeline.runtime.job import ActorSpec, Choice, Job, SystematicFault
from pipeline.runtime.retention import forget_old
from pipeline.storage.redaction import redacted_values

# Listings of one run: the first, and those after clips whose bytes had changed since.
MAX_LISTINGS = 3


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that ended: its ledger and what that then held, its summary and audit, and the exit code of the job."""

    ledger: Ledger
    snapshot: Snapshot
    summary: dict[str, Any]
    audit: Audit
    exit_code: int
    choice: Choice


def run(job: Job, read: Callable[[], Corpus], output: str, *, config: PoolConfig) -> Run:
    """Do what is missing of a job on a corpus.

    Args:
        read: lists the corpus; called again where clips changed between listing and reading.
        output: folder or URL of the ledger.

    Raises:
        LedgerError: if the output belongs to another config, or another run is writing it.
        SystematicFault: if our own code failed on more than a tenth of the clips.
    """
    started = time.monotonic()
    ledger = Ledger(output_for(output, job=job, force_new=config.force_new))
    ledger.check(kind=job.kind, config=job.plan_config, defaults=job.plan_defaults)
    if config.joins_cluster:
        from pipeline.runtime.cluster import check_address

        check_address()
    corpus = read()
    _log_corpus(corpus)
    with RunLock(ledger.storage, say_waiting=_log_waiting) as lock:
        read_records(ledger.storage)  # One that cannot be read ends the run here, not in each actor.
        snapshot = ledger.snapshot(memory_bytes=config.driver_memory * 2**20, compacts=True)
        if config.retention_days is not None and forget_old(ledger, snapshot, days=config.retention_days):
            snapshot = ledger.snapshot(memory_bytes=config.driver_memory * 2**20, compacts=True)
        snapshot.mark_old_entries()
        trial = _Trial(job)
        choice, errors = _plan_and_compute(job, ledger, snapshot, corpus, trial=trial, config=config, started=started)
        for _ in range(MAX_LISTINGS - 1):
            if not _has_changed_clips(snapshot):
                break
            log_status("some clips have other bytes than when they were listed: listing the input again")
            corpus = read()
            choice, more = _plan_and_compute(job, ledger, snapshot, corpus, trial=trial, config=config, started=started)
            errors += more
        lock.require()
        closing = job.finish(ledger, snapshot)
        ledger.refresh(snapshot)
        found, orphans = _finish(ledger, snapshot, input_description=corpus.description)
        summary = {
            **_summary(snapshot, found, job=job, seconds=time.monotonic() - started),
            **choice.facts,
            **closing,
            "ignored": len(corpus.ignored),
            "orphans_swept": len(orphans),
            "errors": errors,
        }
        ledger.storage.put("summary.json", _json(summary))
        ledger.storage.put_stream("ignored.json", chain(json_list(map(asdict, corpus.ignored)), [b"\n"]))
    exit_code = exit_code_of(summary, found, config)
    return Run(ledger=ledger, snapshot=snapshot, summary=summary, audit=found, exit_code=exit_code, choice=choice)


class _Trial:
    """What an actor does, tried once a run and where something is missing, beside the start of Ray: each takes some
    seconds, and neither keeps two cores busy."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._passed = False

    @contextmanager
    def with_workers(self, *, needs_ray: bool) -> Iterator[str]:
        """Ray, where it is needed, for as long as the block runs; in words, what works. Raises what either raises."""
        if not needs_ray:
            if not self._passed:
                log_status(f"trying {self._job.trial}")
                self._pass(self._job.try_out())
            yield "in this process, without Ray"
            return
        # A second, which a run that misses nothing does without. All of it now: once a cluster is joined, nodes on this
        # machine may unpack the package's folder anew, and what is loaded or started from it then may not be there.
        from pipeline.runtime import cluster, pool  # noqa: F401

        if not self._passed:
            address = os.environ.get("RAY_ADDRESS")
            begins = f"joining the Ray cluster at {address}" if address else "starting a local Ray"
            log_status(f"trying {self._job.trial}; {begins}")
        with ThreadPoolExecutor(1) as threads:
            trial = None if self._passed else threads.submit(self._job.try_out)
            if trial is not None and os.environ.get("RAY_ADDRESS"):
                trial.result()
            with cluster.started_ray() as where:
                if trial is not None:
                    self._pass(trial.result())
                yield where

    def _pass(self, lines: Sequence[str]) -> None:
        for line in lines:
            log_status(line)
        self._passed = True


def _plan_and_compute(
    job: Job,
    ledger: Ledger,
    snapshot: Snapshot,
    corpus: Corpus,
    *,
    trial: _Trial,
    config: PoolConfig,
    started: float,
) -> tuple[Choice, list[str]]:
    """Do what is missing of one listing; what was chosen of it, and what went wrong on the way, a line each."""
    choice = prepare(job, ledger, snapshot, corpus)
    num_clips = snapshot.num_to_compute()
    if not num_clips:
        _plan(job, ledger, snapshot, num_clips=num_clips, config=config)
        if snapshot.pending():  # Copies of what was done, which `job.finish` commits.
            ledger.reopen()
        else:
            log_status("nothing is missing: every input has a state")
        return choice, []
    # What an actor of a cluster needs may be asked of it once it is joined, and not before what is tried has passed.
    spec = None if config.joins_cluster else job.build_actor(choice)
    needs_ray = spec is None or needs_ray_for(num_clips, spec, config)
    try:
        with trial.with_workers(needs_ray=needs_ray) as where:
            _plan(job, ledger, snapshot, num_clips=num_clips, config=config)
            options = {"where": where, "needs_ray": needs_ray, "config": config, "started": started}
            return choice, _compute(ledger, snapshot, spec or job.build_actor(choice), **options)
    except SystematicFault:
        # Only now that no actor is left: those at work have committed units after the one that was too many.
        ledger.refresh(snapshot)
        ledger.take_back(snapshot, snapshot.units_that_ended_now(OWN_FAULT))
        raise


def prepare(job: Job, ledger: Ledger, snapshot: Snapshot, corpus: Corpus) -> Choice:
    """Put the clips of a corpus that a job plans into the snapshot; what the job says of them."""
    snapshot.give(corpus.rows)
    snapshot.recognise()
    choice = job.choose(ledger, snapshot)
    for line in choice.lines:
        log_status(line)
    return choice


def _plan(job: Job, ledger: Ledger, snapshot: Snapshot, *, num_clips: int, config: PoolConfig) -> None:
    """num_clips: those that actors will do."""
    changes = plan(
        ledger,
        snapshot,
        kind=job.kind,
        config=job.plan_config,
        defaults=job.plan_defaults,
        versions=job.versions,
        clips_per_shard=config.clips_of_unit(num_clips),
        tail_clips=config.tail_clips(num_clips),
    )
    for line in describe_changes(changes):
        log_status(line)
    if changes.num_new or changes.num_retried or not ledger.storage.exists("config.yaml"):
        ledger.storage.put("config.yaml", yaml.safe_dump(redacted_values(asdict(config)), sort_keys=False).encode())


def needs_ray_for(num_clips: int, spec: ActorSpec, config: PoolConfig) -> bool:
    """Whether so many clips are for a local Ray: not one unit's for one actor, which is done before it has started.
    Raises UsageError where --no-ray forbids what needs one."""
    is_shared = bool(spec.num_gpus) or spec.start_shared is not dict
    if config.no_ray:
        if is_shared:
            raise UsageError(
                "--no-ray: actors share GPUs by Ray; leave it out, or give --detector-device cpu and --device cpu"
            )
        return False
    return is_shared or num_clips > config.clips_of_unit(num_clips) or num_actors(config, num_clips) > 1


def _compute(
    ledger: Ledger,
    snapshot: Snapshot,
    spec: ActorSpec,
    *,
    where: str,
    needs_ray: bool,
    config: PoolConfig,
    started: float,
) -> list[str]:
    """Run actors over what must be computed; what went wrong on the way, a line each."""
    ledger.reopen()
    units = snapshot.pending().of("compute")
    if not units:  # What was to be tried again is a copy by now.
        return []
    actors = num_actors(config, units.num_units)
    log_status(f"{where}: {units.num_clips} clips in {units.num_units} units on {actors} actors")
    if not needs_ray:
        from pipeline.runtime.in_process import run_in_process

        return run_in_process(ledger, snapshot, spec, actors=actors, started=started)
    from pipeline.runtime.cluster import check_nodes
    from pipeline.runtime.pool import run_units

    check_nodes(ledger.storage.url)
    errors = run_units(ledger, snapshot, spec, config=config, started=started)
    log_status("the actors are done: ending Ray, then the audit, the tables' totals and the page")
    return errors


def _has_changed_clips(snapshot: Snapshot) -> bool:
    """Whether actors of this run met other bytes than were listed, and no plan has an input for these yet."""
    return bool(
        snapshot.database.value(
            "select exists(from outcomes o anti join old_entries using (unit) "
            "anti join replaced r on r.clip_id = split_part(o.clip_id, '.', 1) "
            f"where o.state = 'changed' or o.reason = '{GROWING}')"
        )
    )


def _finish(ledger: Ledger, snapshot: Snapshot, *, input_description: str) -> tuple[Audit, list[str]]:
    """Sweep, audit, and write what follows from plan and entries; the audit and what was swept."""
    ledger.store_listing(snapshot)
    orphans = ledger.sweep(snapshot)
    found = audit(snapshot)
    ledger.finish(snapshot, found, input_description=input_description)
    return found, orphans


def _summary(snapshot: Snapshot, found: Audit, *, job: Job, seconds: float) -> dict[str, Any]:
    """Counts over the whole output, and of this run: `processed` clips got a state, `scored` ones a label."""
    ended = list(snapshot.database.rows("ended_now"))
    processed = sum(row["count"] for row in ended)
    peak_bytes = snapshot.database.value("peak_memory") or 0
    totals = snapshot.totals(list(COUNTED.values()))
    return {
        "inputs": found.num_inputs,
        **found.num_by_state,
        **{name: totals[column] for name, column in COUNTED.items()},
        "reasons": {f"{state}: {reason}": count for (state, reason), count in snapshot.reasons().items()},
        "processed": processed,
        "scored" if job.kind == "labels" else "preprocessed": sum(
            row["count"] for row in ended if row["state"] == State.DONE
        ),
        "own_faults": sum(row["count"] for row in ended if row["reason"] == OWN_FAULT),
        "seconds": round(seconds, 3),
        "clips_per_second": round(clips_per_second(processed, seconds), 3),
        "peak_worker_memory_mib": round(peak_bytes / 2**20),
        "audit": describe_audit(found),
        "audit_holds": found.holds,
    }


def exit_code_of(summary: Mapping[str, Any], found: Audit, config: PoolConfig) -> int:
    """0, 1 where the audit fails, 3 where too many clips are not done, our own code failed, or it was cut off."""
    if not found.holds:
        return 1
    not_done = summary["quarantined"] + summary["retryable"]
    over = config.max_quarantined is not None and not_done > config.max_quarantined
    unfinished = summary["reasons"].get(f"{State.RETRYABLE}: {NOT_FINISHED}", 0)
    return 3 if over or unfinished or summary["own_faults"] else 0


def output_for(output: str, *, job: Job, force_new: bool) -> str:
    """The folder of the run: `output`, or with force_new the first one beside it that takes this config."""

    def accepts(url: str) -> bool:
        try:
            Ledger(url).check(kind=job.kind, config=job.plan_config, defaults=job.plan_defaults)
        except UsageError:
            return False
        return True

    if not force_new:
        return output
    names = [output.rstrip("/"), *(f"{output.rstrip('/')}-{number}" for number in range(2, 1000))]
    return next(filter(accepts, names))


def print_summary(found: Run) -> None:
    """Print the end of a run: counts, reasons, speed, the audit, and where everything is."""
    if is_json():
        log_event("summary", **found.summary, output=found.ledger.storage.url, exit_code=found.exit_code)
        return
    for line in describe_summary(found.summary, output=found.ledger.storage.url):
        log_status(line)


def _log_corpus(corpus: Corpus) -> None:
    log_status(corpus.description)
    if corpus.ignored:
        reasons = ", ".join(f"{count} {reason}" for reason, count in corpus.ignored.reasons.items())
        log_status(f"ignored {len(corpus.ignored)} files: {reasons}")


def _log_waiting(seconds: float) -> None:
    log_status(f"another run has written here: watching up to {seconds:.0f} s whether it still lives")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
