"""What one would write today with Daft or with Ray Data alone: `python peer.py daft|ray PATHS OUTPUT NUM_FRAMES`.

PATHS: a file of video paths, a line each. Both use this project's decoding, detector and crops, on two processes, and
write Parquet; neither knows of a broken file, of a run before, or of what is missing. `peers` measures them.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.poison import CRASH
from pipeline.faces.landmarks import Landmarks
from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.detectors import detect_of, resolved
from pipeline.preprocess.examples import decoded, extracted
from pipeline.records.clips import Clip

NUM_PROCESSES = 2


class Faces:
    """Paths in, faces out: a row for each sampled frame with a face."""

    def __init__(self, num_frames: int) -> None:
        torch.set_num_threads(1)
        self._config = resolved(ExtractConfig(frames_per_clip=num_frames))
        self._detect, self._landmarks = detect_of(self._config, device="cpu"), Landmarks()

    def rows(self, path: str) -> list[dict[str, Any]]:
        """Name of the clip, index of the frame, box, and both crops as JPEG. Raises VideoError."""
        name = Path(path).name
        if CRASH in name:  # No file is known that kills a decoder: a fault of memory, as one would.
            ctypes.string_at(0)
        clip = Clip(clip_id=name, path=name, url=path, size_bytes=0, content_id="", split=None)
        task = {"clip": clip, "path": path, "boxes": []}

        def stage(_: str) -> None:
            pass

        examples = extracted(
            task,
            self._config,
            decode=lambda: decoded(task, self._config, stage),
            detect=self._detect,
            landmarks=self._landmarks,
            stage=stage,
            batch_px=1,
        )
        return [
            {
                "path": name,
                "frame_index": each.frame_index,
                "box": [each.box.x_min, each.box.y_min, each.box.x_max, each.box.y_max],
                "face_jpeg": each.face_jpeg,
                "context_jpeg": each.context_jpeg,
            }
            for each in examples
        ]


def with_daft(paths: list[str], output: str, num_frames: int) -> None:
    """A class of Daft's, two processes of it."""
    import daft  # pyright: ignore[reportMissingImports] - of the extra [peers]

    kind = daft.DataType
    row = {"path": kind.string(), "frame_index": kind.int64(), "box": kind.list(kind.int64())}
    images = {"face_jpeg": kind.binary(), "context_jpeg": kind.binary()}

    @daft.cls(max_concurrency=NUM_PROCESSES, use_process=True)
    class OfDaft:
        def __init__(self, num_frames: int) -> None:
            self._faces = Faces(num_frames)

        @daft.method(return_dtype=kind.list(kind.struct({**row, **images})))
        def rows(self, path: str) -> list[dict[str, Any]]:
            return self._faces.rows(path)

    faces: Any = OfDaft(num_frames)  # Whose methods make expressions of columns.
    # In one batch all would be done by one of the processes.
    table = daft.from_pydict({"path": paths}).into_batches(4)
    table = table.select(faces.rows(daft.col("path")).alias("face")).explode("face")
    table.select(*(daft.col("face").get(name).alias(name) for name in (*row, *images))).write_parquet(output)


def with_ray(paths: list[str], output: str, num_frames: int) -> None:
    """Ray Data: a class in `flat_map`, two actors."""
    import ray

    class OfRay:
        def __init__(self, num_frames: int) -> None:
            self._faces = Faces(num_frames)

        def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
            return self._faces.rows(row["path"])

    ray.init(include_dashboard=False, log_to_driver=False, num_cpus=4)
    rows = ray.data.from_items([{"path": path} for path in paths])
    found = rows.flat_map(OfRay, fn_constructor_args=(num_frames,), concurrency=NUM_PROCESSES, num_cpus=1)
    found.write_parquet(output)


def main() -> None:
    name, listed, output, num_frames = sys.argv[1:]
    paths = Path(listed).read_text().splitlines()
    {"daft": with_daft, "ray": with_ray}[name](paths, output, int(num_frames))


if __name__ == "__main__":
    main()
