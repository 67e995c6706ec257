"""One clip in, its examples and its outcome out: decode, detect and crop.

`ClipExtractor` runs in an actor and holds the fence. In the fenced child, the only place where foreign bytes meet a
decoder, runs all of it (`build_work`) or, where a detector that many actors share is given, the decoding alone
(`build_decoding`). Either way `extracted` chooses frames, boxes and crops. What the child answers is checked before it
is believed (`example_of`, `frame_of`, `facts_of`): it names neither its clip nor the label.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import psutil

from pipeline.archives import ArchiveError, MemberReader, archive_of, is_member
from pipeline.corpus import local_path
from pipeline.crops import crop_face, encode_image, make_context, select_faces
from pipeline.detection import DETECTORS, PRECISIONS, Detector, build_detector
from pipeline.detection.between import faces_between
from pipeline.detection.boxes import read_boxes
from pipeline.fence import Fence, FenceError, FenceLimits, FenceStartError
from pipeline.messages import printable
from pipeline.records import Box, Clip, Example, Face, Outcome, State, whole_id
from pipeline.storage import RangedFile, StorageError, StoreLostError, fetch, open_filesystem, redacted
from pipeline.video import DECODERS, MAX_PIXELS, DecodeReport, Frame, Sampling, open_clip, read_image

SCRATCH_PREFIX = "emotion-pipeline-clip-"
MOST_TRIES = 2
MOST_TRIES_KILLED = 3
# Clips in a row that a store did not give after all tries, half a minute each: then it is down, not the clip.
MOST_UNREACHED = 8
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
RETRY_DETECTORS = ("dlib-cnn", "dlib-cnn-reference")
MOST_DETECT_EVERY = 32
# Frames that go to a shared detector together: 29 of 712x400, one of 3840x2160, 25 MB in any case.
SHARED_BATCH_PX = 2**23

# What a fenced child tells: its fields and their types.
EXAMPLE_FIELDS = {
    **dict.fromkeys(("frame_index", "face_index", "frame_width", "frame_height"), int),
    **dict.fromkeys(("pts_seconds", "face_score"), float),
    **dict.fromkeys(("face_jpeg", "context_jpeg"), bytes),
}
FACT_FIELDS = {
    **dict.fromkeys(("num_frames", "num_faceless_frames", "num_boxes_clamped", "num_examples"), int),
    **dict.fromkeys(("decoder", "decoder_reason", "detail"), str),
    "decode_integrity": float,
}
REPORT_FIELDS = {
    **dict.fromkeys(("num_frames", "num_decoded", "num_corrupt", "num_repeated", "num_missing"), int),
    **dict.fromkeys(("decoder", "decoder_reason", "container", "codec"), str),
    "decode_integrity": float,
}
MOST_LETTERS = 2000
IMAGE_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n")

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What decides which examples a clip gives; a model reads only examples made under its own."""

    frames_per_clip: int = 8
    """Frames sampled from each clip, evenly spaced (count). Not used with --sample-fps or --every-frame."""
    sample_fps: float | None = None
    """Frames sampled for each second of the clip (1/s), instead of --frames-per-clip."""
    every_frame: bool = False
    """Take every frame of the clip."""
    faces: Literal["largest", "all"] = "largest"
    """Faces kept of each frame: largest (one; ties by score, then box) or all."""
    detector: str = "dlib-cnn"
    """Face detector: dlib-cnn (Dlib's CNN, run in PyTorch), dlib-cnn-reference (run by dlib), dlib-hog."""
    detector_precision: str = "auto"
    """Arithmetic of dlib-cnn: fp32, bf16, int8 (on CPU), or auto (bf16 where the processor has it)."""
    detector_weights: str | None = None
    """Path of mmod_human_face_detector.dat; default: from the package face-recognition-models."""
    score_threshold: float = 0.0
    """Faces must score more than this (the detector's own scale)."""
    upsample: int = 0
    """Times the frame is doubled before detection (0 or 1): 1 finds faces of 40 px, 0 of 80 px; 1 costs 4 times."""
    retry_upsample: bool = False
    """Look again with --upsample 1 at clips in whose sampled frames no face was found; needs a CNN and --upsample 0."""
    detect_every: int = 1
    """Detect on every K-th sampled frame and the last one (count, 1 to 32); boxes between are interpolated.

    1, the default, detects on every frame: at 3 the boxes meet those of full detection with a mean IoU of 0.95 in
    steady clips and 0.87 in clips with cuts, and a face that is in one of two key frames only is lost between them."""
    boxes: str | None = None
    """CSV of given boxes (path,label,x1,y1,x2,y2; pixels), path or URL; skips detection."""
    box_margin: float = 0.0
    """Share of the box's width and height added on each side of the face crop (0.1 = 10 %)."""
    face_px: int = 224
    """Side of the face crop (pixels)."""
    context_px: int = 224
    """Side of the context image (pixels)."""
    image_format: str = "jpeg"
    """Encoding of the crops: jpeg (quality 95, 4:4:4) or png."""
    decoder: str = "auto"
    """Video decoder: auto (decord where it is right, else PyAV), decord, pyav."""
    min_decode_integrity: float = 0.0
    """Least share of a clip's frames that must decode whole (0 to 1); below it the clip is quarantined."""

    def __post_init__(self) -> None:
        _one_of("--faces", self.faces, ("largest", "all"))
        _one_of("--detector", self.detector, DETECTORS)
        _one_of("--detector-precision", self.detector_precision, PRECISIONS)
        _one_of("--image-format", self.image_format, ("jpeg", "png"))
        _one_of("--decoder", self.decoder, DECODERS)
        _one_of("--upsample", self.upsample, (0, 1))
        _at_least("--frames-per-clip", self.frames_per_clip, 1)
        # The frames between two key frames are held in memory until the second is known.
        _one_of("--detect-every", self.detect_every, tuple(range(1, MOST_DETECT_EVERY + 1)))
        _at_least("--face-px", self.face_px, 8)
        _at_least("--context-px", self.context_px, 8)
        _at_least("--box-margin", self.box_margin, 0)
        if not 0 <= self.min_decode_integrity <= 1:
            raise ValueError(f"--min-decode-integrity is {self.min_decode_integrity}; give a share from 0 to 1")
        if self.sample_fps is not None and self.sample_fps <= 0:
            raise ValueError(f"--sample-fps is {self.sample_fps}; give a rate above 0 frames a second")
        if self.sample_fps is not None and self.every_frame:
            raise ValueError("--sample-fps and --every-frame exclude each other; give one of them")
        if self.retry_upsample and self.detector not in RETRY_DETECTORS:
            raise ValueError(
                f"--retry-upsample is for a CNN, and --detector is {self.detector}; give --detector "
                f"{' or '.join(RETRY_DETECTORS)}, or leave --retry-upsample out"
            )
        if self.retry_upsample and self.upsample != 0:
            raise ValueError(
                f"--retry-upsample looks again at upsample 1, and --upsample is {self.upsample} already; give "
                "--upsample 0, or leave --retry-upsample out"
            )

    @property
    def sampling(self) -> Sampling:
        if self.every_frame:
            return Sampling(frames_per_clip=None, every_frame=True)
        if self.sample_fps is not None:
            return Sampling(frames_per_clip=None, sample_fps=self.sample_fps)
        return Sampling(frames_per_clip=self.frames_per_clip)


