"""What a data set is: its name, and whether it was made by a program; `dataset.json` beside its clips and examples.

{"name": "CAER-S", "synthetic": false}
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pipeline.records.documents import parse_json
from pipeline.records.vocabulary import EMOTIONS
from pipeline.storage.parts import parts_of
from pipeline.storage.redaction import without_secrets
from pipeline.storage.store import Storage

NAME = "dataset.json"
MAX_BYTES, MAX_LETTERS = 65_536, 80


@dataclass(frozen=True, kw_only=True, slots=True)
class DataDescription:
    """A data set in words. synthetic: None where nobody said."""

    name: str
    synthetic: bool | None = None


def read_description(url: str) -> DataDescription:
    """What `dataset.json` in a folder says of it; where there is none, the folder's name.

    url: a folder, a file in one, or a glob; local or any fsspec URL.
    """
    place = without_secrets(url).split("?")[0].rstrip("/")
    name = place.rpartition("/")[2] or place
    folder = place
    if any(sign in name for sign in "*?[") or "." in name:
        folder, name = place.rpartition("/")[0] or ".", name.partition(".")[0] or name
    try:
        found = parse_json(_read(folder), NAME)
    except (OSError, ValueError, RecursionError):
        found = {}
    said = found if isinstance(found, dict) else {}
    named, synthetic = said.get("name"), said.get("synthetic")
    return DataDescription(
        name=(named if isinstance(named, str) and named else name)[:MAX_LETTERS],
        synthetic=synthetic if isinstance(synthetic, bool) else None,
    )


def describe_data(data_url: str) -> DataDescription:
    """What an output of preprocess is, or those of all parts (`data-*`)."""
    return read_description(parts_of(data_url)[0])


def _read(folder: str) -> bytes:
    """The bytes of the file. Raises OSError where there is none, or none that may be read."""
    if folder.startswith(("http:", "https:")):
        raise FileNotFoundError(folder)
    storage = Storage(folder, num_tries=1)
    if storage.is_local:
        found = os.stat(storage.path(NAME))
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
            raise FileNotFoundError(folder)
    return storage.read(NAME)[:MAX_BYTES]


def description_bytes(description: DataDescription) -> bytes:
    """What `read_description` reads."""
    return (json.dumps(asdict(description)) + "\n").encode()


def describe_examples(
    description: DataDescription, labels: np.ndarray, *, classes: Sequence[str] = EMOTIONS
) -> dict[str, object]:
    """The data that a network learned from, as its checkpoint remembers it. labels: (N,) indices of the classes."""
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    return {
        **asdict(description),
        "num_examples": len(labels),
        "per_class": dict(zip(classes, counts, strict=True)),
    }
