"""Clips in; the same clips out, the long ones cut into segments that are units of work of their own.

A segment is a Clip with a part of the time range and an id of its own (`records.segment_id`). Ledger and actors treat
it as any clip; examples carry the id of the whole clip, and what people read has one outcome for it. What a header
claims decides where a clip is cut and never what is read: the last segment is open-ended, and one past the true end is
empty. The same holds for shots, where cuts move to them.
"""

from __future__ import annotations

import errno
import math
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from pipeline.preprocess.local_copies import for_a_child
from pipeline.records.arrow import combined, pc
from pipeline.records.clips import Clip, clip_of, clip_table, segment_id
from pipeline.sandbox.limits import SandboxError, SandboxLimits
from pipeline.sandbox.supervisor import Sandbox
from pipeline.storage.archives.members import is_member
from pipeline.storage.remote import RangedFile, fetch, local_path, open_filesystem
from pipeline.storage.retry import ContentChangedError, StorageError
from pipeline.storage.scratch import scratch
from pipeline.video.open import claimed_range, frames_of_spans
from pipeline.video.shots import CutFinder

MIN_BYTES = 2**20  # a smaller file is not asked for its length: a minute of video has more


MAX_SEGMENTS = 10_000


SHOT_WINDOW_SECONDS = 10.0


PAST_SECONDS = 0.5  # read past a cut: that a shot begins is known some frames later


END_BYTES = 2**24  # of a remote file, what is read of its beginning and end: an index of 16 MiB is one of 10 hours


def segmented(
    clips: pa.Table,
    known_ids: pa.ChunkedArray | pa.Array,
    *,
    segment_seconds: float,
    sample_fps: float | None,
    limits: SandboxLimits,
    at_shots: bool = False,
    stream: int | None = None,
) -> pa.Table:
    """The clips (rows of CLIP_SCHEMA), and in place of each that claims to be longer than `segment_seconds` its
    segments.

    known_ids: of clips that a plan has, which stay whole here as the plan keeps its cut, and are not opened.
    sample_fps: the rate of sampling, so that each segment begins where the whole clip would be sampled; None: every
    frame. at_shots: cut where a shot begins, if one does shortly before. stream: the video stream that is read. Clips
    with a time range of their own, images, members of archives, copies and files whose length cannot be told stay
    whole too. Raises StorageError where the store of a clip fails.
    """
    is_known = pc.is_in(clips["clip_id"], value_set=combined(known_ids))
    may_be_long = pc.and_(pc.greater_equal(clips["size_bytes"], MIN_BYTES), pc.invert(is_known))
    for name in ("start_pts_seconds", "end_pts_seconds", "same_as"):
        may_be_long = pc.and_(may_be_long, pc.is_null(clips[name]))
    parts: list[Clip] = []
    with (
        scratch("probe") as scratch_path,
        Sandbox(build_probe, {}, limits=limits, preload=("av",), readable=[folder := str(scratch_path)]) as sandbox,
    ):
        for row in clips.filter(may_be_long).to_pylist():
            clip = clip_of(row)
            claimed: Any = (
                None
                if is_member(clip.url)
                else _ask_child(clip, sandbox, partial(_ends, copies=folder), {"stream": stream})
            )
            if not _are_times(claimed, 2):
                parts.append(clip)
                continue
            edges = edges_of(*claimed, segment_seconds=segment_seconds, sample_fps=sample_fps)
            if at_shots and edges:
                task = {"edges": edges, "window_seconds": _window(segment_seconds), "stream": stream}
                shots: Any = _ask_child(clip, sandbox, partial(_all_of, copies=folder), task)
                if not _are_times(shots, len(edges), may_be_none=True):
                    shots = [None] * len(edges)
                edges = moved(edges, shots, start_pts_seconds=claimed[0], sample_fps=sample_fps)
            parts += cut(clip, edges)
    return pa.concat_tables([clips.filter(pc.invert(may_be_long)), clip_table(parts)])


def edges_of(
    start_pts_seconds: float, end_pts_seconds: float, *, segment_seconds: float, sample_fps: float | None
) -> list[float]:
    """Where a clip that claims to be shown from `start_pts_seconds` to `end_pts_seconds` is cut; [] if nowhere."""
    length = segment_seconds if sample_fps is None else math.ceil(segment_seconds * sample_fps - 1e-9) / sample_fps
    num_segments = min(MAX_SEGMENTS, math.ceil((end_pts_seconds - start_pts_seconds) / length - 1e-9))
    return [start_pts_seconds + number * length for number in range(1, num_segments)]


