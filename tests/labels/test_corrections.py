"""Corrections are created and never changed; what was taken back no longer stands."""

import json
from dataclasses import asdict

import pytest

from pipeline.labels.corrections import add_correction, new_correction, read_corrections, said_of, standing
from pipeline.records.corrections import Said
from pipeline.storage.store import Storage

CLIP = {"clip_id": "0" * 20, "path": "a.mp4", "model": "0123456789ab"}


def test_two_annotators_lose_nothing_and_each_takes_back_only_his_own(tmp_path):
    storage = Storage(str(tmp_path))
    one = new_correction(**CLIP, said="emotion", label="Sad", annotator="Ada", track_index=0, end_pts_seconds=1.0)
    two = new_correction(**CLIP, said="not_a_face", annotator="Ben")
    assert add_correction(storage, one)
    assert add_correction(storage, two)
    assert not add_correction(storage, one)  # Imported once more.
    add_correction(storage, new_correction(**CLIP, said="undo", annotator="Ben", undoes=one.correction_id))
    assert standing(read_corrections([storage])) == [one, two]
    add_correction(storage, new_correction(**CLIP, said="undo", annotator="Ben", undoes=two.correction_id))
    left = standing(read_corrections([storage]))
    assert left == [one]
    assert said_of(left, track_index=0, pts_seconds=0.9) == one
    assert said_of(left, track_index=0, pts_seconds=1.0) is None
    assert said_of(left, track_index=1, pts_seconds=0.9) is None


def test_a_damaged_object_costs_itself(tmp_path, capsys):
    storage = Storage(str(tmp_path))
    add_correction(storage, new_correction(**CLIP, said="cannot_tell", annotator="Ada"))
    storage.put("corrections/broken.json", b"{")
    assert [each.said for each in read_corrections([storage])] == [Said.CANNOT_TELL]
    assert "corrections/broken.json is no correction" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start_pts_seconds", float("inf")),
        ("end_pts_seconds", float("nan")),
        ("start_pts_seconds", True),
        ("end_pts_seconds", "1.0"),
        ("track_index", -1),
        ("track_index", 2**40),
        ("track_index", 0.5),
        ("clip_id", ["a"]),
        ("created", 5),
        ("path", None),
    ],
)
def test_a_value_of_another_kind_is_refused_and_costs_itself_where_it_is_stored(tmp_path, capsys, name, value):
    said = {**CLIP, "said": "cannot_tell", "annotator": "Ada"}
    if name != "created":
        with pytest.raises(ValueError, match=name):
            new_correction(**{**said, name: value})
    storage = Storage(str(tmp_path))
    whole = new_correction(**said)
    add_correction(storage, whole)
    storage.put("corrections/other.json", json.dumps({**asdict(whole), name: value}).encode())
    assert read_corrections([storage]) == [whole]
    assert f"other.json is no correction ({name} is" in capsys.readouterr().err


@pytest.mark.parametrize(
    "values",
    [
        {"said": "emotion"},
        {"said": "emotion", "label": "J" * 41},
        {"said": "undo"},
        {"said": "cannot_tell", "label": "Sad"},
    ],
)
def test_what_contradicts_itself_is_refused(values):
    with pytest.raises(ValueError, match=r"label|undoes"):
        new_correction(**CLIP, annotator="Ada", **values)
