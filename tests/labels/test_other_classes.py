"""Labels of a model with classes of its own: tables, exports, corrections, the viewer and the page say them."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from made_labels import DAY, SHA256, MadeClip, make_labels
from pympi.Elan import Eaf
from viewing import viewing

from pipeline import report
from pipeline.labels.agreement import moments_said, rightness
from pipeline.labels.config import ExportConfig
from pipeline.labels.corrections import add_correction, new_correction
from pipeline.labels.export import export
from pipeline.labels.faces_set import schema_for
from pipeline.labels.figures import figures
from pipeline.labels.source import open_labels
from pipeline.ledger.config import ForgetConfig
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outputs import runs_in
from pipeline.records.columns import classes_of, table_of, with_classes
from pipeline.records.faces import CLIP_LABEL_SCHEMA, FRAME_SCHEMA
from pipeline.records.outcomes import OUTCOME_SCHEMA
from pipeline.records.vocabulary import EMOTIONS, UsageError, checked_classes
from pipeline.report.charts import COLOURS, colour_numbers, colours_of
from pipeline.score.drift import drift, night_record
from pipeline.score.forget_job import forget_in
from pipeline.score.night import close_night

pytestmark = pytest.mark.lengthy

CLASSES = ("Contempt", "Very happy", "Überraschung", "Sad", "x-1", "Neutral", "Fear", "Boredom")
CLIPS = [
    MadeClip("a/one.avi", emotions=(("Contempt", "Very happy"), ("Sad", "Sad"))),
    MadeClip("b/two.mp4", codec="libx264", emotions=(("Überraschung", "Überraschung"),), sureness=0.4),
    MadeClip("b/nobody.mp4", codec="libx264", emotions=()),
]
SEVEN = [MadeClip("a/one.avi", emotions=(("Happy", "Sad"), ("Sad", "Sad")))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    make_labels(folder / "videos", folder / "labels", CLIPS, classes=CLASSES)
    return folder


def exported(made, output, format_, **options):
    assert export(ExportConfig(labels=str(made / "labels"), format=format_, output=str(output), **options)) == 0
    return output


def test_tables_have_a_column_a_class_and_name_the_models(made):
    labels = open_labels(str(made / "labels"))
    assert labels.classes == CLASSES
    clip = next(labels.database.rows("select * from clips where path = 'b/two.mp4'"))
    assert (clip["emotion"], list(clip["probabilities"])) == ("Überraschung", list(CLASSES))
    assert clip["probability"] == pytest.approx(0.4)
    faces = labels.faces(clip)
    assert classes_of(faces.schema) == CLASSES
    assert [name for name in faces.schema.names if name.startswith("p_")] == [f"p_{name}" for name in CLASSES]
    assert faces["p_Überraschung"].to_pylist() == pytest.approx([0.4] * faces.num_rows)


def test_two_models_with_other_classes_are_read_as_one(tmp_path):
    make_labels(tmp_path / "videos", tmp_path / "out", SEVEN)
    make_labels(tmp_path / "videos", tmp_path / "out", [CLIPS[0]], sha256="f" * 64, classes=CLASSES)
    query = (
        f"select model, emotion, p_Happy, \"p_Very happy\" from read_parquet('{tmp_path}/out/*/frames/**/*.parquet',"
        " union_by_name=true, hive_partitioning=true)"
    )
    rows = duckdb.sql(query).fetchall()
    assert {emotion for _, emotion, _, _ in rows} == {"Happy", "Sad", "Contempt", "Very happy"}
    assert all((happy is None) == (very is not None) for _, _, happy, very in rows)


def test_exports_take_their_names_from_the_model(made, tmp_path):
    out = exported(made, tmp_path / "csv", "csv")
    moments = pd.read_csv(out / "persons_over_time.csv")
    one = moments[(moments["clip"] == "a/one.avi") & (moments["person"] == 1)]
    assert list(one["emotion"]) == ["Contempt", "Very happy"]
    assert one[list(CLASSES)].sum(axis=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    book = pd.read_csv(out / "codebook.csv")
    for name in ("clips.csv", "persons.csv", "persons_over_time.csv"):
        assert list(book[book["table"] == name]["column"]) == list(pd.read_csv(out / name).columns)
    assert "Disgust" not in set(book["column"])
    out = exported(made, tmp_path / "elan", "elan", clips="a/*")
    (path,) = out.glob("*.eaf")
    entries, _ = Eaf(str(path)).get_cv_entries("emotions"), None
    assert {value for values, _ in entries.values() for value, _, _ in values} == set(CLASSES)
    out = exported(made, tmp_path / "cvat", "cvat", clips="a/*", input=str(made / "videos"))
    (path,) = out.glob("*.xml")
    assert "Contempt\nVery happy\nÜberraschung" in path.read_text()
    features = json.loads(schema_for(CLASSES).metadata[b"huggingface"])["info"]["features"]
    assert features["emotion"]["names"] == list(CLASSES)
    assert features["probabilities"]["length"] == len(CLASSES)


@pytest.mark.lengthy
def test_figures_draw_every_class(made):
    labels = open_labels(str(made / "labels"))
    drawn = {name: make() for name, make in figures(labels, {"pattern": "*", "clip_ids": None}, every=1.0)}
    assert all(name.encode() in drawn["collection.svg"] for name in ("Contempt", "Boredom"))
    assert b"each of 8" in drawn["collection.md"]


@pytest.mark.parametrize("format_", ["label-studio", "cvat"])
def test_what_comes_back_is_a_class_of_the_model(tmp_path, format_):
    make_labels(tmp_path / "videos", tmp_path / "labels", CLIPS[:1], classes=CLASSES)
    out = tmp_path / "out"
    options = {"labels": str(tmp_path / "labels"), "format": format_, "annotator": "anna"}
    assert export(ExportConfig(output=str(out), input=str(tmp_path / "videos"), **options)) == 0
    if format_ == "label-studio":
        assert 'value="Very happy"' in (out / "config.xml").read_text()
        (path,) = (each for each in out.glob("*.json") if each.name != "export.json")
        task = json.loads(path.read_text())
        task[0]["annotations"] = [{"result": task[0]["predictions"][0]["result"]}]
        task[0]["annotations"][0]["result"][0]["value"]["labels"] = ["Boredom"]
        path.write_text(json.dumps(task))
    else:
        (path,) = out.glob("*.xml")
        path.write_text(path.read_text().replace('name="emotion">Contempt<', 'name="emotion">Boredom<'))
    assert export(ExportConfig(import_=str(path), **options)) == 0
    labels = open_labels(str(tmp_path / "labels"))
    (name,) = labels.storages[0].sizes("corrections")
    assert json.loads(labels.storages[0].read(name))["label"] == "Boredom"
    found = rightness(moments_said(labels), classes=labels.classes)
    assert found["metrics"]["per_class_accuracy"]["Boredom"] == 0.0
    path.write_text(path.read_text().replace("Boredom", "Disgust"))
    with pytest.raises(UsageError, match="label 'Disgust' is none of Contempt, Very happy"):
        export(ExportConfig(import_=str(path), **options))


def test_the_viewer_shows_and_takes_classes_of_the_model(made):
    with viewing(made / "labels", made / "videos") as viewer:
        found = viewer.get("/api/collection").json()
        assert (found["emotions"], len(set(found["colours"]))) == (list(CLASSES), len(CLASSES))
        page = viewer.get("/api/clips?emotion=%C3%9Cberraschung").json()
        assert [row["path"] for row in page["rows"]] == ["b/two.mp4"]
        clip = viewer.ids()["b/two.mp4"]
        (strip,) = viewer.get(f"/api/clips/{clip}/strips?from=0&to=2&step=0.5").json()
        assert {place for place, _ in strip["bins"]} == {CLASSES.index("Überraschung")}
        for label, status in (("Disgust", 400), ("Very happy", 200)):
            said = {"said": "emotion", "label": label, "annotator": "anna", "track_index": 0}
            answer = viewer.get(
                f"/api/clips/{clip}/corrections", method="POST", body=said, Content_Type="application/json"
            )
            assert answer.status == status, answer.body


def test_the_page_of_a_night_shows_them(made):
    labels = open_labels(str(made / "labels"))
    rows = list(labels.database.rows("select * from clips order by path"))
    table = report.labels_of(labels.database.table("select * exclude (probability) from clips order by path"))
    shown = [report.shown_clip(row, labels.faces(row), labels.persons(row), []) for row in rows if row["num_faces"]]
    summary = {"model": {"classes": list(CLASSES), "words": [], "warnings": []}}
    text = report.score_page(summary, OUTCOME_SCHEMA.empty_table(), table, shown, title="t")
    assert all(name in text for name in CLASSES)
    assert "Disgust" not in text
    for name, number in colour_numbers(CLASSES).items():
        assert f"emotion-{number}" in text, name


def test_the_seven_keep_their_colours_and_every_class_has_one_in_the_style_sheet():
    style = (Path(report.__file__).parent / "static" / "page.css").read_text()
    names = tuple(f"c{number}" for number in range(40)) + EMOTIONS
    for name, colour in colours_of(names).items():
        assert f".emotion-{colour_numbers(names)[name]} {{ fill: {colour}; }}" in style
    assert {name: colours_of(names)[name] for name in EMOTIONS} == COLOURS


def test_a_night_and_its_drift_name_the_classes(made):
    ledger = Ledger(str(made / "labels" / f"model={SHA256[:12]}"))
    found = close_night(ledger, ledger.snapshot(), day=DAY)
    assert list(found["night"]["emotions"]) == list(CLASSES)
    assert sum(found["night"]["emotions"].values()) == pytest.approx(1)
    sums = {"day": DAY, "clips": 40, "labelled_clips": 40, "frames": 9, "faces": 9, "core_seconds": 1.0}
    sums |= {"entropy_sum": 1.0, "faceless_frames": 0, "decode_integrity": 1.0}
    before = [night_record({**sums, "emotion_share_sums": [40, 0, 0]}, classes=("a", "b", "c"))] * 3
    tonight = night_record({**sums, "emotion_share_sums": [0, 0, 40]}, classes=("a", "b", "c"))
    warnings = drift(tonight, before)["warnings"]
    assert any("the share of a is 0.00, 1.00" in line or "the share of c is 1.00, 0.00" in line for line in warnings)


def test_a_person_of_such_labels_is_forgotten(tmp_path):
    make_labels(tmp_path / "videos", tmp_path / "labels", CLIPS[:1], classes=CLASSES)
    person = ForgetConfig(output=str(tmp_path / "labels"), person=("a/one.avi:2",))
    assert all(left == () for _, left in forget_in(runs_in(str(tmp_path / "labels")), person))
    labels = open_labels(str(tmp_path / "labels"))
    clip = next(labels.database.rows("select * from clips"))
    assert (clip["num_tracks"], clip["emotion_shares"]["Sad"]) == (1, 0.0)
    assert list(clip["probabilities"]) == list(CLASSES)


def test_a_correction_that_is_no_class_stays_out(tmp_path):
    make_labels(tmp_path / "videos", tmp_path / "labels", CLIPS[:1], classes=CLASSES)
    labels = open_labels(str(tmp_path / "labels"))
    clip = next(labels.database.rows("select * from clips"))
    values = {"clip_id": clip["clip_id"], "path": clip["path"], "model": labels.model, "annotator": "a"}
    with pytest.raises(ValueError, match="give a class of the model"):
        new_correction(**values, said="emotion", label="x" * 41)
    add_correction(labels.storages[0], new_correction(**values, said="emotion", label="Boredom"))
    assert {label for _, given in moments_said(labels) for label in given.values()} == {"Boredom"}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["A"], "give 2 to 64 names"),
        ("Anger", "give 2 to 64 names"),
        ([1, 2], "give 2 to 64 names"),
        (["A", "a"], "has 'A' more than once"),
        (["A", ""], "a class has up to 40 letters"),
        (["A", "b.c"], "a class has up to 40 letters"),
        (["A", "b'; drop"], "a class has up to 40 letters"),
        (["A", "Valence"], "is none of valence, arousal"),
        (["A", "b" * 41], "a class has up to 40 letters"),
        (["A", " b"], "a class has up to 40 letters"),
        (["A", "b\n"], "a class has up to 40 letters"),
    ],
)
def test_names_that_are_no_classes_are_refused(names, said):
    with pytest.raises(UsageError, match=f"classes .*{said}"):
        checked_classes(names, what="classes")


def test_a_schema_for_other_classes_is_the_same_but_for_them():
    other = with_classes(FRAME_SCHEMA, CLASSES)
    assert classes_of(other) == CLASSES
    assert with_classes(other, EMOTIONS).equals(FRAME_SCHEMA)
    assert json.loads(other.metadata[b"columns"])["p_Very happy"] == "the same as probabilities.Very happy"
    assert table_of([], with_classes(CLIP_LABEL_SCHEMA, CLASSES)).num_rows == 0
    assert np.array_equal(with_classes(FRAME_SCHEMA, EMOTIONS).names, FRAME_SCHEMA.names)