def extract_config_of(values: Any) -> ExtractConfig:
    """The ExtractConfig part of a larger config object, or of a mapping such as a manifest's config."""
    names = [field.name for field in fields(ExtractConfig)]
    if isinstance(values, dict):
        return ExtractConfig(**{name: values[name] for name in names if name in values})
    return ExtractConfig(**{name: getattr(values, name) for name in names})


class Detect(Protocol):
    """Finds the faces of images (RGB uint8 HWC), as `Detector.detect_faces`. Raises DetectionError if it is shared and
    cannot be reached."""

    def __call__(self, images: list[np.ndarray], *, upsample: int) -> list[list[Face]]: ...


class DetectionError(Exception):
    """Frames that a shared detector did not answer for: nothing is known against the clip."""


def detector_of(config: ExtractConfig, *, upsample: int | None = None, device: str = "cpu") -> Detector | None:
    """The detector that the config asks for, None where boxes are given. Raises UsageError for a wrong option.

    upsample: in place of the config's.
    """
    if config.boxes is not None:
        return None
    return build_detector(
        config.detector,
        upsample=config.upsample if upsample is None else upsample,
        score_threshold=config.score_threshold,
        precision=config.detector_precision,
        device=device,
        weights=config.detector_weights,
    )


def detect_of(config: ExtractConfig, *, device: str) -> Detect:
    """A detector in this process; the one of the second look is built at the first clip that needs it."""
    build = functools.cache(lambda upsample: detector_of(config, upsample=upsample, device=device))
    build(config.upsample)

    def detect(images: list[np.ndarray], *, upsample: int) -> list[list[Face]]:
        detector = build(upsample)
        assert detector is not None, "boxes are given"
        return detector.detect_faces(images)

    return detect


