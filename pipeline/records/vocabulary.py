"""The seven emotions, the splits, and the error of wrong use."""

from __future__ import annotations

from enum import StrEnum

SCHEMA_VERSION = 1


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
