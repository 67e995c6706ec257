"""The seven emotions, the splits, the words that settings may have, and the error of wrong use.

It imports next to nothing: the help of a job reads it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

SCHEMA_VERSION = 1

# The longest side of an image that a network or a crop may have, pixels: a batch of 64 of them has 3 GB.
MAX_PX = 2048
# The largest share of a box that a crop may have around it.
MAX_MARGIN = 4.0


class UsageError(ValueError):
    """What the user gave cannot be used; the message names the thing, the value and the cure. Ends with exit code 2."""


class Emotion(StrEnum):
    """The seven classes of CAER, in the order of every probability vector."""

    ANGER = "Anger"
    DISGUST = "Disgust"
    FEAR = "Fear"
    HAPPY = "Happy"
    NEUTRAL = "Neutral"
    SAD = "Sad"
    SURPRISE = "Surprise"


EMOTIONS: tuple[str, ...] = tuple(emotion.value for emotion in Emotion)


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