def build_work(config: ExtractConfig) -> Callable[..., Generator[dict[str, Any], None, dict[str, Any]]]:
    """The fenced child's work: a task (clip, local path, given boxes) to its examples and the facts of the outcome, as
    plain values."""
    detect = detect_of(config, device="cpu")

    def work(task: dict[str, Any], stage: Callable[[str], None]) -> Generator[dict[str, Any], None, dict[str, Any]]:
        # On CPU a batch is no faster than its frames one by one, and one frame is held instead of eight.
        decode = functools.partial(decoded, task, config, stage)
        facts: list[dict[str, Any]] = []
        for example in _noting(extracted(task, config, decode=decode, detect=detect, stage=stage, batch_px=1), facts):
            box = example.box
            yield {
                **{name: getattr(example, name) for name in EXAMPLE_FIELDS},
                "box": [box.x_min, box.y_min, box.x_max, box.y_max],
            }
        return facts[0]

    return work


def build_decoding(config: ExtractConfig) -> Callable[..., Generator[dict[str, Any], None, dict[str, Any]]]:
    """The fenced child's work where detection is shared: a task to its sampled frames, one by one, and how they were
    decoded, all as plain values."""

    def work(task: dict[str, Any], stage: Callable[[str], None]) -> Generator[dict[str, Any], None, dict[str, Any]]:
        reports: list[DecodeReport] = []
        for frame in _noting(decoded(task, config, stage), reports):
            yield {"frame_index": frame.frame_index, "pts_seconds": frame.pts_seconds, "image": frame.image}
        return asdict(reports[0])

    return work


def example_of(plain: Any, clip: Clip) -> Example:
    """The example of this clip that the child told. Raises ValueError for what is none."""
    given = _given(plain, {**EXAMPLE_FIELDS, "box": list})
    width, height = given["frame_width"], given["frame_height"]
    if len(given["box"]) != 4 or not all(type(each) is int for each in given["box"]):
        raise ValueError(f"box is {given['box']!r}")
    box = Box(*given.pop("box"))
    if width * height > MAX_PIXELS or box != box.clamped(width=width, height=height):
        raise ValueError(f"box {box} is not in a frame of {width} x {height} pixels")
    for name in ("face_jpeg", "context_jpeg"):
        if not given[name].startswith(IMAGE_BEGINNINGS):
            raise ValueError(f"{name} is no JPEG or PNG")
    return Example(clip_id=whole_id(clip.clip_id), label=clip.label, split=clip.split, box=box, **given)


def frame_of(plain: Any) -> Frame:
    """The frame that the child told. Raises ValueError for what is none."""
    given = _given(plain, {"frame_index": int, "pts_seconds": float, "image": np.ndarray})
    image = given["image"]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not 0 < image.size <= 3 * MAX_PIXELS:
        raise ValueError(f"the image is {image.dtype} of shape {image.shape}")
    return Frame(**given)


