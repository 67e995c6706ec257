"""Labels that the tests of this folder share: four clips of two people, made once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from made_labels import MadeClip, make_labels

CLIPS = [
    MadeClip("show/one.avi", codec="mpeg4", emotions=(("Happy", "Sad"), ("Anger", "Anger"))),
    MadeClip("show/two.mp4", codec="libx264", sureness=0.4, has_sound=True),
    MadeClip("other/three.mp4", codec="libx264", emotions=(("Fear", "Neutral"),), sureness=0.6),
    MadeClip("other/nobody.mp4", codec="libx264", emotions=()),
    MadeClip("other/broken.mp4", codec=""),
]


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
