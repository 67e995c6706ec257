"""The work of the sandboxed child, and the checks of what it answers."""

from __future__ import annotations

import functools
import math
import re
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterable
from dataclasses import MISSING, asdict, astuple, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Optional, Union, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from pipeline.faces.crops import encode_image
from pipeline.faces.landmarks import CHIP_PX, Landmarks
from pipeline.faces.spec import detector_spec
from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.detectors import detect_of
from pipeline.preprocess.examples import WithResult, decoded, extracted
from pipeline.records.clips import Clip, whole_id
from pipeline.records.columns import Share, columns_of
from pipeline.records.faces import AlignedExample, Box, Example
from pipeline.records.outcomes import Outcome
from pipeline.storage.redaction import printable
from pipeline.video.frames import MAX_PIXELS, Budget, Cuts, DecodeReport, Frame

# Of a text that is for people.
MAX_LETTERS = 200


MAX_NOTES = 8


# The child gives the pixels of its crops, and they are encoded here: an image file could carry anything behind its
# pixels, as another clip.
_IMAGES = {"face_jpeg": "face_px", "context_jpeg": "context_px"}
_CHIP = "chip_jpeg"


# What the values of a record may be where a child tells them: counts that fit their columns, and no NaN.
_KINDS: dict[Any, Any] = {
    int: Annotated[int, msgspec.Meta(ge=0, lt=2**31)],
    float: Annotated[float, msgspec.Meta(gt=-(2**53), lt=2**31)],
    Share: Annotated[float, msgspec.Meta(ge=0, le=1)],
    Box: tuple[int, int, int, int],
}


def _message(record: type, names: Iterable[str], *, needed: Collection[str] = ()) -> type[msgspec.Struct]:
    """What a child tells of a record, typed as its fields are; fields that have a default may be left out.

    needed: fields that may not, and what must not be None though its type says so.
    """
    hints, defaults = get_type_hints(record, include_extras=True), {each.name: each.default for each in fields(record)}
    declared = []
    for name in names:
        kinds = [each for each in _alternatives(hints[name]) if each is not type(None)]
        kind = np.ndarray if name in (*_IMAGES, _CHIP) else _KINDS.get(kinds[0], kinds[0])
        if name not in needed and len(kinds) < len(_alternatives(hints[name])):
            kind = Optional[kind]  # noqa: UP045 - made here, not written down
        has_default = defaults[name] is not MISSING and name not in needed
        declared.append((name, kind, defaults[name]) if has_default else (name, kind))
    return msgspec.defstruct(record.__name__, declared, kw_only=True, forbid_unknown_fields=True)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


# The clip and its label are not the child's to tell.
_OF_CLIP = {each.name for each in fields(Clip)}
_EXAMPLE = [each.name for each in fields(Example) if each.name not in _OF_CLIP]
ExampleMessage = _message(Example, _EXAMPLE)
AlignedMessage = _message(AlignedExample, [*_EXAMPLE, _CHIP])
_FACTS = [each.name for each in columns_of(Outcome) if each.metadata["from_child"]]
FactsMessage = msgspec.defstruct(
    "FactsMessage",
    [("cuts", Cuts | None, None)],
    bases=(_message(Outcome, _FACTS, needed=("decoder", "decoder_reason", "decode_integrity")),),
    kw_only=True,
    forbid_unknown_fields=True,
)
ReportMessage = _message(DecodeReport, [each.name for each in fields(DecodeReport)])
FrameMessage = _message(Frame, [each.name for each in fields(Frame)])


def build_work(config: ExtractConfig) -> Callable[..., Generator[dict[str, Any], None, dict[str, Any]]]:
    """The sandboxed child's work: a task (clip, local path, given boxes) to its examples and the facts of the outcome,
    as plain values."""
    detect, landmarks = detect_of(config, device="cpu"), Landmarks()
    if torch := sys.modules.get("torch"):
        # There is a worker a core. The fork server may have loaded it before OMP_NUM_THREADS said so.
        torch.set_num_threads(1)

    def work(task: dict[str, Any], stage: Callable[[str], None]) -> Generator[dict[str, Any], None, dict[str, Any]]:
        task = _with_budget(task)
        # On CPU a batch is no faster than its frames one by one, and one frame is held instead of eight.
        decode = functools.partial(decoded, task, config, stage)
        running = WithResult(
            extracted(
                task,
                config,
                decode=decode,
                detect=detect,
                of_clip=detect.of_clip,
                landmarks=landmarks,
                stage=stage,
                batch_px=1,
                encode=lambda image: image,
            )
        )
        for example in running:
            chip = {_CHIP: example.chip_jpeg} if isinstance(example, AlignedExample) else {}
            yield {**{name: getattr(example, name) for name in _EXAMPLE}, "box": list(astuple(example.box)), **chip}
        cuts = running.result["cuts"]
        return {**running.result, "cuts": None if cuts is None else asdict(cuts)}

    return work