def facts_of(plain: Any, *, num_examples: int) -> dict[str, Any]:
    """The facts of the outcome that the child told. Raises ValueError for what are none."""
    given = _given(plain, FACT_FIELDS)
    if given["num_examples"] != num_examples or given["decode_integrity"] > 1:
        raise ValueError(f"the facts are {given}, and {num_examples} examples came")
    return given


def report_of(plain: Any) -> DecodeReport:
    """How the child decoded, as it told. Raises ValueError for what is none."""
    given = _given(plain, {**REPORT_FIELDS, "notes": list})
    if given["decode_integrity"] > 1 or not all(isinstance(note, str) for note in given["notes"]):
        raise ValueError(f"the report is {given}")
    return DecodeReport(**{**given, "notes": tuple(given["notes"])})


def _given(plain: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The values of exactly these names and kinds, numbers in the range of their columns, texts printable."""
    if not isinstance(plain, dict) or plain.keys() != kinds.keys():
        raise ValueError("its fields are others")
    given = {}
    for name, kind in kinds.items():
        value = plain[name]
        if type(value) is not kind and not (name == "detail" and value is None):
            raise ValueError(f"{name} is of type {type(value).__name__}")
        least = -math.inf if name in ("pts_seconds", "face_score") else 0
        if isinstance(value, int | float) and not least <= value < 2**31:
            raise ValueError(f"{name} is {value}")
        given[name] = printable(value)[:MOST_LETTERS] if isinstance(value, str) else value
    return given


def decoded(
    task: dict[str, Any], config: ExtractConfig, stage: Callable[[str], None]
) -> Generator[Frame, None, DecodeReport]:
    """The sampled frames of a task's clip, in order. Raises VideoError."""
    clip: Clip = task["clip"]
    stage("open")
    if clip.path.lower().endswith(IMAGE_SUFFIXES):
        opened = read_image(task["path"])
    else:
        opened = open_clip(
            task["path"],
            config.sampling,
            start_pts_seconds=clip.start_pts_seconds,
            end_pts_seconds=clip.end_pts_seconds,
            decoder=config.decoder,
        )
    with contextlib.closing(opened):
        stage("decode")
        for frame in opened:
            yield frame
            stage("decode")
    return opened.report


def extracted(
    task: dict[str, Any],
    config: ExtractConfig,
    *,
    decode: Callable[[], Generator[Frame, None, DecodeReport]],
    detect: Detect,
    stage: Callable[[str], None],
    batch_px: int,
) -> Generator[Example, None, dict[str, Any]]:
    """The examples of a task's clip, and the facts of its outcome.

    decode: begins to decode the clip; a second look decodes it again, so that no frame is kept for it. batch_px:
    frames are gathered for one call of `detect` until they have this many pixels in all.
    """
    look = functools.partial(_look, task, config, stage=stage, batch_px=batch_px)
    facts = yield from look(decode(), detect=functools.partial(detect, upsample=config.upsample))
    if config.retry_upsample and config.boxes is None and not facts["num_examples"]:
        facts = yield from look(decode(), detect=functools.partial(detect, upsample=1))
        facts["detail"] = _joined("looked at again with upsample 1", facts["detail"])
    return facts


def _look(
    task: dict[str, Any],
    config: ExtractConfig,
    frames: Generator[Frame, None, DecodeReport],
    *,
    detect: Callable[[list[np.ndarray]], list[list[Face]]],
    stage: Callable[[str], None],
    batch_px: int,
) -> Generator[Example, None, dict[str, Any]]:
    """One pass over the clip: its examples and facts."""
    clip: Clip = task["clip"]
    given = [Face(box, 0.0) for box in task["boxes"]] if config.boxes is not None else None

    def find(images: list[np.ndarray]) -> list[list[Face]]:
        stage("detect")
        return detect(images) if given is None else [given for _ in images]

    num_frames = num_faceless = num_clamped = num_examples = 0
    reports: list[DecodeReport] = []
    with contextlib.closing(frames):
        every = config.detect_every if given is None else 1
        for frame, found in located(_noting(frames, reports), find, detect_every=every, batch_px=batch_px):
            stage("crop")
            height, width = frame.image.shape[:2]
            kept, clamped = select_faces(found, faces_kept=config.faces, width=width, height=height)
            num_frames += 1
            num_clamped += clamped
            num_faceless += not kept
            num_examples += len(kept)
            for face_index, face in enumerate(kept):
                crop = crop_face(frame.image, face.box, face_px=config.face_px, margin=config.box_margin)
                context = make_context(frame.image, face.box, context_px=config.context_px)
                yield Example(
                    clip_id=whole_id(clip.clip_id),
                    frame_index=frame.frame_index,
                    pts_seconds=frame.pts_seconds,
                    face_index=face_index,
                    box=face.box,
                    face_score=face.score,
                    frame_width=width,
                    frame_height=height,
                    face_jpeg=encode_image(crop, image_format=config.image_format),
                    context_jpeg=encode_image(context, image_format=config.image_format),
                    label=clip.label,
                    split=clip.split,
                )
    (report,) = reports
    return {
        "num_frames": num_frames,
        "num_faceless_frames": num_faceless,
        "num_boxes_clamped": num_clamped,
        "num_examples": num_examples,
        "decoder": report.decoder,
        "decoder_reason": report.decoder_reason,
        "decode_integrity": report.decode_integrity,
        "detail": _damage(report),
    }


def _damage(report: DecodeReport) -> str | None:
    """What did not decode whole, in words; None where all did."""
    if report.decode_integrity == 1:
        return None
    num_frames = report.num_decoded + report.num_missing
    counts = f"{report.num_missing} missing, {report.num_corrupt} corrupt, {report.num_repeated} repeated"
    return _joined(f"of {num_frames} frames {counts}", *report.notes, between="; ")


def _joined(*parts: str | None, between: str = ", ") -> str | None:
    return between.join(part for part in parts if part) or None


def _noting(items: Generator[Item, None, Value], values: list[Value]) -> Iterator[Item]:
    """The generator's items; what it returns is added to `values`."""
    values.append((yield from items))


def located(
    frames: Iterable[Frame],
    find: Callable[[list[np.ndarray]], list[list[Face]]],
    *,
    detect_every: int,
    batch_px: int,
) -> Iterator[tuple[Frame, list[Face]]]:
    """Every frame with its faces, in order.

    Faces are detected in each `detect_every`-th frame and in the last, these being the key frames, and interpolated
    between. At most the frames of one batch (`batch_px`, and one frame) and of one gap between key frames are held.
    """
    return _interpolated(_found(_with_keys(frames, detect_every), find, batch_px=batch_px))


def _with_keys(frames: Iterable[Frame], every: int) -> Iterator[tuple[Frame, bool]]:
    """Each frame, and whether it is a key frame. One that is not waits for the next, because the last one is."""
    waiting = None
    for number, frame in enumerate(frames):
        if waiting is not None:
            yield waiting, False
        waiting = None if number % every == 0 else frame
        if waiting is None:
            yield frame, True
    if waiting is not None:
        yield waiting, True


def _found(
    frames: Iterable[tuple[Frame, bool]], find: Callable[[list[np.ndarray]], list[list[Face]]], *, batch_px: int
) -> Iterator[tuple[Frame, list[Face] | None]]:
    """Each frame with its faces if it is a key frame, else None."""
    batch: list[tuple[Frame, bool]] = []

    def searched() -> Iterator[tuple[Frame, list[Face] | None]]:
        images = [frame.image for frame, is_key in batch if is_key]
        faces = iter(find(images) if images else [])
        for frame, is_key in batch:
            yield frame, next(faces) if is_key else None
        batch.clear()

    num_px = 0
    for frame, is_key in frames:
        batch.append((frame, is_key))
        num_px += frame.image.shape[0] * frame.image.shape[1]
        if num_px >= batch_px:
            yield from searched()
            num_px = 0
    yield from searched()


def _interpolated(frames: Iterable[tuple[Frame, list[Face] | None]]) -> Iterator[tuple[Frame, list[Face]]]:
    """Each frame with its faces. The first and the last have faces of their own."""
    between: list[Frame] = []
    first: Frame | None = None
    first_faces: list[Face] = []
    for frame, faces in frames:
        if faces is None:
            between.append(frame)
            continue
        for each in between:
            assert first is not None
            if first.image.shape == each.image.shape == frame.image.shape:
                span = frame.pts_seconds - first.pts_seconds
                share = (each.pts_seconds - first.pts_seconds) / span if span else 0.0
                yield each, faces_between(first_faces, faces, share=share)
            else:
                yield each, []  # Its pixels are not those of the key frames' boxes.
        between.clear()
        yield frame, faces
        first, first_faces = frame, faces


class ClipExtractor:
    """Extracts clips one after the other, each in the fence; whatever a clip does, it ends as an Outcome.

    shared_detect: a detector outside this process, for batches of frames; then the fenced child only decodes.
    """

    def __init__(self, config: ExtractConfig, *, limits: FenceLimits, shared_detect: Detect | None = None) -> None:
        self._config = config
        self._shared_detect = shared_detect
        self._num_unreached = 0
        self._boxes = read_boxes(config.boxes) if config.boxes is not None else {}
        self._members = MemberReader(_open_archive)
        self._film = contextlib.ExitStack()
        self._film_url: str | None = None
        self._film_path: Path | None = None
        self._scratch: str | None = None
        sweep_scratch()
        # A fork server reads these when it starts: one thread a worker, because there is a worker a core.
        os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
        repository = str(Path(__file__).resolve().parents[1])
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [repository, os.environ.get("PYTHONPATH")]))
        build, preload = (build_work, ("torch",)) if shared_detect is None else (build_decoding, ())
        self.fence = Fence(
            build,
            {"config": config},
            limits=limits,
            preload=(*preload, "decord", "av"),
            readable=[config.detector_weights] if config.detector_weights else [],
        )

    def facts(self) -> dict[str, Any]:
        """What the fence has seen so far: children started, how many in place of one that had grown, the most resident
        memory of one (bytes), the wall time of each stage (seconds), and what they were kept from (`confine`)."""
        return {
            "children_started": self.fence.num_starts,
            "children_recycled": self.fence.num_recycled,
            "peak_child_memory_bytes": self.fence.peak_memory_bytes,
            "stage_seconds": {stage: round(each, 3) for stage, each in sorted(self.fence.stage_seconds.items())},
            **self.fence.confinement,
        }

    def extract(self, clip: Clip) -> tuple[list[Example], Outcome]:
        """The clip's examples in order, and how it ended. Never raises for what the clip's bytes do.

        A clip that kills its child, asks for too much memory or raises something unforeseen is tried again once in a
        fresh child, and is then quarantined. One whose child was killed from outside is tried twice more and is then
        retryable: the next clip would have met the same. Raises StoreLostError for what every other clip would meet
        too: nothing is known against this one.
        """
        started = time.monotonic()

        def ended(state: State, *, detail: str | None = None, **facts: Any) -> Outcome:
            seconds = round(time.monotonic() - started, 3)
            detail = None if detail is None else redacted(detail)
            return Outcome(clip_id=clip.clip_id, path=clip.path, state=state, detail=detail, seconds=seconds, **facts)

        try:
            with self._fetched(clip) as path:
                self._num_unreached = 0
                return self._run(clip, path, ended)
        except ArchiveError as error:
            return [], ended(State.QUARANTINED, reason=error.reason, stage="unpack", detail=str(error))
        except FileNotFoundError:
            return [], ended(State.QUARANTINED, reason="missing", stage="fetch", detail=f"no file at {clip.path}")
        except StoreLostError as error:
            if error.errno != errno.ENOENT or clip.content_id != "missing":
                raise
            # One row of a manifest named a bucket that was never there; a bucket that went away ends the run.
            return [], ended(State.QUARANTINED, reason="missing", stage="fetch", detail=str(error))
        except OSError as error:
            detail = _in_words(error)
            url = archive_of(clip.url) if is_member(clip.url) else clip.url
            if local_path(url) is not None and isinstance(error, PermissionError | IsADirectoryError):
                return [], ended(State.QUARANTINED, reason="unreadable", stage="fetch", detail=detail)
            self._num_unreached += error.errno != errno.EACCES  # This one may be forbidden and the next be not.
            if self._num_unreached >= MOST_UNREACHED:
                raise StoreLostError(f"{detail}; so did the {MOST_UNREACHED - 1} clips before") from None
            return [], ended(State.RETRYABLE, reason="store_failed", stage="fetch", detail=detail)

    @contextlib.contextmanager
    def _fetched(self, clip: Clip) -> Iterator[Path]:
        """The clip as a local file under a neutral name. Raises ArchiveError and OSError."""
        copies = self._copies() if local_path(clip.url) is None or is_member(clip.url) else None
        if whole_id(clip.clip_id) != clip.clip_id:
            if self._film_url != clip.url:  # The next segment of this actor is mostly one of the same film.
                self._film.close()
                self._film_url = None  # Should the next one not be there.
                self._film_path = self._film.enter_context(local_file(clip, copies=copies))
                self._film_url = clip.url
            assert self._film_path is not None
            yield self._film_path
            return
        self._film.close()
        self._film_url = None
        if not is_member(clip.url):
            with local_file(clip, copies=copies) as path:
                yield path
            return
        with tempfile.TemporaryDirectory(dir=copies) as folder:
            neutral = Path(folder) / "clip"
            self._members.copy(clip.url, neutral, content_id=clip.content_id)
            yield neutral

    def _copies(self) -> str:
        """The folder for copies of remote clips and of members of archives, which the child may read."""
        if self._scratch is None:
            self._scratch = tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{os.getpid()}-")
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
            self.fence.let_read(os.path.join(self._scratch, "clip"))
        return self._scratch

    def _run(self, clip: Clip, path: Path, ended: Callable[..., Outcome]) -> tuple[list[Example], Outcome]:
        local = local_path(clip.url)
        if local is not None and not is_member(clip.url):
            self.fence.let_read(local, name=clip.path)
        task = {"clip": clip, "path": path, "boxes": self._boxes.get(clip.path, [])}
        for attempt in range(1, MOST_TRIES_KILLED + 1):
            try:
                examples, facts = self._examples(task)
            except DetectionError as error:
                facts = {"reason": "detector_failed", "stage": "detect", "detail": str(error)}
                return [], ended(State.RETRYABLE, attempts=attempt, **facts)
            except FenceError as error:
                was_killed = error.reason == "killed"
                may_differ = error.fatal or error.reason in ("exception", "memory")
                if may_differ and attempt < (MOST_TRIES_KILLED if was_killed else MOST_TRIES):
                    self.fence.restart()
                    continue
                facts = {"reason": error.reason, "stage": error.stage, "detail": error.detail}
                state = State.RETRYABLE if was_killed else State.QUARANTINED
                return [], ended(state, attempts=attempt, **facts)
            if facts["decode_integrity"] < self._config.min_decode_integrity:
                return [], ended(State.QUARANTINED, attempts=attempt, **self._dropped(facts))
            if examples:
                return examples, ended(State.DONE, attempts=attempt, **facts)
            reason = "no_box_given" if self._config.boxes is not None else "no_face_found"
            detail = _joined(f"no face in {facts['num_frames']} sampled frames", facts.pop("detail"))
            return [], ended(State.NO_FACE, attempts=attempt, reason=reason, stage="detect", detail=detail, **facts)
        raise AssertionError("unreachable")

    def _dropped(self, facts: dict[str, Any]) -> dict[str, Any]:
        """The facts of a clip that decoded too badly for its examples to be kept."""
        integrity, least = facts["decode_integrity"], self._config.min_decode_integrity
        num_dropped = facts["num_examples"]
        detail = (
            f"decode_integrity {integrity:.3f} is below --min-decode-integrity {least:g}: {facts['detail']}; "
            f"{num_dropped} examples dropped"
        )
        counts = {"num_examples": 0, "num_examples_dropped": num_dropped}
        return {**facts, **counts, "reason": "low_integrity", "stage": "decode", "detail": detail}

    def _examples(self, task: dict[str, Any]) -> tuple[list[Example], dict[str, Any]]:
        """The task's examples and facts. Raises FenceError and DetectionError."""
        if self._shared_detect is None:
            items, told = self.fence.run(task)
            with _sound(self.fence):
                examples = [example_of(item, task["clip"]) for item in items]
                return examples, facts_of(told, num_examples=len(examples))
        stages = {"now": "start"}
        running = extracted(
            task,
            self._config,
            decode=functools.partial(_frames, self.fence, task),
            detect=self._shared_detect,
            stage=functools.partial(stages.__setitem__, "now"),
            batch_px=SHARED_BATCH_PX,
        )
        examples = []
        try:
            while True:
                examples.append(next(running))
        except StopIteration as end:
            return examples, end.value
        except (FenceError, FenceStartError, DetectionError):
            raise
        except Exception as error:  # one clip's error, as the fence tells it of its child
            detail = f"{type(error).__name__}: {error}"[:2000]
            raise FenceError("exception", detail, stage=stages["now"], fatal=False) from error


