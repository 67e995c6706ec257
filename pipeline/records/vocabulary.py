"""The seven emotions, the splits, the words that settings may have, and the error of wrong use.

It imports next to nothing: the help of a job reads it.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any, Literal

SCHEMA_VERSION = 1

# The longest side of an image that a network or a crop may have, pixels: a batch of 64 of them has 3 GB.
MAX_PX = 2048
# The largest share of a box that a crop may have around it.
MAX_MARGIN = 4.0


class UsageError(ValueError):
    """What the user gave cannot be used; the message names the thing, the value and the cure. Ends with exit code 2."""


class Emotion(StrEnum):
    """The seven classes of CAER, in their order: those of a model that names no others."""

    ANGER = "Anger"
    DISGUST = "Disgust"
    FEAR = "Fear"
    HAPPY = "Happy"
    NEUTRAL = "Neutral"
    SAD = "Sad"
    SURPRISE = "Surprise"


EMOTIONS: tuple[str, ...] = tuple(emotion.value for emotion in Emotion)


MAX_CLASSES, MAX_CLASS_LETTERS = 64, 40
# Names of columns and of other answers that stand beside classes.
RESERVED_CLASSES = ("valence", "arousal", "abstained", "undecided", "none", "emotion", "clip", "person", "day")


def checked_classes(names: Any, *, what: str) -> tuple[str, ...]:
    """The classes of a model, which name columns, colours and answers. Raises UsageError.

    names: as somebody gave them. what: names them in the message.
    """
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not is_list or not 2 <= len(names) <= MAX_CLASSES:
        raise UsageError(f"{what} is {str(names)[:80]!r}; give 2 to {MAX_CLASSES} names")
    for name in names:
        is_word = re.fullmatch(r"\w(?:[\w -]*\w)?", name) is not None and len(name) <= MAX_CLASS_LETTERS
        if not is_word or name.casefold() in RESERVED_CLASSES:
            raise UsageError(
                f"{what} has {name[:80]!r}; a class has up to {MAX_CLASS_LETTERS} letters, digits, spaces, - and _,"
                f" and is none of {', '.join(RESERVED_CLASSES)}"
            )
    if twice := [name for name in names if sum(name.casefold() == each.casefold() for each in names) > 1]:
        raise UsageError(f"{what} has {twice[0]!r} more than once, upper and lower case alike; name each class once")
    return tuple(names)


SPLITS: tuple[str, ...] = ("train", "validation", "test")

# How an input may be laid out.
LAYOUTS = ("auto", "caer", "caer-s", "manifest", "folder")

# What may decode a video.
DECODERS = ("auto", "decord", "pyav")

# Changes of the faces that training reads.
AUGMENTATIONS = ("crop", "colour", "contrast", "hue", "flip", "erase")

# Which part of the frame a context is.
ContextCrop = Literal["none", "public", "aspect"]

# Networks of torchvision, which see one image.
BACKBONES: tuple[str, ...] = ("alexnet", "vgg16", "resnet50")

# The images that decide what a network says.
Reads = Literal["pair", "face", "context"]

# The front of each stream of a network of two.
Encoder = Literal["paper", "resnet18"]

# How Eq. 7 and Eq. 13 of the paper are read, and what pooled vectors pass.
AttentionGain = Literal["area", "paper"]
RecalibrationScale = Literal["sqrt", "paper"]
PooledNorm = Literal["batch", "none"]
