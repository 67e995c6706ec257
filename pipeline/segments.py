"""Clips in; the same clips out, the long ones cut into segments that are units of work of their own.

A segment is a Clip with a part of the time range and an id of its own (`records.segment_id`). Ledger and actors treat
it as any clip; examples carry the id of the whole clip, and what people read has one outcome for it. What a header
claims decides where a clip is cut and never what is read: the last segment is open-ended, and one past the true end is
empty.
"""

from __future__ import annotations

import errno
import math
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from pipeline.archives import is_member
from pipeline.corpus import local_path
from pipeline.fence import Fence, FenceError, FenceLimits
from pipeline.records import Clip, clip_of, clip_table, segment_id
from pipeline.storage import RangedFile, StorageError, open_filesystem
from pipeline.video import claimed_range

pc: Any = pyarrow.compute  # Its functions are made when it is imported, where no type checker sees them.
MIN_BYTES = 2**20  # a smaller file is not asked for its length: a minute of video has more
MAX_SEGMENTS = 10_000
END_BYTES = 2**24  # of a remote file, what is read of its beginning and end: an index of 16 MiB is one of 10 hours


def segmented(
    clips: pa.Table,
    known_ids: pa.ChunkedArray | pa.Array,
    *,
    segment_seconds: float,
    sample_fps: float | None,
    limits: FenceLimits,
) -> pa.Table:
    """The clips (rows of CLIP_SCHEMA), and in place of each that claims to be longer than `segment_seconds` its
    segments.

    known_ids: of clips that a plan has, which stay whole here as the plan keeps its cut, and are not opened.
    sample_fps: the rate of sampling, so that each segment begins where the whole clip would be sampled; None: every
    frame. Clips with a time range of their own, images, members of archives, copies and files whose length cannot be
    told stay whole too. Raises StorageError where the store of a clip fails.
    """
    is_known = pc.is_in(clips["clip_id"], value_set=_whole(known_ids))
    may_be_long = pc.and_(pc.greater_equal(clips["size_bytes"], MIN_BYTES), pc.invert(is_known))
    for name in ("start_pts_seconds", "end_pts_seconds", "same_as"):
        may_be_long = pc.and_(may_be_long, pc.is_null(clips[name]))
    parts: list[Clip] = []
    with Fence(build_probe, {}, limits=limits, preload=("av",)) as fence:
        for row in clips.filter(may_be_long).to_pylist():
            clip = clip_of(row)
            claimed = None if is_member(clip.url) else _claimed(clip, fence)
            parts += [clip] if claimed is None else cut(
                clip, *claimed, segment_seconds=segment_seconds, sample_fps=sample_fps
            )  # fmt: skip
    return pa.concat_tables([clips.filter(pc.invert(may_be_long)), clip_table(parts)])


def cut(
    clip: Clip, start_pts_seconds: float, end_pts_seconds: float, *, segment_seconds: float, sample_fps: float | None
) -> list[Clip]:
    """The segments of a clip that claims to be shown from `start_pts_seconds` to `end_pts_seconds`."""
    length = segment_seconds if sample_fps is None else math.ceil(segment_seconds * sample_fps - 1e-9) / sample_fps
    num_segments = min(MAX_SEGMENTS, math.ceil((end_pts_seconds - start_pts_seconds) / length - 1e-9))
    if num_segments < 2:
        return [clip]
    edges = [start_pts_seconds + number * length for number in range(1, num_segments)]
    return [
        replace(clip, clip_id=segment_id(clip.clip_id, number), start_pts_seconds=start, end_pts_seconds=end)
        for number, (start, end) in enumerate(zip([None, *edges], [*edges, None], strict=True))
    ]


def build_probe() -> Callable[..., Generator[None, None, tuple[float, float] | None]]:
    """The fenced child's work: a local path to the first and last time that its header claims (seconds), or None."""

    def work(task: dict[str, Any], stage: Callable[[str], None]) -> Generator[None, None, tuple[float, float] | None]:
        stage("open")
        return claimed_range(task["path"])
        yield

    return work


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _claimed(clip: Clip, fence: Fence) -> tuple[float, float] | None:
    try:
        with _ends(clip) as path:
            return fence.run({"path": path})[1]
    except (FenceError, FileNotFoundError, PermissionError):
        return None  # Whatever it is, the actor that reads the whole clip will say it.
    except StorageError as error:
        if error.errno != errno.EACCES:  # This one may be forbidden and the next be not.
            raise
        return None


@contextmanager
def _ends(clip: Clip) -> Iterator[Path]:
    """The clip as a local file; of a remote one only the beginning and the end, with a hole between."""
    if (local := local_path(clip.url)) is not None:
        yield Path(local)
        return
    filesystem, place = open_filesystem(clip.url)
    source = RangedFile(
        filesystem, place, what=f"{clip.url} cannot be read", size_bytes=clip.size_bytes, block_bytes=END_BYTES
    )
    with tempfile.NamedTemporaryFile() as file:
        for start in sorted({0, max(0, clip.size_bytes - END_BYTES)}):
            source.seek(start)
            file.seek(start)
            file.write(source.read(END_BYTES))
        file.flush()
        yield Path(file.name)
