"""What a study is told: the flags of `jobs/benchmark.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measures detection, decoding and preprocess beside what they replace, on this machine."""

    study: str
    """detect (one frame on one core), decode (clips), preprocess (the whole way, and Ray's share), or all."""
    output: str = "build/benchmark"
    """Folder of benchmark.json; a path or any fsspec URL."""
    clips: str | None = None
    """Videos to measure on (folder, manifest, glob or file; local); default: a small SYNTHETIC corpus of 712x400."""
    rounds: int = 3
    """Times that every contender runs (count)."""
    frames_per_clip: int = 8
    """Frames sampled from each clip (count)."""
    num_clips: int | None = None
    """Clips to measure on (count); default: at most 20 for detect and decode, 48 for preprocess, which takes the same
    clips again under other names where there are fewer."""
    clips_per_shard: int = 8
    """Clips in one unit of work of preprocess (count); with fewer than 3 units an actor there is no steady state."""
    baseline_clips: int = 4
    """Clips that the baseline script does in a round (count); dlib's own CNN takes 2 s a frame."""
    detector_precision: str = "auto"
    """Arithmetic of dlib-cnn in preprocess: fp32, bf16, or auto (bf16 where the processor has it)."""

    def __post_init__(self) -> None:
        for name in ("rounds", "frames_per_clip", "num_clips", "clips_per_shard", "baseline_clips"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; give 1 or more")
