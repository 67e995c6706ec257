"""Units of clips through a pool of Ray actors: starts Ray, keeps the actors busy, counts, and bounds every retry.

In go a ledger, its pending units and the actor that does one unit; out come the entries that the actors commit. One
Ray Data row is one unit, so whatever Ray loses or repeats is one whole unit that the ledger knows by name.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray._raylet
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.units import Unit, Units
from pipeline.records.clips import clip_of
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.progress import ProgressDisplay
from pipeline.runtime.telemetry import UnitMetrics
from pipeline.sandbox.limits import SandboxLimits
from pipeline.storage.redaction import redacted
from pipeline.storage.retry import StorageError

ROUNDS = 3


# Units that one Ray Data run is given, after which all actors wait for the last and new ones start. Each is a block,
# which costs the driver 2 ms before the first of them is begun.
MIN_UNITS_AT_ONCE, UNITS_AT_ONCE_PER_ACTOR = 2000, 64


# Logical CPUs that an actor asks Ray for.
CPUS_PER_ACTOR, CPUS_PER_GPU_ACTOR = 0.5, 0.25


class Actor(Protocol):
    """What does one unit: commits it to the ledger and returns the entry that stands."""

    def run(self, unit: Unit) -> dict[str, Any]: ...


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
    def limits(self) -> SandboxLimits:
        return SandboxLimits(timeout_seconds=self.clip_timeout, memory_bytes=self.max_worker_memory * 2**20)


def num_actors(config: PoolConfig, num_units: int) -> int:
    """Actors to start: as asked, else one a CPU of the cluster, and never more than there are units."""
    if config.actors:
        return min(config.actors, num_units)
    if os.environ.get("RAY_ADDRESS"):
        return max(1, min(int(ray.cluster_resources().get("CPU", 1)), num_units))
    return max(1, min(os.cpu_count() or 1, num_units))


def units_at_once(actors: int) -> int:
    """Units of one Ray Data run: so many that starting and ending it takes little of its time."""
    return max(MIN_UNITS_AT_ONCE, UNITS_AT_ONCE_PER_ACTOR * actors)


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
    with ProgressDisplay(units) as display:
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


def _pack(unit: Unit) -> str:
    return json.dumps({"unit_id": unit.unit_id, "clips": [asdict(clip) for clip in unit.clips]})


def _unpack(text: str) -> Unit:
    value = json.loads(text)
    return Unit(unit_id=value["unit_id"], clips=tuple(clip_of(clip) for clip in value["clips"]))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redacted(f"{type(error).__name__}: {lines[-1] if lines else ''}")[:500]
