"""Units of clips through a pool of Ray actors: starts Ray, keeps the actors busy, counts, and bounds every retry.

In go a ledger, its pending units and the actor that does one unit; out come the entries that the actors commit. One
Ray Data row is one unit, so whatever Ray loses or repeats is one whole unit that the ledger knows by name.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray._raylet
import yaml
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from pipeline.console import is_json, say, tell
from pipeline.corpus import Corpus
from pipeline.fence import FenceLimits
from pipeline.ledger import NOT_FINISHED, Audit, Ledger, Snapshot, Unit, Units
from pipeline.preflight import FOLDER, check_output, clean
from pipeline.records import State, UsageError, clip_of, clip_table
from pipeline.scratch import MAX_PARENT_LETTERS, ScratchFolder, sweep
from pipeline.storage import Storage, StorageError, redacted, redacted_values
from pipeline.telemetry import UnitMetrics

ROUNDS = 3
# Units that one Ray Data run is given, after which all actors wait for the last and new ones start. Each is a block,
# which costs the driver 2 ms before the first of them is begun.
LEAST_UNITS_AT_ONCE, UNITS_AT_ONCE_PER_ACTOR = 2000, 64
# Logical CPUs that an actor asks Ray for.
CPUS_PER_ACTOR, CPUS_PER_GPU_ACTOR = 0.5, 0.25
LINE_SECONDS = 30.0
NODE_SECONDS = 60.0
RAY_PREFIX = "emotion-ray-"


class Actor(Protocol):
    """What does one unit: commits it to the ledger and returns the entry that stands."""

    def run(self, unit: Unit) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that ended: where its ledger is, its summary and audit, its exit code, and what the ledger then held (None
    where nothing was to be done, and so nothing read)."""

    ledger: Ledger
    summary: dict[str, Any]
    audit: Audit
    exit_code: int
    found: Snapshot | None = None


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """How the work is spread and bounded; it changes nothing in the output."""

    actors: int = 0
    """Actors at work (count); 0: one for each CPU of the cluster."""
    clips_per_shard: int = 32
    """Clips in one unit of work, which is one shard (count)."""
    clip_timeout: float = 120.0
    """Longest time without progress on one clip before it is killed (seconds)."""
    max_worker_memory: int = 4096
    """Resident memory of one worker before the clip in it is killed (MiB)."""
    detector_device: str = "auto"
    """Where faces are detected: auto (cuda if the Ray cluster has a GPU and --detector is dlib-cnn), cpu, cuda."""
    max_quarantined: int | None = None
    """Exit with code 3 if more clips than this are quarantined or retryable (count); default: no limit."""
    no_thumbnails: bool = False
    """Put no picture of a person into report.html, nor beside it."""
    blur_faces: bool = False
    """Blur the pictures of report.html beyond recognition: faces most, and all around them."""
    json_logs: bool = False
    """For machines: nothing but one JSON object a line on stderr (event, time, counts)."""
    force_new: bool = False
    """If the output holds a run of another config, write to a new folder beside it instead of refusing."""

    def __post_init__(self) -> None:
        for name, least in (("actors", 0), ("clips_per_shard", 1), ("max_worker_memory", 64), ("max_quarantined", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; give {least} or more")
        if self.detector_device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"--detector-device is {self.detector_device!r}; give one of auto, cpu, cuda")
        if self.clip_timeout <= 0:
            raise ValueError(f"--clip-timeout is {self.clip_timeout}; give more than 0 seconds")

    @property
    def limits(self) -> FenceLimits:
        return FenceLimits(timeout_seconds=self.clip_timeout, memory_bytes=self.max_worker_memory * 2**20)


def start_ray(*, least_cpus: int = 4) -> str:
    """Connect to the cluster that RAY_ADDRESS names, or start a local one; says which.

    A local one gets at least `least_cpus` logical CPUs: actors that hold all of them leave none for reading, and Ray
    waits for ever without a word.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        # Workers get the driver's script folder and its current one; the package lies beside the jobs.
        repository = str(Path(__file__).resolve().parents[1])
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [repository, os.environ.get("PYTHONPATH")]))
        options |= {"address": "local", "num_cpus": max(least_cpus, os.cpu_count() or 1), "include_dashboard": False}
        if not ray.is_initialized():
            options["_temp_dir"] = _closed_to_others()
    if not ray.is_initialized():
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            with _without_log_banner():
                ray.init(**options)
        except SystemExit:  # the answer of Ray's own handler to a SIGTERM
            raise KeyboardInterrupt from None
        if threading.current_thread() is threading.main_thread():
            # Ray puts handlers of its own in front: its core's prints a stack and may abort, its node's ends silently.
            signal.signal(signal.SIGTERM, on_sigterm)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.use_datasource_v2 = False  # It merges small reads and ignores override_num_blocks.
    address = os.environ.get("RAY_ADDRESS")
    gpus = int(ray.cluster_resources().get("GPU", 0))
    told = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else "no GPU"
    return f"Ray cluster at {address}, {told}" if address else f"local Ray, {os.cpu_count()} CPUs, {told}"


def stop_ray() -> None:
    """Leave the cluster; a local one ends, and its folder and its token with it."""
    ray.shutdown()
    if (folder := _local.pop("folder", None)) is not None:
        for name, value in _local.pop("environment").items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        folder.close()


# What a local Ray of this process holds: its folder, and the variables as they were before it.
_local: dict[str, Any] = {}


def _closed_to_others() -> str:
    """Make the local Ray that starts next one that no other user can join or read; returns the folder for its files.

    Ray listens on all interfaces, and whoever joins runs code as this user: so every connection must bring a token,
    made for this run alone, unless RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH name one. Ray makes its own folders readable
    and writable for all: they lie in one that only this user may enter, as the token does.
    """
    if "folder" not in _local:
        sweep(RAY_PREFIX, parent=_ray_parent())
        _local["folder"] = folder = ScratchFolder(RAY_PREFIX, parent=_ray_parent())
        _local["environment"] = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
        if not os.environ.get("RAY_AUTH_TOKEN") and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            token = folder.path / "token"
            token.touch(mode=0o600)
            token.write_text(secrets.token_hex(32))
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        # Whatever it was: nobody but this process has a reason to join, and one exported for a cluster would open it.
        os.environ["RAY_AUTH_MODE"] = "token"
        raylet: Any = ray._raylet  # Ray read both when it was imported, and has no public way to read them again.
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    return str(_local["folder"].path / "r")


def _ray_parent() -> str:
    """Where Ray's folder is made: RAY_TMPDIR or the temporary folder, if its path leaves room for those of sockets."""
    parent = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return parent if len(os.fsencode(parent)) <= MAX_PARENT_LETTERS else "/tmp"


def check_nodes(output_url: str) -> None:
    """Try the output on every node of a cluster of several: that it sees what this process wrote, and may write too.

    Raises UsageError that names the node: most often the output is a folder that only one machine has.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    storage, mark = Storage(output_url), f"{FOLDER}/mark-{secrets.token_hex(8)}"
    storage.put(mark, b"")
    try:
        for node in nodes:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0)(fault_of_node).options(scheduling_strategy=here)
            with contextlib.suppress(RayError):  # A node that went away meanwhile.
                if fault := ray.get(task.remote(output_url, mark), timeout=NODE_SECONDS):
                    raise UsageError(f"node {node['NodeManagerAddress']}: {fault}")
    finally:
        clean(storage, mark)


def fault_of_node(output_url: str, mark: str) -> str | None:
    """Why this node cannot write to the output in which another wrote `mark`; None where it can."""
    try:
        if not Storage(output_url).exists(mark):
            return f"output {output_url} is not what the driver sees; mount it on every node, or give a URL"
        check_output(output_url)
    except (UsageError, StorageError) as error:
        return str(error)
    return None


@contextlib.contextmanager
def _without_log_banner() -> Iterator[None]:
    """Drop what Ray's C++ core writes to stderr while it starts: a line about its own log level. Errors are raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def num_actors(config: PoolConfig, num_units: int) -> int:
    """Actors to start: as asked, else one a CPU of the cluster, and never more than there are units."""
    if config.actors:
        return min(config.actors, num_units)
    if os.environ.get("RAY_ADDRESS"):
        return max(1, min(int(ray.cluster_resources().get("CPU", 1)), num_units))
    return max(1, min(os.cpu_count() or 1, num_units))


def units_at_once(actors: int) -> int:
    """Units of one Ray Data run: so many that starting and ending it takes little of its time."""
    return max(LEAST_UNITS_AT_ONCE, UNITS_AT_ONCE_PER_ACTOR * actors)


def num_cluster_gpus() -> int:
    """GPUs of the Ray cluster, which this joins."""
    start_ray()
    return int(ray.cluster_resources().get("GPU", 0))


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
    say(corpus.description)
    if corpus.ignored:
        reasons = Counter(ignored.reason for ignored in corpus.ignored)
        say(f"ignored {len(corpus.ignored)} files: " + ", ".join(f"{n} {reason}" for reason, n in reasons.items()))
    clips = clip_table(corpus.table if clips is None else clips)
    with ledger.lock() as lock:
        told, pending = ledger.plan(
            clips, kind=kind, config=plan_config, versions=versions, clips_per_shard=config.clips_per_shard
        )
        for line in told:
            say(line)
        ledger.storage.put("config.yaml", yaml.safe_dump(redacted_values(asdict(config)), sort_keys=False).encode())
        units = pending.without_copies()
        errors: list[str] = []
        if pending:
            ledger.reopen()
        if units:
            actor_arguments = {"ledger_url": ledger.storage.url, **arguments}
            where, actors = start_ray(), num_actors(config, len(units))
            say(f"{where}: {units.num_clips} clips in {len(units)} units on {actors} actors")
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
            say("nothing is missing: every input has a state")
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
        tell("summary", **summary, output=run.ledger.storage.url, exit_code=run.exit_code)
        return
    say(
        f"{summary['inputs']} inputs: {summary['done']} done, {summary['no_face']} without a face, "
        f"{summary['quarantined']} quarantined, {summary['retryable']} retryable"
    )
    for reason, count in summary["reasons"].items():
        say(f"    {count:6d}  {reason}")
    say(
        f"{summary['frames']} frames, {summary['examples']} examples; this run: {summary['processed']} clips in "
        f"{summary['seconds']:.1f} s ({summary['clips_per_second']:.2f} clips/s)"
    )
    if summary["peak_worker_memory_mib"]:
        say(f"peak memory of a worker: {summary['peak_worker_memory_mib']} MiB")
    for error in summary["errors"]:
        say(f"warning: a part of the run was tried again: {error}")
    if summary["quarantined"] or summary["retryable"]:
        say(f"warning: not every clip is done: python jobs/quarantine.py list {run.ledger.storage.url}")
    say(str(run.audit))
    say(f"output: {run.ledger.storage.url}")


def _summary(found: Snapshot, audit: Audit, *, kind: str, units: Units, seconds: float) -> dict[str, Any]:
    """Counts over the whole output, and of this run: `processed` clips got a state, `scored` ones a label."""
    ended_now = found.of_units(units.unit_ids)
    reasons = {f"{state}: {reason}": count for (state, reason), count in found.reasons().items()}
    peak_bytes = max((head["facts"].get("peak_child_memory_bytes", 0) for head in found.heads), default=0)
    return {
        "inputs": audit.num_inputs,
        **audit.num_by_state,
        "frames": found.total("num_frames"),
        "faceless_frames": found.total("num_faceless_frames"),
        "examples": found.total("num_examples"),
        "examples_dropped": found.total("num_examples_dropped"),
        "boxes_clamped": found.total("num_boxes_clamped"),
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


def run_units(
    ledger: Ledger,
    units: Units,
    *,
    actor: Callable[..., Actor],
    arguments: Mapping[str, Any],
    config: PoolConfig,
    num_gpus: float = 0.0,
) -> list[str]:
    """Run `actor` over every unit until each is committed; returns what went wrong on the way, a line each.

    actor: a class that is built with `arguments` and whose `run(unit)` commits the unit and returns its entry. An
    actor that dies takes its unit back to the queue at most 3 times a round; what is still uncommitted after 3 rounds
    stays pending, so a unit that kills every actor ends the run instead of looping for ever. Raises StorageError or
    UsageError, and gives up the units in flight, where an actor meets one: every other would meet it too.
    """
    errors: list[str] = []
    with _Display(units) as display:
        at_once = units_at_once(num_actors(config, len(units)))
        for start in range(0, len(units), at_once):
            waiting = units[start : start + at_once]
            for _ in range(ROUNDS):
                came = []
                try:
                    for entry in _stream(waiting, actor=actor, arguments=arguments, config=config, num_gpus=num_gpus):
                        if "stopped_by" in entry:
                            raise (StorageError if entry["stopped_by"] == "storage" else UsageError)(entry["message"])
                        display.add(entry)
                        came.append(entry["unit"])
                except RayError as error:
                    errors.append(_first_line(error))
                waiting = waiting.without(came)
                if waiting:  # A listing of 300,000 entries takes a minute: only where some may have been lost.
                    waiting = waiting.without(ledger.committed_units())
                if not waiting:
                    break
    return errors


def _stream(
    units: Sequence[Unit],
    *,
    actor: Callable[..., Actor],
    arguments: Mapping[str, Any],
    config: PoolConfig,
    num_gpus: float,
) -> Iterator[dict[str, Any]]:
    rows = [{"unit": _pack(unit)} for unit in units]
    pool = ActorPoolStrategy(size=num_actors(config, len(units)), max_tasks_in_flight_per_actor=1)
    with warnings.catch_warnings():
        # Ray 2.60 deprecates remote arguments without a name of their own, yet has none for these two, and without
        # them it retries for ever.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        entries = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _UnitActor,
            fn_constructor_args=(actor, dict(arguments)),
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=CPUS_PER_GPU_ACTOR if num_gpus else CPUS_PER_ACTOR,
            num_gpus=num_gpus or None,
            max_restarts=20,
            max_task_retries=3,
        )
    for row in entries.iter_rows():
        yield json.loads(row["entry"])


class _UnitActor:
    """What Ray Data holds: builds the actor's own work once and maps one unit to its entry, or to what must end the
    run: as an exception Ray would try it again."""

    def __init__(self, actor: Callable[..., Actor], arguments: dict[str, Any]) -> None:
        self._actor, self._arguments = actor, arguments
        self._metrics = UnitMetrics()

    @functools.cached_property
    def _work(self) -> Actor:
        # Not in __init__: what fails there, Ray restarts.
        return self._actor(**self._arguments)

    def __call__(self, batch: pa.Table) -> pa.Table:
        entries = [json.dumps(self._entry(_unpack(text))) for text in batch.column("unit").to_pylist()]
        return pa.table({"entry": pa.array(entries, pa.string())})

    def _entry(self, unit: Unit) -> dict[str, Any]:
        self._metrics.began()
        try:
            entry = self._work.run(unit)
        except StorageError as error:
            return {"stopped_by": "storage", "message": str(error)}
        except UsageError as error:
            return {"stopped_by": "usage", "message": str(error)}
        self._metrics.ended(entry)
        return entry


class _Display:
    """Progress: live in a terminal, an event a second as JSON, else a line every 30 s.

    Counts come from the entries, never from Ray. Rate and time left are this run's. The memory is the most that a
    decoding child has held.
    """

    def __init__(self, units: Units, terminal: Console | None = None) -> None:
        self._num_clips = units.num_parts
        self._what = "clips and segments" if units.num_segments else "clips"
        self._counts: Counter[str] = Counter()
        self._num_examples = 0
        self._peak_bytes = 0
        self._started = self._last_told = time.monotonic()
        terminal = terminal or Console(stderr=True)
        self._is_live = terminal.is_terminal and not is_json()
        self._words = "starting"
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn(self._what), TimeElapsedColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), TextColumn("left"), console=terminal)
        self._task = self._bar.add_task(self._what, total=self._num_clips)
        self._live = Live(console=terminal, get_renderable=self._picture, refresh_per_second=4)

    def __enter__(self) -> _Display:
        tell("start", clips=self._num_clips)
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._live.stop()

    def _picture(self) -> Group:
        return Group(self._bar, Text(self._words))

    def add(self, entry: Mapping[str, Any]) -> None:
        """Count one committed unit."""
        self._counts.update(str(row["state"]) for row in entry["outcomes"])
        self._num_examples += sum(row["num_examples"] for row in entry["outcomes"])
        self._peak_bytes = max(self._peak_bytes, entry["facts"].get("peak_child_memory_bytes", 0))
        done, now = self._counts.total(), time.monotonic()
        rate = done / max(now - self._started, 1e-9)
        seconds_left = (self._num_clips - done) / rate if rate else 0.0
        states = ", ".join(f"{count} {state}" for state, count in sorted(self._counts.items()))
        mib = self._peak_bytes / 2**20
        self._words = (
            f"{states}, {self._num_examples} examples, {rate:.2f} {self._what}/s, a worker {mib:.0f} MiB at most"
        )
        self._bar.update(self._task, completed=done)
        every = 1.0 if is_json() else LINE_SECONDS
        if self._is_live or (now - self._last_told < every and not (is_json() and done == self._num_clips)):
            return
        self._last_told = now
        if not is_json():
            say(f"{done} of {self._num_clips} {self._what}: {self._words}, about {seconds_left:.0f} s left")
        tell(
            "progress",
            clips=done,
            clips_in_all=self._num_clips,
            states=dict(self._counts),
            examples=self._num_examples,
            clips_per_second=round(rate, 3),
            seconds_left=round(seconds_left, 1),
            peak_worker_memory_mib=round(mib),
        )


def _pack(unit: Unit) -> str:
    return json.dumps({"unit_id": unit.unit_id, "clips": [asdict(clip) for clip in unit.clips]})


def _unpack(text: str) -> Unit:
    value = json.loads(text)
    return Unit(unit_id=value["unit_id"], clips=tuple(clip_of(clip) for clip in value["clips"]))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redacted(f"{type(error).__name__}: {lines[-1] if lines else ''}")[:500]
