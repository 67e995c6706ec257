"""The pictures of FER2013's folder, `SPLIT/CLASS/NAME.jpg`, as arrays; and which of them are the same picture."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.records.vocabulary import EMOTIONS, UsageError

PX = 48
SPLITS = ("train", "validation", "test")  # Training, PublicTest and PrivateTest of the challenge
SAME = 0.98  # correlation of two thumbnails from which on they count as one picture
_THUMBNAIL_PX = 16


@dataclass(frozen=True)
class Split:
    """images: (N, 48, 48) uint8 grey. labels: (N,) int64, index in EMOTIONS."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, kept: np.ndarray) -> Split:
        return Split(self.images[kept], self.labels[kept])


@dataclass(frozen=True)
class Duplicates:
    """What of the official splits is left out, and why: counts of pictures.

    A picture is the same as another where their 16 px thumbnails correlate at SAME or more, mirrored or not.
    """

    files: dict[str, int]
    equal_files_in_two_splits: int
    equal_files_under_two_labels: int
    train_blank: int
    train_seen_in_validation_or_test: int
    train_under_two_labels: int
    train_repeated: int
    validation_seen_in_test: int
    test_repeated: int


def read_splits(folder: str | Path) -> dict[str, Split]:
    """The three splits. Raises UsageError where a folder is missing or empty, or where a picture can't be read."""
    return {split: _read_split(Path(folder) / split) for split in SPLITS}


def without_duplicates(splits: dict[str, Split]) -> tuple[dict[str, Split], np.ndarray, Duplicates]:
    """The splits without what is in two of them; which test pictures are the first of their kind; and the counts.

    Test keeps all its pictures, so that its figure stands beside those of others. Validation loses what is in test.
    Training loses what is in either, blank pictures, pictures under two labels, and all but one of equal ones.
    """
    train, validation, test = (splits[split] for split in SPLITS)
    thumbnails = {split: _thumbnails(splits[split].images) for split in SPLITS}
    blank = np.abs(thumbnails["train"]).sum(axis=1) == 0
    held_out = np.concatenate([thumbnails["validation"], thumbnails["test"]])
    seen = _is_in(thumbnails["train"], held_out) & ~blank
    groups = _groups(train.images)
    two_labels, repeated = np.zeros(len(train), bool), np.zeros(len(train), bool)
    for rows in groups:
        if len(set(train.labels[rows])) > 1:
            two_labels[rows] = True
        else:
            repeated[rows[1:]] = True
    two_labels &= ~blank & ~seen
    repeated &= ~blank & ~seen
    in_test = _is_in(thumbnails["validation"], thumbnails["test"])
    test_first = np.ones(len(test), bool)
    for rows in _groups(test.images):
        test_first[rows[1:]] = False
    across = _groups(np.concatenate([splits[split].images for split in SPLITS]))
    labels = np.concatenate([splits[split].labels for split in SPLITS])
    of_split = np.repeat(np.arange(3), [len(splits[split]) for split in SPLITS])
    counts = Duplicates(
        files={split: len(splits[split]) for split in SPLITS},
        equal_files_in_two_splits=sum(len(set(of_split[rows])) > 1 for rows in across),
        equal_files_under_two_labels=sum(len(set(labels[rows])) > 1 for rows in across),
        train_blank=int(blank.sum()),
        train_seen_in_validation_or_test=int(seen.sum()),
        train_under_two_labels=int(two_labels.sum()),
        train_repeated=int(repeated.sum()),
        validation_seen_in_test=int(in_test.sum()),
        test_repeated=int((~test_first).sum()),
    )
    kept = {
        "train": train.where(~(blank | seen | two_labels | repeated)),
        "validation": validation.where(~in_test),
        "test": test,
    }
    return kept, test_first, counts


def _read_split(folder: Path) -> Split:
    images, labels = [], []
    for index, emotion in enumerate(EMOTIONS):
        paths = sorted((folder / emotion).glob("*.jpg"))
        if not paths:
            raise UsageError(f"--data: {folder / emotion} holds no .jpg; give the folder of train, validation and test")
        for path in paths:
            images.append(_read_image(path))
            labels.append(index)
    return Split(np.stack(images), np.array(labels, np.int64))


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
    except OSError as error:
        raise UsageError(f"--data: {path} can't be read ({error}); unpack the data again") from None
    if grey.shape != (PX, PX):
        raise UsageError(f"--data: {path} is {grey.shape[1]}x{grey.shape[0]} px; FER2013's pictures are {PX}x{PX}")
    return grey


def _groups(images: np.ndarray) -> list[list[int]]:
    """Rows whose pixels are equal, where there are two or more."""
    rows: dict[bytes, list[int]] = defaultdict(list)
    for row, image in enumerate(images):
        rows[image.tobytes()].append(row)
    return [found for found in rows.values() if len(found) > 1]


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """(N, 256) float32 of mean 0 and length 1; a blank picture is 0."""
    step = PX // _THUMBNAIL_PX
    small = images.reshape(len(images), _THUMBNAIL_PX, step, _THUMBNAIL_PX, step).mean((2, 4), dtype=np.float32)
    flat = small.reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length < 1.0, 0.0, flat / np.maximum(length, 1.0)).astype(np.float32)


def _is_in(thumbnails: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the pictures are among the others, as they are or mirrored: (N,) bool."""
    mirrored = others.reshape(-1, _THUMBNAIL_PX, _THUMBNAIL_PX)[:, :, ::-1].reshape(len(others), -1)
    found = np.zeros(len(thumbnails), bool)
    for start in range(0, len(thumbnails), 1024):
        part = thumbnails[start : start + 1024]
        for of in (others, mirrored):
            found[start : start + 1024] |= (part @ of.T).max(axis=1, initial=-1.0) >= SAME
    return found


def class_counts(labels: np.ndarray) -> dict[str, int]:
    """How many of each class."""
    counts = Counter(labels.tolist())
    return {emotion: counts[index] for index, emotion in enumerate(EMOTIONS)}
