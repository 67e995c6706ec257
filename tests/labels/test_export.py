"""Exports of labels, read by the libraries of their formats."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import webvtt
from made_labels import CLIPS, MadeClip, make_labels, predicted
from pympi.Elan import Eaf

from pipeline.labels import tiers
from pipeline.labels.config import ExportConfig
from pipeline.labels.export import export
from pipeline.labels.over_time import moments_of
from pipeline.labels.source import open_labels
from pipeline.labels.tables import csv_parts
from pipeline.records.arrow import pc
from pipeline.records.columns import table_of
from pipeline.records.faces import FRAME_SCHEMA
from pipeline.records.vocabulary import EMOTIONS, UsageError
from pipeline.score.labels import predictions_of

pytestmark = pytest.mark.lengthy

REPOSITORY = Path(__file__).resolve().parents[2]
KEPT = REPOSITORY / "tests" / "kept" / "0.1.0" / "labels"


def exported(labels, output, format_, **options):
    assert export(ExportConfig(labels=str(labels), format=format_, output=str(output), **options)) == 0
    return output


def test_tables_hold_every_clip_person_and_moment(made, tmp_path):
    out = exported(made.labels, tmp_path / "out", "csv")
    clips, persons, moments = (pd.read_csv(out / f"{name}.csv") for name in ("clips", "persons", "persons_over_time"))
    assert clips.set_index("path")["state"].to_dict() == {
        "other/broken.mp4": "quarantined",
        "other/nobody.mp4": "no_face",
        "other/three.mp4": "done",
        "show/one.avi": "done",
        "show/two.mp4": "done",
    }
    assert sorted(zip(persons["clip"], persons["person"], strict=True)) == [
        *(("other/three.mp4", 1), ("show/one.avi", 1), ("show/one.avi", 2), ("show/two.mp4", 1))
    ]
    one = moments[(moments["clip"] == "show/one.avi") & (moments["person"] == 1)]
    assert list(one["second"]) == [0.0, 1.0]
    assert list(one["emotion"]) == ["Happy", "Sad"]
    assert one[list(EMOTIONS)].sum(axis=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert one["valence"].isna().all()  # the model gives none
    assert one["arousal"].isna().all()


def test_every_column_is_in_the_codebook(made, tmp_path):
    out = exported(made.labels, tmp_path / "out", "csv")
    book = pd.read_csv(out / "codebook.csv")
    for name in ("clips.csv", "persons.csv", "persons_over_time.csv"):
        own = book[book["table"] == name]
        assert list(own["column"]) == list(pd.read_csv(out / name).columns)
        assert own["meaning"].str.len().min() > 5


def test_no_cell_is_a_formula_and_numbers_stay_numbers():
    rows = [["=1+1", "+a", "-b", "@c", "\tx", "plain", -0.5, None, float(np.float32(0.2))]]
    data = b"".join(csv_parts(list("abcdefghi"), rows))
    assert data.startswith(b"\xef\xbb\xbf")
    (_, found) = csv.reader(io.StringIO(data.decode("utf-8-sig")))
    assert found == ["'=1+1", "'+a", "'-b", "'@c", "'\tx", "plain", "-0.5", "", "0.2"]


def test_a_hostile_path_is_harmless_in_the_tables_and_in_names_of_files(tmp_path):
    make_labels(tmp_path / "videos", tmp_path / "labels", [MadeClip("=cmd|' '/ü{x}.mp4", codec="libx264")])
    found = pd.read_csv(exported(tmp_path / "labels", tmp_path / "csv", "csv") / "clips.csv")
    assert found["path"].tolist() == ["'=cmd|' '/ü{x}.mp4"]
    out = exported(tmp_path / "labels", tmp_path / "vtt", "webvtt")
    (name,) = (path.name for path in out.glob("*.vtt"))
    assert name.startswith("_cmd____")


@pytest.mark.parametrize("format_", ["elan", "cvat", "figure", "webvtt", "label-studio"])
def test_names_that_xml_and_figures_have_no_place_for_are_exported(tmp_path, format_):
    names = ["$\\bad$/\x01\x1b[31m\u202e.mp4", "_own/\n\ufffe-->.mp4", "日本/" + "語" * 70 + ".mp4"]
    clips = [MadeClip(name, num_frames=12 + place) for place, name in enumerate(names)]
    make_labels(tmp_path / "videos", tmp_path / "labels", clips)
    out = exported(tmp_path / "labels", tmp_path / "out", format_)
    ending = {"elan": "eaf", "cvat": "xml", "figure": "svg", "webvtt": "vtt", "label-studio": "json"}[format_]
    found = [path for path in out.glob(f"*.{ending}") if path.name != "export.json"]
    assert len(found) == len(names) + (format_ == "figure")
    for path in found:
        if format_ == "label-studio":
            assert json.loads(path.read_text())[0]["data"]["path"] in names
        elif format_ == "webvtt":
            assert len(webvtt.read(path)) == 1
        else:
            ElementTree.parse(path)
    if format_ == "figure":
        svg = (out / "collection.svg").read_text()
        for group in ("$\\bad$ (1)", "_own (1)", "日本 (1)"):
            assert group in svg


def test_of_clips_without_faces_there_are_tables_alone(tmp_path):
    make_labels(tmp_path / "videos", tmp_path / "labels", [MadeClip("a.mp4", emotions=()), MadeClip("b.mp4", codec="")])
    out = exported(tmp_path / "labels", tmp_path / "out", "csv")
    assert pd.read_csv(out / "clips.csv")["state"].tolist() == ["no_face", "quarantined"]
    assert len(pd.read_csv(out / "persons.csv")) == 0
    for options in ({"format": "elan"}, {"format": "csv", "most_uncertain": 5}):
        with pytest.raises(UsageError, match="holds no face: 2 clips fit"):
            export(ExportConfig(labels=str(tmp_path / "labels"), output=str(tmp_path / "no"), **options))


def test_a_cue_for_each_stretch_of_a_persons_emotion(made, tmp_path):
    out = exported(made.labels, tmp_path / "out", "webvtt", clips="show/one*", every=0.5)
    (path,) = out.glob("*.vtt")
    cues = [(cue.voice, cue.text, cue.start, cue.end) for cue in webvtt.read(path)]
    assert cues == [
        ("Person 1", "Happy 80%", "00:00:00.000", "00:00:01.000"),
        ("Person 2", "Anger 80%", "00:00:00.000", "00:00:02.000"),
        ("Person 1", "Sad 80%", "00:00:01.000", "00:00:02.000"),
    ]


def test_a_tier_for_each_person_opens_in_elan(made, tmp_path):
    out = exported(made.labels, tmp_path / "out", "elan", clips="show/one*")
    (path,) = out.glob("*.eaf")
    found = Eaf(str(path))
    assert sorted(found.get_tier_names()) == ["Person 1", "Person 2"]
    assert sorted(found.get_annotation_data_for_tier("Person 1")) == [(0, 1000, "Happy"), (1000, 2000, "Sad")]
    assert found.get_annotation_data_for_tier("Person 2") == [(0, 2000, "Anger")]
    entries, _ = found.get_cv_entries("emotions"), found.get_cv_descriptions("emotions")
    assert {value for values, _ in entries.values() for value, _, _ in values} == set(EMOTIONS)
    assert found.get_linked_files()[0]["RELATIVE_MEDIA_URL"] == "./one.avi"


def test_shots_are_a_table_and_a_tier(tmp_path):
    clips = [MadeClip("a/cut.mp4", codec="libx264", cut=20), MadeClip("a/whole.mp4", codec="libx264")]
    make_labels(tmp_path / "videos", tmp_path / "labels", clips)
    out = exported(tmp_path / "labels", tmp_path / "csv", "csv")
    rows = pd.read_csv(out / "shots.csv")
    assert rows[["clip", "shot", "start", "end", "length"]].to_numpy().tolist() == [
        ["a/cut.mp4", 1, 0.0, 0.8, 0.8],
        ["a/cut.mp4", 2, 0.8, 2.0, 1.2],
    ]
    book = pd.read_csv(out / "codebook.csv")
    assert list(book[book["table"] == "shots.csv"]["column"]) == list(rows.columns)
    out = exported(tmp_path / "labels", tmp_path / "elan", "elan")
    tiers_of = {path.name.split("_")[1].split(".")[0]: Eaf(str(path)) for path in out.glob("*.eaf")}
    assert "Shots" not in tiers_of["whole"].get_tier_names()
    assert sorted(tiers_of["cut"].get_annotation_data_for_tier("Shots")) == [(0, 800, "1"), (800, 2000, "2")]


def test_the_most_uncertain_come_one_a_clip_before_the_second(made, tmp_path):
    out = exported(made.labels, tmp_path / "out", "csv", most_uncertain=4)
    found = pd.read_csv(out / "most_uncertain.csv")
    assert found["clip"].tolist() == ["show/two.mp4", "other/three.mp4", "show/one.avi", "show/one.avi"]
    assert found["mean_entropy"].is_monotonic_decreasing
    assert found["rank"].tolist() == [1, 2, 3, 4]


def test_what_is_there_stays_and_what_is_missing_is_written(made, tmp_path):
    out = exported(made.labels, tmp_path / "out", "webvtt")
    first, *others = sorted(out.glob("*.vtt"))
    first.unlink()
    (out / "_SUCCESS").unlink()
    times = {path: path.stat().st_mtime_ns for path in others}
    exported(made.labels, out, "webvtt")
    assert first.exists()
    assert {path: path.stat().st_mtime_ns for path in others} == times
    assert (out / "_SUCCESS").exists()


@pytest.mark.lengthy
def test_labels_that_were_added_are_in_the_next_export(own, tmp_path):
    out = exported(own.labels, tmp_path / "out", "csv")
    assert len(pd.read_csv(out / "clips.csv")) == 5
    make_labels(own.videos, own.labels, [MadeClip("new.mp4", codec="libx264"), *CLIPS], draw=True)
    exported(own.labels, out, "csv")
    assert "new.mp4" in set(pd.read_csv(out / "clips.csv")["path"])


def test_another_export_into_the_same_folder_is_refused(made, tmp_path):
    out = exported(made.labels, tmp_path / "out", "csv")
    with pytest.raises(UsageError, match=r"every 1\.0 -> 2\.0"):
        exported(made.labels, out, "csv", every=2.0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        exported(made.labels, tmp_path / "full", "csv")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_labels_of_an_older_version_are_read_with_their_copies(tmp_path):
    shutil.copytree(KEPT, tmp_path / "labels")
    out = exported(tmp_path / "labels", tmp_path / "out", "csv")
    persons = pd.read_csv(out / "persons.csv")
    assert sorted(persons["clip"]) == ["one-again.avi", "one.avi", "two.avi"]
    one, again = (persons[persons["clip"] == name].iloc[0] for name in ("one.avi", "one-again.avi"))
    assert one["clip_id"] != again["clip_id"]
    assert one[list(EMOTIONS)].tolist() == again[list(EMOTIONS)].tolist()


def test_labels_of_two_models_need_a_choice(own, tmp_path):
    make_labels(own.videos, own.labels, CLIPS, sha256="fedcba987654" + "0" * 52, draw=False)
    with pytest.raises(UsageError, match="0123456789ab, fedcba987654: give one"):
        exported(own.labels, tmp_path / "out", "csv")
    out = exported(own.labels, tmp_path / "out", "csv", model="fed")
    assert json.loads((out / "export.json").read_text())["model"].startswith("fedcba987654")


def test_labels_in_a_bucket_are_exported_into_a_bucket(s3, made):
    for path in made.labels.rglob("*"):
        if path.is_file():
            s3.put(f"labels/{path.relative_to(made.labels)}", path.read_bytes())
    exported(s3.url("labels"), s3.url("out"), "csv")
    assert s3.fs.exists(f"{s3.bucket}/out/_SUCCESS")
    assert b"show/one.avi" in s3.fs.cat_file(f"{s3.bucket}/out/persons.csv")


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--format", "csv"], "output"),
        (["--format", "word", "--output", "o"], "--format"),
        (["--format", "csv", "--output", "o", "--every", "0"], "--every is 0"),
        (["--format", "csv", "--output", "o", "--clips", "none*"], "no labelled clip"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(made, tmp_path, arguments, told):
    found = subprocess.run(
        [sys.executable, REPOSITORY / "jobs" / "export.py", made.labels, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert found.returncode == 2
    assert told in found.stderr
    assert "Traceback" not in found.stderr


def test_times_count_from_the_first_frame_where_the_file_has_a_clock_of_its_own(made):
    labels = open_labels(str(made.labels))
    clip = next(labels.database.rows("select * from clips where path = 'show/two.mp4'"))
    faces = labels.faces(clip)
    own = pc.subtract(faces["pts_seconds"], faces["pts_seconds"][0])
    options = {"every": 0.5, "abstain_below": 0.0}

    def at(clock, *, seconds):
        table = faces.set_column(faces.column_names.index("pts_seconds"), "pts_seconds", pc.add(own, clock))
        return table.set_column(faces.column_names.index("seconds"), "seconds", seconds)

    plain = tiers.webvtt(at(0.0, seconds=own), **options)
    assert b"00:00:00.000 --> " in plain
    assert tiers.webvtt(at(54321.0, seconds=own), **options) == plain
    older = pa.nulls(faces.num_rows, pa.float64())  # Labels of before this column keep what they said.
    assert b"15:05:21.000 --> " in tiers.webvtt(at(54321.0, seconds=older), **options)


def test_moments_have_the_mean_valence_and_arousal_of_their_faces():
    faces, probabilities = predicted(MadeClip("a.avi", num_frames=20), "a", np.arange(20) / 25)
    affect = np.array([[0.5, np.nan], [0.1, np.nan], [-0.2, np.nan], [-0.4, np.nan]], np.float32)
    rows = predictions_of(faces, probabilities, abstain_below=0.0, affect=affect)
    found = moments_of(table_of(rows, FRAME_SCHEMA), every=0.4)
    assert [moment.num_faces for moment in found] == [2, 2]
    assert [moment.valence for moment in found] == pytest.approx([0.3, -0.3])
    assert [moment.arousal for moment in found] == [None, None]
