"""Decoding: our way and decord's over the same clips, their seconds and the frames that are not those asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.table import Table

from benchmarks.config import BenchmarkConfig
from benchmarks.tables import shown, table
from benchmarks.timing import spread
from pipeline.corpus.read import read_corpus
from pipeline.records.clips import Clip
from pipeline.sandbox.limits import SandboxError
from pipeline.sandbox.supervisor import Sandbox
from pipeline.storage.remote import local_path
from pipeline.video.frames import Sampling
from pipeline.video.open import open_clip

EVERY = Sampling(frames_per_clip=None, every_frame=True)
# Mean levels of 255 by which another frame must be nearer: the two FFmpegs convert colours a little differently.
NEARER = 0.25
NUM_ENCODED = 3
ENCODINGS = {  # name: (codec, options)
    "xvid-b-frames.avi": ("mpeg4", {"b": "2000000", "g": "5", "bf": "2"}),
    "h264-open-groups.mp4": (
        "libx264",
        {"preset": "veryfast", "x264-params": "keyint=6:open-gop=1:bframes=2:b-adapt=0"},
    ),
    "h264.ts": ("libx264", {"preset": "veryfast", "g": "6"}),
}


def measure(clips: Sequence[Clip], folder: Path, *, config: BenchmarkConfig) -> dict[str, Any]:
    """Our decoding and decord's over the clips: CPU seconds, and frames that are not the one they should be.

    Each decode runs in the sandbox, since decord aborts on some files; the seconds are the child's, without the pipe.
    """
    if config.clips is None:
        clips = [*clips, *other_encodings(clips, folder)]
    num_frames = config.frames_per_clip
    with Sandbox(build_work, {}) as sandbox:
        rows, without_reference = _checked(clips, sandbox, num_frames=num_frames)
        # Only clips that every way can read are timed, so that the sums are of the same work.
        failed = {path for path, row in rows.items() if any("failed" in each for each in row["decoders"].values())}
        timed = [clip for clip in clips if clip.path in rows and clip.path not in failed]
        rounds = [_timed(timed, sandbox, num_frames=num_frames) for _ in range(config.rounds)]
    total_frames = sum(rows[clip.path]["num_frames"] for clip in timed)
    return {
        "num_clips": len(clips),
        "num_clips_timed": len(timed),
        "num_frames_timed": total_frames,
        "frames_per_clip": num_frames,
        "ways": {
            way: _summary(
                [row["decoders"][way] for row in rows.values()],
                [each[way] for each in rounds],
                num_clips=len(timed),
                num_frames=total_frames,
            )
            for way in _TIMED
        },
        "clips": rows,
        "without_reference": without_reference,
    }


def _checked(
    clips: Sequence[Clip], sandbox: Sandbox, *, num_frames: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """By path what each way made of a clip, and why a clip has no reference to hold that against."""
    rows: dict[str, dict[str, Any]] = {}
    without_reference: dict[str, str] = {}
    for clip in clips:
        try:
            reference = _decode(sandbox, "reference", clip, num_frames=num_frames)["small"]
        except SandboxError as error:
            without_reference[clip.path] = f"{error.reason}: {error.detail}"
            continue
        row: dict[str, Any] = {"num_frames": len(reference), "decoders": {}}
        rows[clip.path] = row
        for way in _TIMED:
            try:
                found = _decode(sandbox, way, clip, num_frames=num_frames)
            except SandboxError as error:
                row["decoders"][way] = {"failed": f"{error.reason}: {error.detail}"}
                continue
            pairs = zip(found["indexes"], found["small"], strict=True)
            wrong = sum(is_wrong(image, index, reference=reference) for index, image in pairs)
            chosen = {key: found[key] for key in ("decoder", "decoder_reason") if key in found}
            row["decoders"][way] = {"num_sampled": len(found["indexes"]), "num_wrong": wrong, **chosen}
    return rows, without_reference


def _timed(clips: Sequence[Clip], sandbox: Sandbox, *, num_frames: int) -> dict[str, dict[str, float]]:
    """The seconds of each way over all the clips, once."""
    seconds: dict[str, dict[str, float]] = {way: {"cpu_seconds": 0.0, "wall_seconds": 0.0} for way in _TIMED}
    for clip in clips:
        for way in _TIMED:
            found = _decode(sandbox, way, clip, num_frames=num_frames)
            for key in seconds[way]:
                seconds[way][key] += found[key]
    return seconds


def _summary(
    ended: Sequence[dict[str, Any]], taken: Sequence[dict[str, float]], *, num_clips: int, num_frames: int
) -> dict[str, Any]:
    """The figures of one way. ended: of each clip. taken: seconds of each round."""
    whole = [each for each in ended if "failed" not in each]
    per_clip = max(num_clips, 1) / 1000
    return {
        "cpu_ms_per_clip": spread(each["cpu_seconds"] / per_clip for each in taken),
        "wall_ms_per_clip": spread(each["wall_seconds"] / per_clip for each in taken),
        "cpu_ms_per_frame_of_clip": spread(1000 * each["cpu_seconds"] / max(num_frames, 1) for each in taken),
        "num_sampled": sum(each["num_sampled"] for each in whole),
        "num_wrong": sum(each["num_wrong"] for each in whole),
        "clips_with_wrong_frames": sum(each["num_wrong"] > 0 for each in whole),
        "clips_failed": len(ended) - len(whole),
    }


def is_wrong(image: np.ndarray, index: int, *, reference: np.ndarray) -> bool:
    """Whether a small image (h, w, 3), told to be frame `index` of the reference (N, h, w, 3), is another frame.

    A frame that equals its neighbours, as in a still scene, is not wrong.
    """
    if index >= len(reference) or image.shape != reference.shape[1:]:
        return True
    apart = np.abs(reference.astype(np.int16) - image.astype(np.int16)).mean(axis=(1, 2, 3))
    return bool(apart[index] > apart.min() + NEARER)


def other_encodings(clips: Sequence[Clip], folder: Path) -> list[Clip]:
    """The first clips again in common forms in which seeking by packets goes astray."""
    made = folder / "encodings"
    made.mkdir()
    for number, clip in enumerate(clips[:NUM_ENCODED]):
        frames = [frame.image for frame in open_clip(local_path(clip.url) or "", EVERY)]
        for name, (codec, options) in ENCODINGS.items():
            with av.open(str(made / f"{number}-{name}"), "w") as container:
                stream: Any = container.add_stream(codec, rate=20, options=options)
                stream.height, stream.width = frames[0].shape[:2]
                stream.pix_fmt = "yuv420p"
                for pixels in frames:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                container.mux(stream.encode(None))
    return list(read_corpus(str(made), split_fractions=None).clips)


def _small(image: np.ndarray) -> np.ndarray:
    return image[::8, ::8].copy()


def _decord_frames(path: Path, num_frames: int) -> tuple[list[int], list[np.ndarray], dict[str, Any]]:
    """As one would write it: ask decord for the frames by their numbers."""
    import decord

    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    indexes = Sampling(frames_per_clip=num_frames).choose(np.arange(len(reader))).tolist()
    return indexes, list(reader.get_batch(indexes).asnumpy()), {}


def _our_frames(path: Path, num_frames: int | None) -> tuple[list[int], list[np.ndarray], dict[str, Any]]:
    decoded = open_clip(path, Sampling(frames_per_clip=num_frames, every_frame=num_frames is None))
    frames = [(frame.frame_index, frame.image if num_frames else _small(frame.image)) for frame in decoded]
    told = {"decoder": decoded.report.decoder, "decoder_reason": decoded.report.decoder_reason}
    return [index for index, _ in frames], [image for _, image in frames], told


def _every_frame(path: Path, _num_frames: int) -> tuple[list[int], list[np.ndarray], dict[str, Any]]:
    return _our_frames(path, None)


EVERY_FRAME = "auto, every frame"
_TIMED = {"auto": _our_frames, "decord": _decord_frames, EVERY_FRAME: _every_frame}


def _sequential(path: Path) -> Iterator[np.ndarray]:
    """Every frame, small, by the plainest use of PyAV: the truth about which frame is which."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.best("video")
        for frame in container.decode(stream):
            yield _small(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


def build_work() -> Callable[..., Generator[Any, None, dict[str, Any]]]:
    """The sandboxed child's work: a task (way, path, num_frames) to the seconds it took and small copies of its
    frames."""

    def work(task: Mapping[str, Any], stage: Callable[[str], None]) -> Generator[Any, None, dict[str, Any]]:
        way, path, num_frames = task["way"], task["path"], task["num_frames"]
        stage(way)
        yield from ()
        if way == "reference":
            return {"small": np.stack(list(_sequential(path)))}
        cpu, wall = time.process_time(), time.perf_counter()
        indexes, images, told = _TIMED[way](path, num_frames)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        small = images if way == EVERY_FRAME else [_small(image) for image in images]
        return {"indexes": indexes, "small": small, "cpu_seconds": cpu, "wall_seconds": wall, **told}

    return work


def _decode(sandbox: Sandbox, way: str, clip: Clip, *, num_frames: int) -> dict[str, Any]:
    return sandbox.run({"way": way, "path": Path(local_path(clip.url) or ""), "num_frames": num_frames})[1]


def tables(part: Mapping[str, Any]) -> list[Table]:
    """The decoders, a row each; and decord's wrong frames by what auto says of the clip."""
    return [_way_table(part), _reason_table(part)]


def _way_table(part: Mapping[str, Any]) -> Table:
    rows = [
        [
            way,
            shown(row["cpu_ms_per_clip"], 1),
            shown(row["wall_ms_per_clip"], 1),
            f"{row['num_wrong']} of {row['num_sampled']}",
            str(row["clips_with_wrong_frames"]),
            str(row["clips_failed"]),
        ]
        for way, row in part["ways"].items()
    ]
    columns = ("decoder", "CPU ms a clip", "wall ms a clip", "wrong frames", "clips with wrong", "clips failed")
    title = (
        f"Decode: {part['frames_per_clip']} frames of {part['num_clips']} clips; timed on {part['num_clips_timed']} "
        f"({part['num_frames_timed']} frames)"
    )
    return table(title, columns, rows)


def _reason_table(part: Mapping[str, Any]) -> Table:
    """decord's wrong frames by what auto says of the clip."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in part["clips"].values():
        reason = row["decoders"]["auto"].get("decoder_reason", "failed")
        groups.setdefault(reason, []).append(row["decoders"]["decord"])
    rows = []
    for reason, ended in groups.items():
        wrong, sampled = (sum(each.get(key, 0) for each in ended) for key in ("num_wrong", "num_sampled"))
        rows.append([reason, str(len(ended)), f"{wrong} of {sampled}", str(sum("failed" in each for each in ended))])
    columns = ("what auto says of the clip", "clips", "decord's wrong frames", "decord failed")
    return table("Decode: why auto chose as it did", columns, rows)
