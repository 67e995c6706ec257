"""The work of the sandboxed child, and the checks of what it answers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.detectors import detect_of
from pipeline.preprocess.examples import decoded, extracted, noting
from pipeline.records.clips import Clip, whole_id
from pipeline.records.faces import Box, Example
from pipeline.sandbox.messages import printable
from pipeline.video.frames import MAX_PIXELS, DecodeReport, Frame

# What a sandboxed child tells: its fields and their types.
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


MAX_LETTERS = 2000


IMAGE_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n")


def build_work(config: ExtractConfig) -> Callable[..., Generator[dict[str, Any], None, dict[str, Any]]]:
    """The sandboxed child's work: a task (clip, local path, given boxes) to its examples and the facts of the outcome,
    as
    plain values."""
    detect = detect_of(config, device="cpu")

    def work(task: dict[str, Any], stage: Callable[[str], None]) -> Generator[dict[str, Any], None, dict[str, Any]]:
        # On CPU a batch is no faster than its frames one by one, and one frame is held instead of eight.
        decode = functools.partial(decoded, task, config, stage)
        facts: list[dict[str, Any]] = []
        for example in noting(extracted(task, config, decode=decode, detect=detect, stage=stage, batch_px=1), facts):
            box = example.box
            yield {
                **{name: getattr(example, name) for name in EXAMPLE_FIELDS},
                "box": [box.x_min, box.y_min, box.x_max, box.y_max],
            }
        return facts[0]

    return work


def build_decoding(config: ExtractConfig) -> Callable[..., Generator[dict[str, Any], None, dict[str, Any]]]:
    """The sandboxed child's work where detection is shared: a task to its sampled frames, one by one, and how they were
    decoded, all as plain values."""

    def work(task: dict[str, Any], stage: Callable[[str], None]) -> Generator[dict[str, Any], None, dict[str, Any]]:
        reports: list[DecodeReport] = []
        for frame in noting(decoded(task, config, stage), reports):
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
    where = {"clip_id": whole_id(clip.clip_id), "path": clip.path}
    return Example(**where, label=clip.label, split=clip.split, box=box, **given)


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
        given[name] = printable(value)[:MAX_LETTERS] if isinstance(value, str) else value
    return given
