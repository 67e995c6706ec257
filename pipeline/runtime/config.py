"""Settings of a run on clips that change nothing in its output: how the work is spread and bounded, what is shown."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pipeline.records.parts import parse_shard
from pipeline.records.settings import Setting

if TYPE_CHECKING:
    from pipeline.sandbox.limits import SandboxLimits


# Of megabytes, days, clips and actors: more overflows what counts them.
MAX_SETTING = 2**24
MAX_CLIPS_OF_UNIT, UNITS_PER_ACTOR = 32, 4


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """How the work is spread and bounded; it changes nothing in the output."""

    actors: Annotated[int, Setting("work", common=True)] = 0
    """Actors at work (count); 0: one for each CPU of the cluster."""
    no_ray: Annotated[bool, Setting("machine")] = False
    """Work in --actors threads of this process (0: one a CPU), whatever RAY_ADDRESS says: no Ray starts, no port opens.
    Clips that are one unit are done so in any case, unless RAY_ADDRESS names a cluster."""
    clips_per_shard: Annotated[int, Setting("work")] = 0
    """Clips in one unit of work, which is one shard (count); 0: so many that each actor gets four units, at most 32."""
    clip_timeout: Annotated[float, Setting("work")] = 120.0
    """Longest time without progress on one clip before it is killed (seconds)."""
    max_clip_seconds: Annotated[float, Setting("work")] = 21_600.0
    """Time for one clip or segment in all, its tries and its detection included (seconds). What was decoded by then is
    kept where --min-decode-integrity allows it."""
    max_clip_gigapixels: Annotated[float, Setting("work")] = 4000.0
    """Pixels decoded of one clip or segment in all (10^9): three hours of 4K at 25 frames a second are 2,240."""
    max_worker_memory: Annotated[int, Setting("machine")] = 4096
    """Resident memory of one worker before the clip in it is killed (MiB)."""
    driver_memory: Annotated[int, Setting("machine")] = 1024
    """Memory for planning and auditing in this process, about (MiB); what does not fit lies on its temporary disk."""
    detector_device: Annotated[str, Setting("machine")] = "auto"
    """Where faces are detected: auto (cuda if the Ray cluster has a GPU and --detector runs there), cpu, cuda."""
    max_quarantined: Annotated[int | None, Setting("work", common=True)] = None
    """Exit with code 3 if more clips than this are quarantined or retryable (count); default: no limit."""
    retention_days: Annotated[int | None, Setting("work")] = None
    """Forget, before anything else, clips that were taken into this output longer ago than this (days), as
    jobs/forget.py --older-than does; default: none."""
    shard: Annotated[str | None, Setting("input")] = None
    """Part of the input that this run takes, by a hash of each path, as 3/16; its output is --output with -03-of-16
    behind it. Each part has a driver of its own; what reads outputs reads 'data-*' as one."""
    no_thumbnails: Annotated[bool, Setting("pages", common=True)] = False
    """Put no picture of a person into report.html, nor beside it."""
    blur_faces: Annotated[bool, Setting("pages", common=True)] = False
    """Blur the pictures of report.html beyond recognition: faces most, and all around them."""
    json_logs: Annotated[bool, Setting("machine", common=True)] = False
    """For machines: nothing but one JSON object a line on stderr (event, time, counts)."""
    force_new: Annotated[bool, Setting("work")] = False
    """If the output holds a run of another config, write to a new folder beside it instead of refusing."""

    def __post_init__(self) -> None:
        least = {
            "actors": 0,
            "clips_per_shard": 0,
            "max_worker_memory": 64,
            "driver_memory": 256,
            "max_quarantined": 0,
            "retention_days": 1,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; give {minimum} or more")
            if value is not None and value > MAX_SETTING:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; give {MAX_SETTING} at most")
        if self.detector_device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"--detector-device is {self.detector_device!r}; give one of auto, cpu, cuda")
        if self.clip_timeout <= 0:
            raise ValueError(f"--clip-timeout is {self.clip_timeout}; give more than 0 seconds")
        if not self.max_clip_seconds > 0:
            raise ValueError(f"--max-clip-seconds is {self.max_clip_seconds}; give more than 0 seconds")
        if not self.max_clip_gigapixels > 0:
            raise ValueError(f"--max-clip-gigapixels is {self.max_clip_gigapixels}; give more than 0")

    def clips_of_unit(self, num_clips: int) -> int:
        """How many of so many clips make a unit: progress is told, and a core is free for the rest, unit by unit.

        num_clips: those that actors will do; of none (copies) units may be large.
        """
        if self.clips_per_shard or not num_clips:
            return self.clips_per_shard or MAX_CLIPS_OF_UNIT
        return max(1, min(MAX_CLIPS_OF_UNIT, num_clips // (UNITS_PER_ACTOR * num_actors(self, num_clips))))

    def tail_clips(self, num_clips: int) -> int:
        """How many of so many clips, the last ones, make smaller units: a unit's for each actor, so that no actor waits
        for another's whole unit at the end. None where the user says how many clips a unit has."""
        if self.clips_per_shard or not num_clips:
            return 0
        return self.clips_of_unit(num_clips) * num_actors(self, num_clips)

    @property
    def joins_cluster(self) -> bool:
        """Whether RAY_ADDRESS names the Ray to work on."""
        return not self.no_ray and bool(os.environ.get("RAY_ADDRESS"))

    @property
    def part(self) -> tuple[int, int] | None:
        """--shard as number and count."""
        return None if self.shard is None else parse_shard(self.shard)

    @property
    def limits(self) -> SandboxLimits:
        """What a sandboxed child may use."""
        from pipeline.sandbox.limits import SandboxLimits  # The help of a job reads this module.

        return SandboxLimits(
            timeout_seconds=self.clip_timeout,
            memory_bytes=self.max_worker_memory * 2**20,
            clip_seconds=self.max_clip_seconds,
            clip_pixels=self.max_clip_gigapixels * 1e9,
        )


def num_actors(config: PoolConfig, num_units: int) -> int:
    """Actors to start: as asked, else one a CPU of the cluster that was joined, and never more than there are units."""
    if config.actors:
        return min(config.actors, num_units)
    if config.joins_cluster:
        import ray  # A local run that misses nothing does without.

        return max(1, min(int(ray.cluster_resources().get("CPU", 1)), num_units))
    return max(1, min(os.cpu_count() or 1, num_units))
