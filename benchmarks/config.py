"""What a study is told: the flags of `jobs/benchmark.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """What `benchmarks/gpu.py` runs. device: cpu, cuda or cuda:N. small: sizes at which it takes a minute on a CPU.
    folder: for what the parts write."""

    device: str
    small: bool
    folder: Path


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measures detection, decoding and preprocess beside what they replace, on this machine."""

    study: str
    """detect (one frame on one core), decode (clips), preprocess (the whole way, and Ray's share), or all, which is
    these three; parity (our boxes and dlib's), recall (faces found by their size), looks (detection in some frames or
    around the last faces), poison (what broken clips cost), soak (memory over many clips), calls (changes of file on
    the way of a clip)."""
    output: str = "build/benchmark"
    """Folder of benchmark.json; a path or any fsspec URL."""
    clips: str | None = None
    """Videos to measure on (folder, manifest, glob or file; local); default: a small SYNTHETIC corpus of 712x400."""
    rounds: int = 3
    """Times that every contender runs (count)."""
    frames_per_clip: int = 8
    """Frames sampled from each clip (count)."""
    num_clips: int | None = None
    """Clips to measure on (count); default: at most 20 for detect and decode, 48 for preprocess, 400 for poison, 2000
    for soak, which take the same clips again under other names where there are fewer."""
    clips_per_shard: int = 8
    """Clips in one unit of work of Ray (count); with fewer than 3 units an actor there is no steady state."""
    baseline_clips: int = 4
    """Clips that the baseline script does in a round (count); dlib's own CNN takes 2 s a frame."""
    detector_precision: str = "auto"
    """Arithmetic of dlib-cnn in preprocess: fp32, bf16, or auto (bf16 where the processor has it)."""
    poison_shares: tuple[float, ...] = (0.0, 0.01, 0.05, 0.2)
    """Shares of poison among the clips, one run each (from 0 to 1); the others are compared with the first."""
    poison_timeout: float = 5.0
    """Longest time without progress on one clip before it is killed, in the poison study (seconds)."""
    sample_seconds: float = 1.0
    """Time between two looks at the memory, in the soak study (seconds)."""

    def __post_init__(self) -> None:
        for name in ("rounds", "frames_per_clip", "num_clips", "clips_per_shard", "baseline_clips"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; give 1 or more")
