"""One clip in, its examples and its outcome out: decode, detect and crop in a fenced child.

`ClipExtractor` runs in an actor and holds the fence; `build_work` runs in the fenced child and is the only place where
foreign bytes meet a decoder.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import fsspec

from pipeline.corpus import local_path
from pipeline.crops import crop_face, encode_image, make_context, select_faces
from pipeline.detection import DETECTORS, Detector, build_detector
from pipeline.detection.boxes import read_boxes
from pipeline.fence import Fence, FenceError, FenceLimits
from pipeline.records import Box, Clip, Example, Face, Outcome, State
from pipeline.video import DECODERS, Sampling, open_clip, read_image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


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
    """Arithmetic of dlib-cnn: fp32, bf16, or auto (bf16 where the processor has it)."""
    detector_weights: str | None = None
    """Path of mmod_human_face_detector.dat; default: from the package face-recognition-models."""
    score_threshold: float = 0.0
    """Faces must score more than this (the detector's own scale)."""
    upsample: int = 0
    """Times the frame is doubled before detection (0 or 1): 1 finds faces of 40 px, 0 of 80 px; 1 costs 4 times."""
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

    def __post_init__(self) -> None:
        _one_of("--faces", self.faces, ("largest", "all"))
        _one_of("--detector", self.detector, DETECTORS)
        _one_of("--detector-precision", self.detector_precision, ("auto", "fp32", "bf16"))
        _one_of("--image-format", self.image_format, ("jpeg", "png"))
        _one_of("--decoder", self.decoder, DECODERS)
        _one_of("--upsample", self.upsample, (0, 1))
        _at_least("--frames-per-clip", self.frames_per_clip, 1)
        _at_least("--face-px", self.face_px, 8)
        _at_least("--context-px", self.context_px, 8)
        _at_least("--box-margin", self.box_margin, 0)
        if self.sample_fps is not None and self.sample_fps <= 0:
            raise ValueError(f"--sample-fps is {self.sample_fps}; give a rate above 0 frames a second")
        if self.sample_fps is not None and self.every_frame:
            raise ValueError("--sample-fps and --every-frame exclude each other; give one of them")

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


def detector_of(config: ExtractConfig) -> Detector | None:
    """The detector that the config asks for, None where boxes are given. Raises UsageError for a wrong option."""
    if config.boxes is not None:
        return None
    return build_detector(
        config.detector,
        upsample=config.upsample,
        score_threshold=config.score_threshold,
        precision=config.detector_precision,
        device="cpu",
        weights=config.detector_weights,
    )


def build_work(config: ExtractConfig) -> Callable[..., Generator[Example, None, dict[str, Any]]]:
    """The fenced child's work: a task (clip, local path, given boxes) to its examples and the facts of the outcome."""
    detector = detector_of(config)

    def work(task: dict[str, Any], stage: Callable[[str], None]) -> Generator[Example, None, dict[str, Any]]:
        clip: Clip = task["clip"]
        path: Path = task["path"]
        boxes: list[Box] = task["boxes"]
        num_frames = num_faceless = num_clamped = 0
        stage("open")
        if clip.path.lower().endswith(IMAGE_SUFFIXES):
            decoded = read_image(path)
        else:
            decoded = open_clip(
                path,
                config.sampling,
                start_pts_seconds=clip.start_pts_seconds,
                end_pts_seconds=clip.end_pts_seconds,
                decoder=config.decoder,
            )
        with contextlib.closing(decoded):
            stage("decode")
            for frame in decoded:
                stage("detect")
                found = detector.detect_faces([frame.image])[0] if detector else [Face(box, 0.0) for box in boxes]
                stage("crop")
                height, width = frame.image.shape[:2]
                kept, clamped = select_faces(found, faces_kept=config.faces, width=width, height=height)
                num_frames += 1
                num_clamped += clamped
                num_faceless += not kept
                for face_index, face in enumerate(kept):
                    crop = crop_face(frame.image, face.box, face_px=config.face_px, margin=config.box_margin)
                    context = make_context(frame.image, face.box, context_px=config.context_px)
                    yield Example(
                        clip_id=clip.clip_id,
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
                stage("decode")
        report = decoded.report
        return {
            "num_frames": num_frames,
            "num_faceless_frames": num_faceless,
            "num_boxes_clamped": num_clamped,
            "decoder": report.decoder,
            "decoder_reason": report.decoder_reason,
            "decode_integrity": report.decode_integrity,
        }

    return work


class ClipExtractor:
    """Extracts clips one after the other, each in the fence; whatever a clip does, it ends as an Outcome."""

    def __init__(self, config: ExtractConfig, *, limits: FenceLimits) -> None:
        self._config = config
        self._boxes = read_boxes(config.boxes) if config.boxes is not None else {}
        # A fork server reads these when it starts: one thread a worker, because there is a worker a core.
        os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
        repository = str(Path(__file__).resolve().parents[1])
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [repository, os.environ.get("PYTHONPATH")]))
        self.fence = Fence(build_work, {"config": config}, limits=limits, preload=("torch", "decord", "av"))

    def facts(self) -> dict[str, Any]:
        """What the fence has seen so far: children started, and the most resident memory of one (bytes)."""
        return {"children_started": self.fence.num_starts, "peak_child_memory_bytes": self.fence.peak_memory_bytes}

    def extract(self, clip: Clip) -> tuple[list[Example], Outcome]:
        """The clip's examples in order, and how it ended. Never raises for what the clip's bytes do.

        A clip that kills its child or raises something unforeseen is tried again once in a fresh child.
        """
        started = time.monotonic()

        def ended(state: State, **facts: Any) -> Outcome:
            seconds = round(time.monotonic() - started, 3)
            return Outcome(clip_id=clip.clip_id, path=clip.path, state=state, seconds=seconds, **facts)

        try:
            with local_file(clip) as path:
                return self._run(clip, path, ended)
        except FileNotFoundError:
            return [], ended(State.QUARANTINED, reason="missing", stage="fetch", detail=f"no file at {clip.path}")
        except (PermissionError, IsADirectoryError) as error:
            return [], ended(State.QUARANTINED, reason="unreadable", stage="fetch", detail=_in_words(error))
        except OSError as error:
            return [], ended(State.RETRYABLE, reason="store_failed", stage="fetch", detail=_in_words(error))

    def _run(self, clip: Clip, path: Path, ended: Callable[..., Outcome]) -> tuple[list[Example], Outcome]:
        task = {"clip": clip, "path": path, "boxes": self._boxes.get(clip.path, [])}
        for attempt in (1, 2):
            try:
                examples, facts = self.fence.run(task)
            except FenceError as error:
                if attempt == 1 and (error.fatal or error.reason == "exception"):
                    self.fence.restart()
                    continue
                facts = {"reason": error.reason, "stage": error.stage, "detail": error.detail}
                return [], ended(State.QUARANTINED, attempts=attempt, **facts)
            if examples:
                return examples, ended(State.DONE, attempts=attempt, num_examples=len(examples), **facts)
            reason = "no_box_given" if self._config.boxes is not None else "no_face_found"
            detail = f"no face in {facts['num_frames']} sampled frames"
            return [], ended(State.NO_FACE, attempts=attempt, reason=reason, stage="detect", detail=detail, **facts)
        raise AssertionError("unreachable")


@contextlib.contextmanager
def local_file(clip: Clip) -> Iterator[Path]:
    """The clip's bytes as a local file under a neutral name: a link to a local file, a copy of a remote one.

    FFmpeg reads patterns, protocols and playlists out of names; this one has none. Raises OSError.
    """
    local = local_path(clip.url)
    with tempfile.TemporaryDirectory(prefix="clip-") as folder:
        neutral = Path(folder) / "clip"
        if local is not None:
            with open(local, "rb"):  # Missing or unreadable is said here, in the clip's own name.
                neutral.symlink_to(os.path.abspath(local))
        else:
            # One GET: range reads made 10 to 300 requests a clip. get_file, because opening a URL reads "::" in a name
            # as a chain of stores.
            protocol = clip.url.partition("://")[0]
            filesystem = fsspec.filesystem(protocol)
            filesystem.get_file(clip.url, str(neutral))
        yield neutral


def _in_words(error: OSError) -> str:
    return f"{type(error).__name__}: {error.strerror or error}"


def _one_of(flag: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{flag} is {value!r}; give one of {', '.join(map(str, allowed))}")


def _at_least(flag: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{flag} is {value}; give {least} or more")