def moved(
    edges: Sequence[float], shots: Sequence[float | None], *, start_pts_seconds: float, sample_fps: float | None
) -> list[float]:
    """The edges, each at the first time from its shot on at which the whole clip is sampled.

    shots: for each edge the beginning of a shot before it, or None.
    """

    def sampled_from(shot: float) -> float:
        if sample_fps is None:
            return shot
        return start_pts_seconds + math.ceil((shot - start_pts_seconds) * sample_fps - 1e-6) / sample_fps

    return [edge if shot is None else min(edge, sampled_from(shot)) for edge, shot in zip(edges, shots, strict=True)]


def cut(clip: Clip, edges: Sequence[float]) -> list[Clip]:
    """The segments of a clip between these times; the clip itself if there are none."""
    if not edges:
        return [clip]
    return [
        replace(clip, clip_id=segment_id(clip.clip_id, number), start_pts_seconds=start, end_pts_seconds=end)
        for number, (start, end) in enumerate(zip([None, *edges], [*edges, None], strict=True))
    ]


def build_probe() -> Callable[..., Generator[None, None, Any]]:
    """The sandboxed child's work: a local path to the first and last time that its header claims (seconds), or None.

    With `edges` and `window_seconds`: to the beginning of the last shot in the window before each edge, or None.
    """

    def work(task: dict[str, Any], stage: Callable[[str], None]) -> Generator[None, None, Any]:
        yield from ()  # It has a result, and no items.
        stage("open")
        if "edges" not in task:
            return claimed_range(task["path"], stream=task["stream"])
        spans = [(edge - task["window_seconds"], edge) for edge in task["edges"]]
        found: list[float | None] = []
        looks = frames_of_spans(task["path"], spans, past_seconds=PAST_SECONDS, stream=task["stream"])
        for (_, edge), frames in zip(spans, looks, strict=True):
            stage("shots")
            found.append(max((time for time in shots_of(frames) if time <= edge), default=None))
        return found

    return work


def shots_of(frames: Iterable[tuple[float, np.ndarray]]) -> list[float]:
    """The times at which shots begin, of small pictures (`small_picture`) with their times."""
    finder, times = CutFinder(), []
    for number, (pts_seconds, picture) in enumerate(frames):
        times.append(pts_seconds)
        finder.add(number, picture)
    return [times[number] for number in finder.cuts()]


def _window(segment_seconds: float) -> float:
    """How long before a cut a shot may begin that it moves to: a segment keeps half of its length at least."""
    return min(SHOT_WINDOW_SECONDS, segment_seconds / 2)


def _are_times(told: Any, count: int, *, may_be_none: bool = False) -> bool:
    """Whether a child told so many times."""
    if not isinstance(told, list) or len(told) != count:
        return False
    return all((may_be_none and each is None) or (isinstance(each, float) and math.isfinite(each)) for each in told)


def _ask_child(
    clip: Clip, sandbox: Sandbox, local: Callable[[Clip], AbstractContextManager[Path]], task: dict[str, Any]
) -> Any:
    """What the child says of the clip, of which `local` gives what it needs; None where it cannot tell."""
    if (place := local_path(clip.url)) is not None:
        sandbox.let_read(place, name=clip.path)
    try:
        with local(clip) as path:
            return sandbox.run({"path": path, **task})[1]
    except (SandboxError, FileNotFoundError, PermissionError, ContentChangedError):
        return None  # Whatever it is, the actor that reads the whole clip will say it.
    except StorageError as error:
        if error.errno != errno.EACCES:  # This one may be forbidden and the next be not.
            raise
        return None


@contextmanager
def _all_of(clip: Clip, *, copies: str) -> Iterator[Path]:
    """The clip as a local file; a remote one is copied into the folder `copies`."""
    if (local := local_path(clip.url)) is not None:
        with for_a_child(local, copies=copies) as path:
            yield path
        return
    with tempfile.TemporaryDirectory(dir=copies) as folder:
        fetch(clip.url, Path(folder) / "clip", size_bytes=clip.size_bytes, content_id=clip.content_id)
        yield Path(folder) / "clip"


@contextmanager
def _ends(clip: Clip, *, copies: str) -> Iterator[Path]:
    """The clip as a local file; of a remote one only the beginning and the end, with a hole between."""
    if (local := local_path(clip.url)) is not None:
        with for_a_child(local, copies=copies) as path:
            yield path
        return
    filesystem, place = open_filesystem(clip.url, is_listed=True)
    source = RangedFile(
        filesystem,
        place,
        what=f"{clip.url} cannot be read",
        size_bytes=clip.size_bytes,
        block_bytes=END_BYTES,
        content_id=clip.content_id,
    )
    with tempfile.NamedTemporaryFile(dir=copies) as file:
        for start in sorted({0, max(0, clip.size_bytes - END_BYTES)}):
            source.seek(start)
            file.seek(start)
            file.write(source.read(END_BYTES))
        file.flush()
        yield Path(file.name)
