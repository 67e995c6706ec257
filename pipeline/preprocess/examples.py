"""Decoded frames in, examples out: sampling, detection, interpolation, crops."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np

from pipeline.faces.between import faces_between
from pipeline.faces.crops import crop_face, encode_image, make_context, select_faces
from pipeline.faces.detector import Detect
from pipeline.faces.landmarks import Landmarks, points_of, pose_of, upright
from pipeline.faces.quality import sharpness_of
from pipeline.preprocess.config import ExtractConfig
from pipeline.records.clips import Clip, whole_id
from pipeline.records.faces import AlignedExample, Example, Face
from pipeline.video.formats import IMAGE_NAMES
from pipeline.video.frames import DecodeReport, Frame
from pipeline.video.image import read_image
from pipeline.video.open import open_clip

# A frame without a face is looked at once more at twice its size, where that costs no more than some of the others did.
MAX_CANDIDATE_PX = 2**20

IMAGE_SUFFIXES = tuple(f".{name}" for name in sorted(IMAGE_NAMES))


# The faces of each of some images.
Find = Callable[[list[np.ndarray]], list[list[Face]]]

Item = TypeVar("Item")


Value = TypeVar("Value")


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
            start_seconds=clip.start_pts_seconds,
            end_seconds=clip.end_pts_seconds,
            stream=config.stream,
            decoder=config.decoder,
            budget=task.get("budget"),
            finds_cuts=task.get("finds_cuts", False),
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
    landmarks: Landmarks,
    stage: Callable[[str], None],
    batch_px: int,
    encode: Callable[[np.ndarray], Any] | None = None,
    of_clip: Callable[..., Find] | None = None,
) -> Generator[Example, None, dict[str, Any]]:
    """The examples of a task's clip, and the facts of its outcome.

    encode: makes of the pixels of a crop what stands in the example; by default an image of the format that was asked
    for. decode: begins to decode the clip; a second look decodes it again, so that no frame is kept for it. batch_px:
    frames are gathered for one call of `detect` until they have this many pixels in all. of_clip: called with
    `upsample`, gives what finds the faces of the clip's frames in order, in place of `detect`.
    """
    encode = encode or functools.partial(encode_image, image_format=config.image_format)
    spare: list[np.ndarray] = []
    cut_out = functools.partial(_example, clip=task["clip"], config=config, encode=encode)
    judge = _Judge(config, landmarks, chips=task.get("chips", False), encode=encode)
    look = functools.partial(
        _look, task, config, stage=stage, batch_px=batch_px, judge=judge, cut_out=cut_out, spare=spare
    )
    of_clip = of_clip or functools.partial(functools.partial, detect)
    facts = yield from look(decode(), find_faces=of_clip(upsample=config.upsample))
    if (
        config.retry_upsample
        and config.boxes is None
        and not facts["num_examples"]
        and not facts["num_frames_over_budget"]
    ):
        facts = yield from look(decode(), find_faces=of_clip(upsample=1))
        facts["detail"] = join_words("looked at again with upsample 1", facts["detail"])
    elif not facts["num_examples"] and config.boxes is None and not config.upsample and spare:
        stage("detect")
        facts["detail"] = join_words(largest_candidate(spare[0], detect), facts["detail"])
    return facts


def _is_past_middle(number: int) -> bool:
    """Of growing numbers the last for which this is true is in the second half, or the only one: 1, 3, 6, 12, ..."""
    third, rest = divmod(number, 3)
    return number == 1 or (not rest and not third & (third - 1))


def largest_candidate(image: np.ndarray, detect: Detect) -> str:
    """What a frame without a face holds at twice its size, in words: whether a second look at the clip is worth it."""
    height, width = image.shape[:2]
    inside, _ = select_faces(detect([image], upsample=1)[0], faces_kept="all", width=width, height=height)
    sides = [min(face.box.width, face.box.height) for face in inside]
    return f"largest candidate {max(sides)} px" if sides else "no smaller candidate in one of them"


def _look(
    task: dict[str, Any],
    config: ExtractConfig,
    frames: Generator[Frame, None, DecodeReport],
    *,
    find_faces: Find,
    stage: Callable[[str], None],
    batch_px: int,
    judge: _Judge,
    cut_out: Callable[..., Example],
    spare: list[np.ndarray],
) -> Generator[Example, None, dict[str, Any]]:
    """One pass over the clip: its examples and facts. spare: gets one frame, of its second half, unless it is large."""
    given = [Face(box, 0.0) for box in task["boxes"]] if config.boxes is not None else None

    def find(images: list[np.ndarray]) -> list[list[Face]]:
        stage("detect")
        return find_faces(images) if given is None else [given for _ in images]

    num_frames = num_faceless = num_clamped = num_examples = 0
    left_out = Counter[str]()
    decoding = WithResult(frames)
    with contextlib.closing(frames):
        every = config.detect_every if given is None else 1
        for frame, found in located(decoding, find, detect_every=every, batch_px=batch_px):
            stage("crop")
            height, width = frame.image.shape[:2]
            inside, clamped = select_faces(found, faces_kept="all", width=width, height=height)
            kept, gone = judge.kept(frame.image, inside)
            left_out += gone
            num_frames += 1
            if _is_past_middle(num_frames) and width * height <= MAX_CANDIDATE_PX:
                spare[:] = [frame.image]
            num_clamped += clamped
            num_faceless += not kept
            num_examples += len(kept)
            for face_index, (face, known) in enumerate(kept):
                yield cut_out(frame, face, face_index=face_index, known=known)
    report = decoding.result
    return {
        "num_frames": num_frames,
        "num_faceless_frames": num_faceless,
        "num_boxes_clamped": num_clamped,
        **{f"num_faces_{name}": left_out[name] for name in LEFT_OUT},
        "num_examples": num_examples,
        "num_frames_over_budget": report.num_over_budget,
        "decoder": report.decoder,
        "decoder_reason": report.decoder_reason,
        "decode_integrity": report.decode_integrity,
        "cuts": report.cuts,
        "detail": join_words(None if num_examples else _left_out(config, left_out), _damage(report)),
    }


# Why faces are left out: the count of each, and its words.
LEFT_OUT = {
    "small": "are smaller than --min-face-px {0.min_face_px}",
    "blurred": "are less sharp than --min-sharpness {0.min_sharpness:g}",
    "turned": "are turned by more than --max-yaw {0.max_yaw:g}",
}


def _left_out(config: ExtractConfig, left_out: Counter[str]) -> str | None:
    """Which faces were left out and why, in words; None where none was."""
    words = (f"{left_out[name]} faces {said.format(config)}" for name, said in LEFT_OUT.items() if left_out[name])
    return join_words(*words)


class _Judge:
    """Which faces of a frame are kept, and what is known of them beside the box. chips: cut them out upright too."""

    def __init__(
        self, config: ExtractConfig, landmarks: Landmarks, *, chips: bool, encode: Callable[[np.ndarray], Any]
    ) -> None:
        self._config, self._landmarks, self._chips, self._encode = config, landmarks, chips, encode

    def kept(self, image: np.ndarray, faces: list[Face]) -> tuple[list[tuple[Face, dict[str, Any]]], Counter[str]]:
        """The faces that are kept, with columns of each, and how many were left out for which reason.

        faces: within the frame, the largest first.
        """
        config, left_out = self._config, Counter[str]()
        kept: list[tuple[Face, dict[str, Any]]] = []
        most = 1 if config.faces == "largest" else len(faces)
        for face in faces:
            sharpness = sharpness_of(image, face.box) if face.box.short_side >= config.min_face_px else None
            if sharpness is None:
                left_out["small"] += 1
            elif sharpness < config.min_sharpness:
                left_out["blurred"] += 1
            elif len(kept) < most:
                shape = self._landmarks.shape(image, face.box)
                pose = pose_of(points_of(shape))
                if abs(pose.yaw) > config.max_yaw:
                    left_out["turned"] += 1
                    continue
                known = {"yaw": pose.yaw, "pitch": pose.pitch, "roll": pose.roll, "is_frontal": pose.is_frontal}
                if self._chips:
                    known["chip_jpeg"] = self._encode(upright(image, shape))
                if config.alignment == "dlib5":
                    crop = upright(image, shape, px=config.face_px, margin=config.box_margin)
                    known["face_jpeg"] = self._encode(crop)
                kept.append((face, {"sharpness": sharpness, **known}))
        return kept, left_out


def _example(
    frame: Frame,
    face: Face,
    *,
    face_index: int,
    known: dict[str, Any],
    clip: Clip,
    config: ExtractConfig,
    encode: Callable[[np.ndarray], Any],
) -> Example:
    """One face of one frame as an example of the clip. known: columns that are known by now, its crop perhaps."""
    height, width = frame.image.shape[:2]
    if "face_jpeg" not in known:
        crop = crop_face(frame.image, face.box, face_px=config.face_px, margin=config.box_margin)
        known = {**known, "face_jpeg": encode(crop)}
    record = AlignedExample if "chip_jpeg" in known else Example
    context = make_context(frame.image, face.box, context_px=config.context_px)
    return record(
        clip_id=whole_id(clip.clip_id),
        path=clip.path,
        frame_index=frame.frame_index,
        pts_seconds=frame.pts_seconds,
        seconds=frame.seconds,
        sample_aspect_ratio=frame.sample_aspect_ratio,
        face_index=face_index,
        box=face.box,
        face_score=face.score,
        face_px=face.box.short_side,
        frame_width=width,
        frame_height=height,
        context_jpeg=encode(context),
        label=clip.label,
        split=clip.split,
        group_name=clip.group_name,
        **known,
    )


def _damage(report: DecodeReport) -> str | None:
    """What did not decode whole and what the decoder had to say, in words; None where there is nothing."""
    if report.decode_integrity == 1:
        return join_words(*report.notes, between="; ")
    num_frames = report.num_decoded + report.num_missing
    counts = f"{report.num_missing} missing, {report.num_corrupt} corrupt, {report.num_repeated} repeated"
    return join_words(f"of {num_frames} frames {counts}", *report.notes, between="; ")


def join_words(*parts: str | None, between: str = ", ") -> str | None:
    """Those of the parts that say something, joined; None where none does."""
    return between.join(part for part in parts if part) or None


class WithResult(Generic[Item, Value]):
    """The items of a generator, and what it returned once they are taken."""

    result: Value

    def __init__(self, items: Generator[Item, None, Value]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Item]:
        self.result = yield from self._items


def located(
    frames: Iterable[Frame],
    find: Find,
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
    frames: Iterable[tuple[Frame, bool]], find: Find, *, batch_px: int
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