def _with_budget(task: dict[str, Any]) -> dict[str, Any]:
    """The task with its budget as it stands now: (seconds, pixels) that it may use."""
    seconds, pixels = task.get("budget", (math.inf, math.inf))
    return {**task, "budget": Budget(left_pixels=pixels, until=time.monotonic() + seconds)}


def build_decoding(config: ExtractConfig) -> Callable[..., Generator[dict[str, Any], None, dict[str, Any]]]:
    """The sandboxed child's work where detection is shared: a task to its sampled frames, one by one, and how they were
    decoded, all as plain values."""

    def work(task: dict[str, Any], stage: Callable[[str], None]) -> Generator[dict[str, Any], None, dict[str, Any]]:
        decoding = WithResult(decoded(_with_budget(task), config, stage))
        for frame in decoding:
            yield {each.name: getattr(frame, each.name) for each in fields(frame)}
        return asdict(decoding.result)

    return work


def child_options(config: ExtractConfig, *, only_decodes: bool, folder: Path) -> dict[str, Any]:
    """Of a `Sandbox`: what its child may read, and has imported before it starts.

    only_decodes: faces are detected elsewhere. folder: where its clips lie.
    """
    libraries = () if only_decodes else ("dlib", *detector_spec(config.detector).preload)
    readable = [str(folder), *([config.detector_weights] if config.detector_weights else [])]
    return {"preload": (*libraries, "decord", "av"), "readable": readable}


def example_of(plain: Any, clip: Clip, config: ExtractConfig, *, chips: bool = False) -> Example:
    """The example of this clip that the child told, its images encoded. Raises ValueError for what is none.

    chips: it was asked for upright faces, and gives an AlignedExample.
    """
    given = _given(plain, AlignedMessage if chips else ExampleMessage)
    width, height, box = given["frame_width"], given["frame_height"], Box(*given.pop("box"))
    if width * height > MAX_PIXELS or box != box.clamped(width=width, height=height):
        raise ValueError(f"box {box} is not in a frame of {width} x {height} pixels")
    sides = {name: getattr(config, setting) for name, setting in _IMAGES.items()}
    for name, side_px in {**sides, **({_CHIP: CHIP_PX} if chips else {})}.items():
        image = given[name]
        if image.dtype != np.uint8 or image.shape != (side_px, side_px, 3):
            raise ValueError(f"{name} is {image.dtype} of shape {image.shape}, and not {side_px} pixels square")
        given[name] = encode_image(image, image_format=config.image_format)
    given["face_px"] = box.short_side
    known = {each.name: getattr(clip, each.name) for each in fields(Example) if each.name in _OF_CLIP}
    record = AlignedExample if chips else Example
    return record(**{**known, "clip_id": whole_id(clip.clip_id)}, box=box, **given)


def frame_of(plain: Any) -> Frame:
    """The frame that the child told. Raises ValueError for what is none."""
    given = _given(plain, FrameMessage)
    image = given["image"]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not 0 < image.size <= 3 * MAX_PIXELS:
        raise ValueError(f"the image is {image.dtype} of shape {image.shape}")
    return Frame(**given)


def facts_of(plain: Any, *, num_examples: int) -> dict[str, Any]:
    """The facts of the outcome that the child told, and the `cuts` that it saw. Raises ValueError for what are none."""
    given = _given(plain, FactsMessage)
    if given["num_examples"] != num_examples:
        raise ValueError(f"the facts are {given}, and {num_examples} examples came")
    return given


def report_of(plain: Any) -> DecodeReport:
    """How the child decoded, as it told. Raises ValueError for what is none."""
    given = _given(plain, ReportMessage)
    return DecodeReport(**{**given, "notes": given["notes"][:MAX_NOTES]})


def _given(plain: Any, message: type[msgspec.Struct]) -> dict[str, Any]:
    """The values of a message by name, texts printable. Raises ValueError for a plain value that is no such message."""
    try:
        found = msgspec.convert(plain, message, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        has_others = re.search("unknown field|missing required field", str(error))
        raise ValueError(f"its fields are others: {error}" if has_others else str(error)) from None
    given = {}
    for each in msgspec.structs.fields(message):
        value = getattr(found, each.name)
        if isinstance(value, float) and type(plain.get(each.name, 0.0)) is not float:
            raise ValueError(
                f"{each.name} is {plain[each.name]!r}, no float"
            )  # msgspec takes whole numbers for floats.
        given[each.name] = _readable(value)
    return given


def _readable(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_readable, value))
    return shortened(printable(value)) if isinstance(value, str) else value


def shortened(text: str) -> str:
    """A text of at most MAX_LETTERS."""
    return text if len(text) <= MAX_LETTERS else text[: MAX_LETTERS - 1] + "…"
