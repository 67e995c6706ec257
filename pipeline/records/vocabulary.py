"""The seven emotions, the splits, the words that settings may have, and the error of wrong use.

It imports next to nothing: the help of a job reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
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


# Names that others give to the seven.
SYNONYMS = {
    **dict.fromkeys(("anger", "angry"), "Anger"),
    **dict.fromkeys(("disgust", "disgusted"), "Disgust"),
    **dict.fromkeys(("fear", "fearful", "afraid"), "Fear"),
    **dict.fromkeys(("happy", "happiness", "joy"), "Happy"),
    **dict.fromkeys(("neutral", "neutrality"), "Neutral"),
    **dict.fromkeys(("sad", "sadness"), "Sad"),
    **dict.fromkeys(("surprise", "surprised"), "Surprise"),
}


@lru_cache(maxsize=64)
def class_names(classes: tuple[str, ...]) -> Mapping[str, str]:
    """What may be said for each class, in lower case: its name, and other names of the same one of the seven."""
    names = {each.casefold(): each for each in classes}
    meant = [SYNONYMS.get(name) for name in names]
    for other, one in SYNONYMS.items():
        if meant.count(one) == 1:  # of classes that tell joy from happiness, neither is meant by happy
            names.setdefault(other, classes[meant.index(one)])
    return names


def class_named(name: str, classes: Sequence[str]) -> str | None:
    """The class that a name means, upper or lower case and without blanks around it; None where it means none."""
    return class_names(tuple(classes)).get(name.strip().casefold())


MAX_CLASSES, MAX_CLASS_LETTERS = 64, 40
# Names of columns and of other answers that stand beside classes.
RESERVED_CLASSES = ("valence", "arousal", "abstained", "undecided", "none", "emotion", "clip", "person", "day")


def is_class_name(name: str) -> bool:
    """Whether a class may be called so."""
    is_word = re.fullmatch(r"\w(?:[\w -]*\w)?", name) is not None and len(name) <= MAX_CLASS_LETTERS
    return is_word and name.casefold() not in RESERVED_CLASSES


def checked_classes(names: Any, *, what: str) -> tuple[str, ...]:
    """The classes of a model, which name columns, colours and answers. Raises UsageError.

    names: as somebody gave them. what: names them in the message.
    """
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not is_list or not 2 <= len(names) <= MAX_CLASSES:
        raise UsageError(f"{what} is {str(names)[:80]!r}; give 2 to {MAX_CLASSES} names")
    for name in names:
        if not is_class_name(name):
            raise UsageError(
                f"{what} has {name[:80]!r}; a class has up to {MAX_CLASS_LETTERS} letters, digits, spaces, - and _,"
                f" and is none of {', '.join(RESERVED_CLASSES)}"
            )
    if twice := [name for name in names if sum(name.casefold() == each.casefold() for each in names) > 1]:
        raise UsageError(f"{what} has {twice[0]!r} more than once, upper and lower case alike; name each class once")
    return tuple(names)


# Given in place of names: the classes are those that the data has.
FOUND = ("found",)


def classes_found(names: Iterable[str]) -> tuple[str, ...]:
    """The classes that labels name: of the seven by their own names, in their order, the others after them by name."""
    meant = sorted(class_named(name, EMOTIONS) or name.strip() for name in names)
    own = {name.casefold(): name for name in reversed(meant)}
    others = sorted(set(own.values()) - set(EMOTIONS))
    return (*(each for each in EMOTIONS if each.casefold() in own), *others)


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
