"""What is told of a model, and how it makes clips be read, on checkpoints' JSON of this version and of older ones."""

import pytest

from pipeline.dataset.description import DataDescription, describe_examples, description_bytes, read_description
from pipeline.records.vocabulary import EMOTIONS, UsageError
from pipeline.score.config import ScoreConfig
from pipeline.score.model import describe_model, lowest_accuracy, model_record
from pipeline.score.reading import reading_config

READING = {"detector": "dlib-cnn", "frames_per_clip": 4, "face_px": 32, "context_px": 32}


def checkpoint(*, right=80, wrong=20, **info):
    """The JSON of a checkpoint that named so many of its validation examples right."""
    matrix = [[0] * 7 for _ in EMOTIONS]
    for emotion in range(7):
        matrix[emotion][emotion] = right
        matrix[emotion][(emotion + 1) % 7] = wrong
    metrics = {
        "top1_accuracy": right / (right + wrong),
        "num_examples": 7 * (right + wrong),
        "confusion_matrix": matrix,
        "ece": 0.041,
        "abstain_below": 0.37,
    }
    values = {"checkpoint_sha256": "0123456789abcdef", "metrics": metrics, "trained_at": "2026-11-20T03:04:05+00:00"}
    values["data"] = {"name": "faces", "synthetic": False, "num_examples": 7000, "per_class": {}}
    return {**values, "config": {"model": {"name": "cahfw"}, "preprocessing": READING}, **info}


def test_a_good_model_is_told_in_one_line_and_warns_of_nothing():
    record = model_record(checkpoint())
    assert record.warnings == ()
    assert record.abstain_below == 0.37
    assert describe_model(record) == (
        "model 0123456789ab: cahfw, trained 2026-11-20; on 7,000 examples of 'faces'; right on 80.0 % of 700 validation"
        " examples, calibration error 0.04; undecided below a probability of 0.37"
    )


def test_made_up_data_is_named():
    record = model_record(checkpoint(data={"name": "demo", "synthetic": True, "num_examples": 9, "per_class": {}}))
    assert "SYNTHETIC" in describe_model(record)
    (warning,) = record.warnings
    assert "'demo', which a program made" in warning


@pytest.mark.parametrize(("right", "wrong", "weak"), [(14, 86, True), (33, 67, False), (3, 7, True), (1, 0, False)])
def test_a_model_at_chance_or_hardly_tried_is_weak(right, wrong, weak):
    found = [line for line in model_record(checkpoint(right=right, wrong=wrong)).warnings if "weak" in line]
    assert bool(found) == weak


def test_one_that_always_says_the_most_frequent_emotion_is_weak():
    matrix = [[900, 0, 0, 0, 0, 0, 0], *([10, 0, 0, 0, 0, 0, 0] for _ in range(6))]
    metrics = {"top1_accuracy": 900 / 960, "num_examples": 960, "confusion_matrix": matrix}
    (warning,) = model_record(checkpoint(metrics=metrics)).warnings
    assert "naming one emotion always would be on 93.8 %" in warning


def test_a_checkpoint_of_an_older_version_says_what_is_not_known():
    info = checkpoint(metrics={"top1_accuracy": 0.8, "num_examples": 700, "confusion_matrix": [[700]]})
    del info["data"], info["trained_at"]
    record = model_record(info)
    assert record.abstain_below == 0.5
    assert "nobody noted when it was trained; nobody noted on which data" in describe_model(record)
    (warning,) = model_record(checkpoint(metrics={})).warnings
    assert "its checkpoint holds no accuracy" in warning


@pytest.mark.parametrize("told", [None, "x", -0.1, 1.5, float("nan")])
def test_a_calibration_that_is_none_is_passed_over(told):
    metrics = {**checkpoint()["metrics"], "abstain_below": told}
    assert model_record(checkpoint(metrics=metrics)).abstain_below == 0.5
    assert model_record(checkpoint(metrics=metrics), abstain_below=0.2).abstain_below == 0.2


def test_the_interval_is_that_of_wilson():
    assert lowest_accuracy(0.5, 100) == pytest.approx(0.4038, abs=1e-4)
    assert lowest_accuracy(1.0, 10) == pytest.approx(0.7225, abs=1e-4)


