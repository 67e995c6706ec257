"""Labels that the tests of this folder share: four clips of two people, made once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from made_labels import CLIPS, make_labels


class Made(NamedTuple):
    """Folders of the videos and of the labels."""

    videos: Path
    labels: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Made:
    """Videos and their labels. Nobody writes to them but the index of the labels."""
    folder = tmp_path_factory.mktemp("made")
    make_labels(folder / "videos", folder / "labels", CLIPS)
    return Made(folder / "videos", folder / "labels")


@pytest.fixture
def own(tmp_path) -> Made:
    """Videos and labels of one test's own, to write to."""
    make_labels(tmp_path / "videos", tmp_path / "labels", CLIPS)
    return Made(tmp_path / "videos", tmp_path / "labels")
