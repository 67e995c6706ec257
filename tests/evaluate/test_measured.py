"""How sure metrics are, what they leave out, whom they are of, and how far probabilities are to be believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from example_shards import drawn_example, write_shards

from pipeline.dataset.dataset import ExampleDataset
from pipeline.evaluate.calibration import calibration_of
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.coverage import coverage_of
from pipeline.evaluate.groups import metrics_by_group, read_groups
from pipeline.evaluate.intervals import intervals_of
from pipeline.evaluate.job import write_evaluation
from pipeline.evaluate.metrics import confusion_matrix, metrics_of
from pipeline.evaluate.persons import ClipPredictions, clips_by_persons
from pipeline.evaluate.tables import notes_of
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.planning import plan_clips
from pipeline.models.build import build_model
from pipeline.models.checkpoint import save_checkpoint
from pipeline.models.checkpoint_info import write_best
from pipeline.records.clips import Clip, clip_table
from pipeline.records.faces import Box, Example
from pipeline.records.outcomes import Outcome, State
from pipeline.records.vocabulary import EMOTIONS, UsageError

HAPPY, SAD = EMOTIONS.index("Happy"), EMOTIONS.index("Sad")


def test_an_interval_is_that_of_the_clips_however_many_faces_each_has():
    right = np.arange(42) % 10 < 6  # 26 of 42
    labels, predictions = np.full(42, HAPPY), np.where(right, HAPPY, SAD)
    clips = [f"clip {number}" for number in range(42)]
    one = intervals_of(labels, predictions, clip_ids=clips, groups=[None] * 42)
    many = intervals_of(*(np.repeat(each, 7) for each in (labels, predictions)), clip_ids=np.repeat(clips, 7).tolist(),
                        groups=[None] * 294)  # fmt: skip
    assert one == many
    assert (one["over"], one["num_units"]) == ("clips", 42)
    low, high = one["top1_accuracy"]
    share = right.mean()
    expected = 1.96 * np.sqrt(share * (1 - share) / 42)
    np.testing.assert_allclose([share - low, high - share], expected, atol=0.025)


def test_clips_of_one_show_are_drawn_together():
    labels = np.full(40, HAPPY)
    predictions = np.where(np.arange(40) < 20, HAPPY, SAD)
    shows: list[str | None] = ["good"] * 20 + ["bad"] * 20
    found = intervals_of(labels, predictions, clip_ids=[str(n) for n in range(40)], groups=shows)
    assert (found["over"], found["num_units"]) == ("groups", 2)
    assert found["top1_accuracy"] == [0.0, 1.0]
    # A clip without a group is one by itself, whatever its name.
    found = intervals_of(labels, predictions, clip_ids=["good"] * 20 + ["b"] * 20, groups=["good"] * 10 + [None] * 30)
    assert found["num_units"] == 3


def test_balanced_accuracy_and_f1_of_all_seven_count_what_is_rare_and_what_never_occurs():
    found = metrics_of(confusion_matrix([HAPPY] * 9 + [SAD], [HAPPY] * 10))
    assert found["top1_accuracy"] == 0.9
    assert found["balanced_accuracy"] == 0.5
    f1 = 2 * 9 / (2 * 9 + 1)
    assert found["macro_f1"] == pytest.approx(f1 / 2)
    assert found["macro_f1_of_all"] == pytest.approx(f1 / 7)


def test_calibration_of_known_probabilities():
    probabilities = np.full((4, 7), 0.02)
    probabilities[:, HAPPY] = 0.88
    found = calibration_of(probabilities, np.array([HAPPY, HAPPY, SAD, HAPPY]))
    assert found["nll"] == pytest.approx(-(3 * np.log(0.88) + np.log(0.02)) / 4)
    right, wrong = 0.12**2 + 6 * 0.02**2, 0.88**2 + 0.98**2 + 5 * 0.02**2
    assert found["brier"] == pytest.approx((3 * right + wrong) / 4)
    assert found["ece"] == pytest.approx(0.13)
    (only,) = found["reliability"]
    assert (only["num_examples"], only["share_right"]) == (4, 0.75)
    assert only["mean_probability"] == pytest.approx(0.88)
    perfect = np.eye(7)[[HAPPY, SAD]]
    assert calibration_of(perfect, np.array([HAPPY, SAD]))["brier"] == 0.0


# --- Persons ---------------------------------------------------------------------------------------------------------


def face(clip: str, frame: int, place: int, *, label: str = "Sad", group: str | None = None) -> Example:
    drawn = drawn_example(frame, label=label, split="test")
    box, size = Box(place, 10, place + 60, 70), {"frame_width": 1000, "frame_height": 200}
    where = {"clip_id": clip, "path": f"{clip}.mp4", "frame_index": frame, "pts_seconds": 0.4 * frame}
    return replace(drawn, **where, **size, face_index=place // 200, box=box, group_name=group)


def test_a_person_who_is_seen_longer_does_not_outvote_two(tmp_path: Path):
    faces = [face("a", frame, 0) for frame in range(4)]
    faces += [face("a", frame, place) for place in (400, 800) for frame in range(1)]
    faces += [face("b", 0, 0, label="Happy", group="show")]
    write_shards(tmp_path / "data", [faces])
    examples = ExampleDataset(str(tmp_path / "data"), split="test", cache_dir=tmp_path / "cache")
    probabilities = np.zeros((7, 7))
    probabilities[:4, HAPPY] = 0.9
    probabilities[4:, SAD] = 0.9
    clips = clips_by_persons(examples, probabilities)
    assert (clips.clip_ids, clips.paths, clips.groups) == (["a", "b"], ["a.mp4", "b.mp4"], [None, "show"])
    assert clips.num_persons.tolist() == [3, 1]
    assert clips.labels.tolist() == [SAD, HAPPY]
    np.testing.assert_allclose(clips.probabilities[0, [HAPPY, SAD]], [0.3, 0.6])
    # Of many sampled frames, faces that were seen once are strays.
    strict = clips_by_persons(examples, probabilities, num_frames={"a": 8, "b": 8})
    assert strict.num_persons.tolist() == [1, 1]
    np.testing.assert_allclose(strict.probabilities[0, [HAPPY, SAD]], [0.9, 0.0])


# --- Coverage --------------------------------------------------------------------------------------------------------


def with_ledger(folder: Path, states: dict[str, tuple[str | None, State, int]]) -> None:
    """A ledger beside the examples: of each clip its label, state and number of examples."""
    clips = [
        Clip(clip_id=name, path=f"{name}.mp4", url=name, size_bytes=1, content_id=name, label=label, split="test")
        for name, (label, _, _) in states.items()
    ]
    ledger = Ledger(str(folder))
    snapshot, _ = plan_clips(
        ledger, clip_table(clips), kind="examples", config={}, versions={}, clips_per_shard=len(clips)
    )
    (unit,) = snapshot.pending().of("compute")
    outcomes = [
        Outcome(clip_id=clip.clip_id, path=clip.path, state=states[clip.clip_id][1], num_frames=8,
                num_examples=states[clip.clip_id][2], reason=None if states[clip.clip_id][2] else "no_face")
        for clip in unit.clips
    ]  # fmt: skip
    ledger.commit(unit, tables={}, outcomes=outcomes, facts={})


def test_coverage_counts_labelled_clips_without_a_face(tmp_path: Path):
    write_shards(tmp_path, [[face("a", 0, 0)]])
    assert coverage_of(str(tmp_path)) is None
    states = {"a": ("Sad", State.DONE, 1), "b": ("Sad", State.NO_FACE, 0), "c": ("Happy", State.QUARANTINED, 0)}
    with_ledger(tmp_path, {**states, "unlabelled": (None, State.NO_FACE, 0)})
    covered = coverage_of(str(tmp_path))
    assert covered is not None
    assert covered.splits == {"test": {"num_labelled": 3, "num_without_face": 2}}
    assert covered.num_frames == {"a": 8}


# --- Groups ----------------------------------------------------------------------------------------------------------


def clips_of(num: int) -> ClipPredictions:
    return ClipPredictions(
        clip_ids=[f"id{number}" for number in range(num)],
        paths=[f"c{number}.mp4" for number in range(num)],
        groups=[None] * num,
        labels=np.array([HAPPY, SAD] * (num // 2)),
        probabilities=np.zeros((num, 7)),
        num_persons=np.ones(num),
    )


@pytest.mark.lengthy
def test_groups_have_metrics_and_intervals_of_their_own(tmp_path: Path):
    rows = [f"c{number}.mp4,{'dark' if number < 20 else 'light'}" for number in range(38)]
    (tmp_path / "groups.csv").write_text("\n".join(["path,light", *rows]))
    clips = clips_of(40)
    predictions = np.where(np.arange(40) < 20, HAPPY, clips.labels)
    found = metrics_by_group(read_groups(str(tmp_path / "groups.csv")), clips=clips, predictions=predictions)
    dark, light, rest = found["light"]
    assert [row["group"] for row in (dark, light, rest)] == ["dark", "light", "not given"]
    assert [row["num_clips"] for row in (dark, light, rest)] == [20, 18, 2]
    assert (dark["top1_accuracy"], dark["balanced_accuracy"], light["top1_accuracy"]) == (0.5, 0.5, 1.0)
    low, high = dark["interval"]
    assert 0.2 < low < 0.4
    assert 0.6 < high < 0.8
    assert light["interval"] == [1.0, 1.0]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its columns are none; give path"),
        ("path\na.mp4", "its columns are path; give path"),
        ("name,show\na,b", "its columns are name, show; give path"),
        ("path,show\na.mp4,x\na.mp4,y", "path 'a.mp4' is there twice"),
        ("path,age\n" + "\n".join(f"{n}.mp4,{n}" for n in range(60)), "column 'age' has 60 values"),
    ],
)
def test_a_table_of_groups_that_says_nothing_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_groups(str(tmp_path / "groups.csv"))


def test_groups_of_other_clips_are_refused():
    with pytest.raises(UsageError, match=r"none of its 1 rows names a clip of the split, such as 'c0.mp4'"):
        metrics_by_group({"other.mp4": {"show": "a"}}, clips=clips_of(4), predictions=np.zeros(4, int))
    with pytest.raises(UsageError, match="--groups are of one run"):
        EvaluateConfig(compare=("a",), groups="g.csv", output="out")


# --- All of it -------------------------------------------------------------------------------------------------------


@pytest.mark.lengthy
def test_an_evaluation_says_how_sure_it_is_what_it_leaves_out_and_of_whom(tmp_path: Path, capsys):
    data, run = tmp_path / "data", str(tmp_path / "run")
    names = [f"clip{number}" for number in range(6)]
    faces = [face(name, frame, 0, label=EMOTIONS[n], group="s1") for n, name in enumerate(names) for frame in range(2)]
    write_shards(data, [faces])
    with_ledger(data, {name: (EMOTIONS[n], State.DONE, 2) for n, name in enumerate(names)}
                | {"gone": ("Sad", State.NO_FACE, 0), "dark": ("Sad", State.NO_FACE, 0)})  # fmt: skip
    (data / "dataset.json").write_text(json.dumps({"name": "demo", "synthetic": True}))
    (tmp_path / "groups.csv").write_text("path,room\nclip0.mp4,<b>den</b>\nclip1.mp4,hall\n")
    described = {"name": "se-af", "options": {}, "face_px": 32, "context_px": 32}
    info = {"metrics": {}, "manifest_sha256": "0" * 64, "temperature": 2.0}
    config = {"model": described, "training": {"epochs": 3, "lr": 0.1}, "preprocessing": {}}
    save_checkpoint(run, epoch=1, step=1, model=build_model("se-af"), optimizer_state={}, config=config, info=info)
    write_best(run, epoch=1, top1_accuracy=0.5)
    evaluation = write_evaluation(
        EvaluateConfig(data=str(data), checkpoint=run, splits=("test",), groups=str(tmp_path / "groups.csv"),
                       output=str(tmp_path / "out"), device="cpu", cache_dir=str(tmp_path / "cache"))
    )  # fmt: skip
    test = evaluation["splits"]["test"]
    right = test["clip_level"]["top1_accuracy"] * 6
    assert test["coverage"] == {"num_labelled": 8, "num_without_face": 2, "top1_accuracy_of_all": right / 8}
    assert (test["clip_level"]["num_clips"], test["clip_level"]["num_persons"]) == (6, 6)
    assert test["intervals"]["num_units"] == 1  # one show
    calibration = test["calibration"]
    assert calibration["temperature"] == 2.0
    assert calibration["before"]["nll"] != calibration["after"]["nll"]
    assert [row["group"] for row in test["groups"]["room"]] == ["<b>den</b>", "hall", "not given"]
    differs = ["made data demo", "32 px (paper 224)", "lr 0.1 (paper 0.01)", "epochs 3 (paper 50)"]
    assert evaluation["differs"] == differs
    page = (tmp_path / "out" / "report.html").read_text()
    markdown = (tmp_path / "out" / "evaluation.md").read_text()
    assert "Reliability on test" in page
    assert "&lt;b&gt;den&lt;/b&gt;" in page
    for told in (capsys.readouterr().out.replace("\n", " "), markdown, page):
        assert "Clips of test by room" in told
        assert "made data demo; 32 px (paper 224)" in told
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Clips of test by room" in card
    assert "| \\<b>den\\</b> |" in card.replace("\\>", ">")
    assert evaluation["manifest_sha256"] in card
    assert "## Forbidden use" in card
    head = yaml.safe_load(card.split("---")[1])
    (result,) = (each for each in head["model-index"][0]["results"] if each["dataset"]["split"] == "test")
    assert result["metrics"][0] == {"type": "accuracy", "value": test["top1_accuracy"]}
    table_2 = markdown[markdown.index("## Table 2") : markdown.index("## Table 3")]
    assert "| CAER-Net-S | 73.51 | – |" in table_2
    assert "| se-af | – |" in table_2


@pytest.mark.parametrize(("scheme", "is_told"), [("official", True), ("shots", False), (None, True)])
def test_tables_on_the_official_splits_of_caer_s_say_that_they_leak(scheme: str | None, is_told: bool):
    notes = notes_of({"dataset": {"name": "CAER-S"}, "splits": {}, "split_scheme": scheme})
    assert any("official splits of CAER-S leak: 30.5 %" in note for note in notes) == is_told