@pytest.mark.parametrize(
    ("content", "name", "synthetic"),
    [
        (b'{"name": "CAER", "synthetic": false}', "CAER", False),
        (b'{"name": "CAER"}', "CAER", None),
        (b'{"name": 7, "synthetic": "yes"}', "films", None),
        (b"[]", "films", None),
        (b"\xff{", "films", None),
        (b"[" * 50_000, "films", None),
        (None, "films", None),
    ],
)
def test_a_data_set_says_what_it_is_or_goes_by_its_folder(tmp_path, content, name, synthetic):
    folder = tmp_path / "films"
    folder.mkdir()
    if content is not None:
        (folder / "dataset.json").write_bytes(content)
    for url in (str(folder), f"{folder}/"):
        assert read_description(url) == DataDescription(name=name, synthetic=synthetic)


def test_the_folder_of_a_manifest_or_glob_says_it_too(tmp_path):
    given = DataDescription(name="CAER", synthetic=True)
    (tmp_path / "dataset.json").write_bytes(description_bytes(given))
    for name in ("clips.csv", "*.avi"):
        assert read_description(f"{tmp_path}/{name}") == given
    assert describe_examples(given, [0, 0, 6])["per_class"] == dict.fromkeys(EMOTIONS, 0) | {"Anger": 2, "Surprise": 1}


def test_an_address_keeps_its_secrets():
    assert read_description("https://user:word@host/clips.csv?sig=word").name == "clips"


def reading(saved=READING, **asked):
    return reading_config(
        ScoreConfig(input="i", checkpoint="c", output="o", **asked), {"config": {"preprocessing": saved}}
    )


def test_long_clips_are_sampled_twice_a_second_unless_asked_otherwise():
    found = reading()
    assert (found.frames_per_clip, found.min_sample_fps) == (4, 2.0)
    seconds = [n / 25 for n in range(25 * 60)]
    assert len(found.sampling.choose(_array(seconds))) == 120
    assert len(found.sampling.choose(_array(seconds[:25]))) == 4
    assert len(reading(frames_per_clip=4).sampling.choose(_array(seconds))) == 4
    assert len(reading(sample_fps=1.0).sampling.choose(_array(seconds))) == 60
    assert len(reading(every_frame=True).sampling.choose(_array(seconds))) == 1500
    assert len(reading({**READING, "sample_fps": 5.0}).sampling.choose(_array(seconds))) == 300


def _array(values):
    import numpy as np

    return np.array(values)


def test_how_hard_is_looked_may_differ_and_the_crop_may_not():
    found = reading({**READING, "retry_upsample": True, "box_margin": 0.1}, upsample=1, detect_every=3, faces="largest")
    assert (found.upsample, found.retry_upsample, found.detect_every, found.faces) == (1, False, 3, "largest")
    assert found.box_margin == 0.1
    assert reading({**READING, "upsample": 1}, retry_upsample=True).upsample == 0
    assert reading({**READING, "retry_upsample": True}).retry_upsample
    with pytest.raises(UsageError, match="--retry-upsample is for a CNN"):
        reading({**READING, "detector": "dlib-hog"}, retry_upsample=True)
    assert reading({**READING, "min_face_px": 30}).min_face_px == 30
    found = reading({**READING, "min_face_px": 30}, min_face_px=0, min_sharpness=0.05)
    assert (found.min_face_px, found.min_sharpness) == (0, 0.05)
    with pytest.raises(UsageError, match="--min-sharpness is -1"):
        reading(min_sharpness=-1.0)
    with pytest.raises(UsageError, match="--detect-every is 99"):
        reading(detect_every=99)
    found = reading({**READING, "detect_every": 3}, whole_every=4)
    assert (found.detect_every, found.whole_every) == (1, 4)
    found = reading({**READING, "whole_every": 4}, detect_every=3)
    assert (found.detect_every, found.whole_every) == (3, 1)
    assert reading({**READING, "whole_every": 4}).whole_every == 4


@pytest.mark.parametrize("asked", [{"sample_fps": 1.0, "every_frame": True}, {"sample_fps": 1.0, "frames_per_clip": 3}])
def test_one_way_of_sampling_is_given(asked):
    with pytest.raises(ValueError, match="exclude each other; give one of them"):
        reading(**asked)
