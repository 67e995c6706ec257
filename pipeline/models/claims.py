"""What a checkpoint says of itself, checked before anything is built or reserved by it: types and bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.records.documents import shown_value
from pipeline.records.vocabulary import EMOTIONS, MAX_PX, UsageError, checked_classes

MAX_EPOCH, MAX_STEP = 10**6, 10**9
# Of an .onnx file: a message of protobuf has no more.
MAX_MODEL_BYTES = 2**31
MAX_LETTERS = 2000
_CURE = "it is damaged or foreign: use another checkpoint"


def check_claims(info: Mapping[str, Any], where: str) -> None:
    """Raise UsageError, naming the field and its value, for a checkpoint's JSON that no training of ours writes.

    info: as `read_checkpoint_info` gives it. where: names the checkpoint.
    """
    for path, holds, wanted in _CLAIMS:
        value: Any = info
        is_there = True
        for name in path.split("."):
            is_there = is_there and isinstance(value, Mapping) and name in value
            value = value[name] if is_there else None
        if is_there and not holds(value):
            raise UsageError(f"{where}: {path} is {shown_value(value)}, not {wanted}; {_CURE}")
    model_classes(info["config"], where)


def model_classes(config: Mapping[str, Any], where: str = "checkpoint") -> tuple[str, ...]:
    """The classes that a checkpoint names, in the order of its outputs: the seven where it names none.

    config: the checkpoint's. Raises UsageError for names that are none.
    """
    names = config["model"].get("classes", EMOTIONS)
    return EMOTIONS if names == list(EMOTIONS) else checked_classes(names, what=f"{where}: config.model.classes")


def _or_none(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _number(least: float, most: float, *, whole: bool = False) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        return is_number and abs(value) < 2**63 and math.isfinite(value) and least <= value <= most

    return holds


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_LETTERS


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, Mapping) for row in value)


def _matrix(value: Any) -> bool:
    is_count = _number(0, 2**62)
    return (
        isinstance(value, list)
        and 0 < len(value) <= 100
        and all(isinstance(row, list) and 0 < len(row) <= 100 and all(map(is_count, row)) for row in value)
    )


_PX = (_number(8, MAX_PX, whole=True), f"a side of 8 to {MAX_PX} pixels")
_SHARE = (_or_none(_number(0, 1)), "a share from 0 to 1")
_COUNT = (_or_none(_number(0, 2**62, whole=True)), "a count")
_WORDS = (_or_none(_text), f"a text of up to {MAX_LETTERS} letters")
# In this order: a part is looked into only where it is what the line before says.
_CLAIMS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("epoch", _number(0, MAX_EPOCH, whole=True), f"a number up to {MAX_EPOCH}"),
    ("step", _number(0, MAX_STEP, whole=True), f"a number up to {MAX_STEP}"),
    ("config", _mapping, "an object"),
    ("config.model", _mapping, "an object"),
    ("config.model.name", _text, "a text"),
    ("config.model.options", _mapping, "an object"),
    ("config.model.face_px", *_PX),
    ("config.model.context_px", *_PX),
    ("config.model.context_crop", *_WORDS),
    ("config.model.flip_at_test", lambda value: isinstance(value, bool), "true or false"),
    ("config.training", _mapping, "an object"),
    ("config.preprocessing", _mapping, "an object"),
    ("history", _rows, "a list of objects"),
    ("manifest_sha256", _text, "a text"),
    ("metrics", _or_none(_mapping), "an object"),
    ("metrics.top1_accuracy", *_SHARE),
    ("metrics.ece", *_SHARE),
    ("metrics.num_examples", *_COUNT),
    ("metrics.confusion_matrix", _or_none(_matrix), "a matrix of counts"),
    ("data", _or_none(_mapping), "an object"),
    ("data.name", *_WORDS),
    ("data.num_examples", *_COUNT),
    ("data.per_class", _or_none(_mapping), "an object"),
    ("trained_at", *_WORDS),
    ("card", *_WORDS),
    ("source", *_WORDS),
    ("licence", *_WORDS),
)
