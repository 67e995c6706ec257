"""Corrections become labelled examples, and tell how often the model was right."""

import json

import numpy as np
import pytest
from made_labels import SHA256, box_at

from pipeline.evaluate.config import EvaluateConfig
from pipeline.labels.agreement import agreement, evaluate_corrections, rightness
from pipeline.labels.corrected_faces import corrected_faces
from pipeline.labels.corrections import add_correction, new_correction
from pipeline.labels.source import open_labels
from pipeline.records.clips import Clip
from pipeline.records.faces import Box, Example
from pipeline.records.vocabulary import UsageError


def say(labels, path, **values):
    clip = next(labels.database.rows("select * from clips where path = $path", path=path))
    correction = new_correction(**{"clip_id": clip["clip_id"], "path": path, "model": SHA256[:12], **values})
    add_correction(labels.storages[0], correction)
    return clip


def example(clip, *, seconds, box, label=None):
    return Example(
        clip_id=clip["clip_id"],
        frame_index=0,
        pts_seconds=seconds,
        face_index=0,
        box=box,
        face_score=1.0,
        frame_width=320,
        frame_height=240,
        face_jpeg=b"",
        context_jpeg=b"",
        label=label,
    )


def clip_record(clip):
    return Clip(clip_id=clip["clip_id"], path=clip["path"], url=clip["path"], size_bytes=1, content_id="x")


@pytest.fixture
def labels(own):
    return open_labels(str(own.labels))


@pytest.mark.lengthy
def test_a_corrected_face_has_the_label_that_was_said_in_its_span(own, labels):
    clip = say(
        labels, "show/one.avi", said="emotion", label="Fear", annotator="Ada", track_index=0, end_pts_seconds=1.0
    )
    say(labels, "show/one.avi", said="not_a_face", annotator="Ada", track_index=1, start_pts_seconds=1.0)
    found = corrected_faces(str(own.labels))
    assert len(found.correction_ids) == 2
    one, two = box_at(0, 5), box_at(1, 5)
    early, late = labels.faces(clip)["pts_seconds"][2].as_py(), labels.faces(clip)["pts_seconds"][-1].as_py()
    given = [
        example(clip, seconds=early, box=one),  # person 1, said to be afraid
        example(clip, seconds=early, box=two, label="Sad"),  # person 2, of whom nothing was said yet
        example(clip, seconds=late, box=box_at(1, 45), label="Sad"),  # person 2, no face any more
        example(clip, seconds=late, box=box_at(0, 45), label="Happy"),  # person 1, after the span
        example(clip, seconds=early, box=Box(250, 180, 300, 230)),  # nobody's box, without a label
    ]
    kept = found.applied(clip_record(clip), given)
    assert [(each.label, each.box) for each in kept] == [("Fear", one), ("Sad", two), ("Happy", box_at(0, 45))]


@pytest.mark.lengthy
def test_the_last_word_counts_and_what_was_taken_back_does_not(own, labels):
    clip = say(labels, "show/two.mp4", said="emotion", label="Fear", annotator="Ada")
    say(labels, "show/two.mp4", said="emotion", label="Anger", annotator="Ben")
    seconds = labels.faces(clip)["pts_seconds"][0].as_py()
    (kept,) = corrected_faces(str(own.labels)).applied(
        clip_record(clip), [example(clip, seconds=seconds, box=box_at(0, 0))]
    )
    assert kept.label == "Anger"
    before = corrected_faces(str(own.labels)).digest
    say(labels, "show/two.mp4", said="cannot_tell", annotator="Ben")
    assert (
        corrected_faces(str(own.labels)).applied(clip_record(clip), [example(clip, seconds=seconds, box=box_at(0, 0))])
        == []
    )
    assert corrected_faces(str(own.labels)).digest != before


@pytest.mark.lengthy
def test_labels_that_nobody_corrected_are_refused(own):
    with pytest.raises(UsageError, match="view"):
        corrected_faces(str(own.labels))
    config = EvaluateConfig(corrections=str(own.labels), output=str(own.labels / "out"))
    with pytest.raises(UsageError, match="view"):
        evaluate_corrections(config)


@pytest.mark.lengthy
def test_how_often_the_model_was_right_where_people_looked(own, labels, tmp_path):
    say(labels, "show/one.avi", said="emotion", label="Happy", annotator="Ada", track_index=0)  # right, then wrong
    say(labels, "show/two.mp4", said="emotion", label="Fear", annotator="Ada", end_pts_seconds=0.9)  # wrong
    say(labels, "show/two.mp4", said="emotion", label="Happy", annotator="Ben", end_pts_seconds=0.9)  # right
    evaluate_corrections(EvaluateConfig(corrections=str(own.labels), output=str(tmp_path)))
    own_figures = json.loads((tmp_path / "corrections.json").read_text())["0123456789ab"]
    assert own_figures["num_said"] == 4
    assert own_figures["metrics"]["top1_accuracy"] == 0.5
    assert own_figures["agreement"]["pairs"][0]["num_moments"] == 1
    text = (tmp_path / "corrections.md").read_text()
    assert "| Happy | 3 | 66.7% |" in text
    assert "| Fear | 1 | 0.0% |" in text


def test_agreement_is_that_of_the_books():
    """Fleiss (1971) and Cohen (1960): full agreement is 1, that of chance 0."""
    names = ["Anger", "Sad", "Happy", "Fear"]
    full = [("Happy", {"a": each, "b": each, "c": each}) for each in names]
    assert agreement(full)["fleiss_kappa"] == pytest.approx(1)
    assert [pair["cohen_kappa"] for pair in agreement(full)["pairs"]] == pytest.approx([1, 1, 1])
    chance = [("Happy", {"a": one, "b": two}) for one in names for two in names]
    assert agreement(chance)["pairs"][0]["cohen_kappa"] == pytest.approx(0)
    # Two of 2x2: po = 0.7, pe = 0.5 (20, 5, 10, 15 of 50; Cohen's kappa 0.4).
    counts = {("Sad", "Sad"): 20, ("Sad", "Happy"): 5, ("Happy", "Sad"): 10, ("Happy", "Happy"): 15}
    book = [(None, {"a": one, "b": two}) for (one, two), num in counts.items() for _ in range(num)]
    assert agreement(book)["pairs"][0]["cohen_kappa"] == pytest.approx(0.4)
    assert rightness(book) == {"num_said": 100, "num_abstained": 100, "metrics": None}
    assert agreement([("Sad", {"a": "Sad", "b": "Sad"})])["pairs"][0]["cohen_kappa"] is None


@pytest.mark.lengthy
def test_a_persons_box_is_met_between_two_samples(own, labels):
    clip = say(labels, "show/one.avi", said="emotion", label="Fear", annotator="Ada", track_index=0)
    times = np.array(sorted(set(labels.faces(clip)["pts_seconds"].to_pylist())))
    seconds = float(times[3] + times[4]) / 2
    given = [example(clip, seconds=seconds, box=box_at(0, 17)), example(clip, seconds=seconds + 60, box=box_at(0, 17))]
    kept = corrected_faces(str(own.labels)).applied(clip_record(clip), given)
    assert [each.label for each in kept] == ["Fear"]