def _frames(fence: Fence, task: dict[str, Any]) -> Generator[Frame, None, DecodeReport]:
    """The frames that the fenced child decodes. Raises FenceError."""
    with contextlib.closing(fence.stream(task)) as running:
        while True:
            try:
                item = next(running)
            except StopIteration as end:
                with _sound(fence):
                    return report_of(end.value)
            with _sound(fence):
                frame = frame_of(item)
            yield frame


@contextlib.contextmanager
def _sound(fence: Fence) -> Iterator[None]:
    """End a child whose answer proves to be none."""
    try:
        yield
    except ValueError as error:
        fence.restart()
        detail = f"what the worker answered is not sound: {error}"[:MOST_LETTERS]
        raise FenceError("bad_answer", detail, stage="answer", fatal=True) from None


@contextlib.contextmanager
def local_file(clip: Clip, *, copies: str | None) -> Iterator[Path]:
    """The clip's bytes as a local file under a neutral name: a link to a local file, a copy of a remote one.

    FFmpeg reads patterns, protocols and playlists out of names; this one has none. copies: the folder for copies.
    Raises OSError; of a remote file only what outlasted every try.
    """
    local = local_path(clip.url)
    with tempfile.TemporaryDirectory(prefix=f"{SCRATCH_PREFIX}{os.getpid()}-", dir=copies) as folder:
        neutral = Path(folder) / "clip"
        if local is not None:
            if not stat.S_ISREG(os.stat(local).st_mode):  # Opening a FIFO would wait for ever.
                raise IsADirectoryError(errno.EISDIR, "not a regular file")
            with open(local, "rb"):  # Unreadable is said here, in the clip's own name.
                neutral.symlink_to(os.path.abspath(local))
        else:
            fetch(clip.url, neutral, size_bytes=clip.size_bytes or None)  # Some web servers tell no size.
        yield neutral


def _open_archive(url: str, num_bytes: int, block_bytes: int) -> Any:
    """An archive for reading, a block at a time and without asking the store for its size. Raises OSError."""
    local = local_path(url)
    if local is not None:
        return open(local, "rb")
    filesystem, path = open_filesystem(url)
    what = f"{url} cannot be read"
    return RangedFile(filesystem, path, what=what, size_bytes=num_bytes, block_bytes=block_bytes)


def sweep_scratch() -> None:
    """Remove the copies of clips that killed actors of this user left in the temporary folder."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}*"):
        pid = folder.name.removeprefix(SCRATCH_PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _in_words(error: OSError) -> str:
    return str(error) if isinstance(error, StorageError) else f"{type(error).__name__}: {error.strerror or error}"


def _one_of(flag: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{flag} is {value!r}; give one of {', '.join(map(str, allowed))}")


def _at_least(flag: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{flag} is {value}; give {least} or more")
