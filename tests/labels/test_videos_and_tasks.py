"""Exports that need the videos: drawn videos, tasks to correct elsewhere and what comes back, faces, figures."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import av
import numpy as np
import pytest
from made_labels import MadeClip, box_at, make_labels

from pipeline.labels.config import ExportConfig
from pipeline.labels.corrections import read_corrections, standing
from pipeline.labels.export import export
from pipeline.labels.source import open_labels
from pipeline.records.vocabulary import EMOTIONS, UsageError


def exported(labels, output, format_, **options):
    assert export(ExportConfig(labels=str(labels), format=format_, output=str(output), **options)) == 0
    assert (output / "_SUCCESS").exists()
    return output


def decoded(path):
    with av.open(str(path)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sounds = [frame.to_ndarray() for frame in container.decode(audio=0)] if container.streams.audio else []
        kind = container.streams.video[0].codec_context.name
    return images, sounds, kind


def sound_of(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


@pytest.mark.lengthy
def test_a_video_has_each_box_on_its_frame_and_its_own_sound(made, tmp_path):
    out = exported(made.labels, tmp_path / "out", "video", clips="show/two*")
    (path,) = out.glob("*.mp4")
    images, sounds, kind = decoded(path)
    assert (kind, len(images)) == ("h264", 50)
    for number in (5, 12, 20):
        red, blue = (images[number][..., channel].astype(int) for channel in (0, 2))
        columns = np.flatnonzero((blue - red > 50).sum(axis=0) > 4)  # The outline of person 1, #0072b2.
        expected = box_at(0, number)
        assert abs(columns.min() - expected.x_min) <= 4
        assert abs(columns.max() - expected.x_max) <= 4
    assert len(sounds) > 90
    assert sound_of(path) == sound_of(made.videos / "show" / "two.mp4")  # Copied, not encoded again.


@pytest.mark.lengthy
def test_a_video_of_another_container_becomes_one_that_plays(made, tmp_path):
    out = exported(made.labels, tmp_path / "out", "video", clips="show/one*")
    (path,) = out.glob("*.mp4")
    assert len(decoded(path)[0]) == 50


@pytest.mark.lengthy
def test_a_video_without_faces_keeps_nothing_of_them(tmp_path):
    make_labels(tmp_path / "videos", tmp_path / "labels", [MadeClip("a.mp4", codec="libx264")])
    plain = decoded(next(exported(tmp_path / "labels", tmp_path / "a", "video").glob("*.mp4")))[0]
    hidden = decoded(next(exported(tmp_path / "labels", tmp_path / "b", "video", blur_faces=True).glob("*.mp4")))[0]
    # Beside the drawn outline, 8 pixels in: the made face has a sharp edge only without the blur.
    for number in (2, 11):
        box = box_at(0, number)
        rows = slice(box.y_min + 20, box.y_max - 20)
        assert np.abs(plain[number][rows].astype(int) - hidden[number][rows]).max() > 40
        inner = hidden[number][rows, box.x_min + 8 : box.x_max - 8].astype(int)
        assert np.abs(np.diff(inner, axis=1)).max() < 30


@pytest.mark.lengthy
def test_a_video_that_is_gone_is_left_out_and_told(own, tmp_path, capsys):
    (own.videos / "show" / "two.mp4").unlink()
    out = exported(own.labels, tmp_path / "out", "video")
    assert len(list(out.glob("*.mp4"))) == 2
    said = capsys.readouterr().err
    assert "show/two.mp4" in said
    assert "1 left out" in said


def with_other_bytes(path):
    """Another file of the same size under its name, that plays as well."""
    data = bytearray(path.read_bytes())
    place = data.index(b"Lavc")  # In what the encoder says of itself.
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.lengthy
@pytest.mark.parametrize("format_", ["video", "label-studio", "cvat"])
def test_boxes_of_one_video_are_drawn_on_no_other(tmp_path, capsys, format_):
    make_labels(tmp_path / "videos", tmp_path / "labels", [MadeClip("a.mp4"), MadeClip("b.mp4", num_frames=30)])
    with_other_bytes(tmp_path / "videos" / "a.mp4")
    with (tmp_path / "videos" / "b.mp4").open("ab") as file:
        file.write(b"longer")
    out = exported(tmp_path / "labels", tmp_path / "out", format_)
    assert {path.name for path in out.iterdir()} <= {"export.json", "_SUCCESS", "config.xml"}
    told = capsys.readouterr().err
    for name in ("a.mp4", "b.mp4"):
        assert f"left out: {name} is another file than the one that was scored" in " ".join(told.split())


@pytest.mark.lengthy
def test_tasks_of_label_studio_hold_each_stretch_and_come_back(own, tmp_path):
    out = exported(own.labels, tmp_path / "out", "label-studio", clips="show/one*")
    config = ET.parse(out / "config.xml").getroot()
    assert [each.get("value") for each in config.iter("Label")][:7] == list(EMOTIONS)
    (path,) = (each for each in out.glob("*.json") if each.stem != "export")
    (task,) = json.loads(path.read_text())
    result = task["predictions"][0]["result"]
    assert [each["value"]["labels"] for each in result] == [["Happy"], ["Sad"], ["Anger"]]
    names = {config.find(tag).get("name") for tag in ("VideoRectangle", "Video")}
    assert {each["from_name"] for each in result} | {each["to_name"] for each in result} == names
    first = result[0]["value"]["sequence"][0]
    assert (first["frame"], first["x"], first["width"]) == (1, 100 * 20 / 320, 100 * 60 / 320)
    # An annotator says Fear of the first stretch, and deletes the last.
    changed = json.loads(json.dumps(result))
    changed[0]["value"]["labels"] = ["Fear"]
    task["annotations"] = [{"id": 1, "completed_by": {"email": "ada@x.org"}, "result": changed[:2]}]
    back = tmp_path / "back.json"
    back.write_text(json.dumps([task]))
    for _ in range(2):  # The second time nothing is said twice.
        assert export(ExportConfig(labels=str(own.labels), format="label-studio", import_=str(back))) == 0
    found = standing(read_corrections(open_labels(str(own.labels)).storages))
    assert [
        (c.said, c.label, c.track_index, c.annotator, c.source) for c in sorted(found, key=lambda c: c.track_index)
    ] == [
        ("emotion", "Fear", 0, "ada@x.org", "label-studio"),
        ("not_a_face", None, 1, "ada@x.org", "label-studio"),
    ]


@pytest.mark.lengthy
def test_tracks_of_cvat_hold_each_person_and_come_back(own, tmp_path):
    out = exported(own.labels, tmp_path / "out", "cvat", clips="show/one*")
    (path,) = out.glob("*.xml")
    tree = ET.parse(path)
    tracks = tree.getroot().findall("track")
    assert [track.get("label") for track in tracks] == ["face", "face"]
    boxes = tracks[0].findall("box")
    assert [float(boxes[0].get(side)) for side in ("xtl", "ytl", "xbr", "ybr")] == [20, 30, 80, 90]
    for box in boxes[:2]:
        next(each for each in box.findall("attribute") if each.get("name") == "emotion").text = "Disgust"
    tree.getroot().remove(tracks[1])
    tree.write(tmp_path / "annotations.xml")
    config = ExportConfig(
        labels=str(own.labels), format="cvat", import_=str(tmp_path / "annotations.xml"), annotator="Ben"
    )
    assert export(config) == 0
    one, two = sorted(read_corrections(open_labels(str(own.labels)).storages), key=lambda c: c.track_index)
    assert (one.label, one.annotator, one.source, one.start_pts_seconds) == ("Disgust", "Ben", "cvat", 0.0)
    assert 0.2 < one.end_pts_seconds < 0.5
    assert (two.said, two.track_index, two.start_pts_seconds) == ("not_a_face", 1, None)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("cvat", "<html/>"),
        ("cvat", "<annotations>"),
        ("cvat", '<!DOCTYPE a [<!ENTITY b "c">]><annotations/>'),
        ("cvat", "<annotations><track/></annotations>"),
        ("label-studio", "{"),
        ("label-studio", '[{"data": {}}]'),
        ("label-studio", '[{"data": {"clip_id": "nothing"}}]'),
    ],
)
def test_what_is_no_export_of_theirs_is_refused_whole(own, tmp_path, format_, text):
    path = tmp_path / f"back.{'xml' if format_ == 'cvat' else 'json'}"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"back\.(xml|json)"):
        export(ExportConfig(labels=str(own.labels), format=format_, import_=str(path)))
    assert read_corrections(open_labels(str(own.labels)).storages) == []


@pytest.mark.lengthy
def test_faces_are_read_by_datasets(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = exported(made.labels, tmp_path / "out", "hf", every=1.0)
    import datasets

    found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    rows = [row for split in found.values() for row in split]
    assert sorted((row["clip"], row["person"], row["second"]) for row in rows)[0][:2] == ("other/three.mp4", 1)
    assert len(rows) == 2 + 4 + 2  # Two moments of each of the four persons.
    one = next(iter(found.values()))
    assert one.features["emotion"].names == list(EMOTIONS)
    assert one[0]["image"].size == (224, 224)
    assert np.asarray(one[0]["image"]).min() > 150  # All of it is the bright square.
    assert "guess" in (out / "README.md").read_text()


@pytest.mark.lengthy
def test_figures_are_vectors_with_captions(made, tmp_path):
    out = exported(made.labels, tmp_path / "out", "figure")
    names = {path.name for path in out.iterdir()}
    assert {"collection.svg", "collection.pdf", "collection.md"} < names
    for path in out.glob("*.svg"):
        text = path.read_text()
        assert ET.fromstring(text).tag.endswith("svg")
        assert "<image" not in text
    for path in out.glob("*.pdf"):
        assert path.read_bytes().startswith(b"%PDF")
    caption = (out / "collection.md").read_text()
    assert "0123456789ab" in caption
    assert "N = 1" in caption
    svg = next(out.glob("show_one*.svg")).read_text()
    assert "person 2" in svg
    again = exported(made.labels, tmp_path / "again", "figure", clips="*")
    assert (again / "collection.svg").read_bytes() == (out / "collection.svg").read_bytes()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"format": "csv", "import_": "x"}, "--import"),
        ({"format": "csv"}, "--output"),
        ({"format": "csv", "output": "x", "blur_faces": True}, "--blur-faces"),
    ],
)
def test_flags_that_contradict_each_other_are_named(options, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        ExportConfig(labels="x", **options)


@pytest.mark.lengthy
def test_two_clips_of_one_name_are_two_files(tmp_path):
    one = MadeClip("a/x.mp4", codec="libx264")
    make_labels(tmp_path / "videos", tmp_path / "labels", [one, replace(one, path="a_x.mp4")])
    assert len(list(exported(tmp_path / "labels", tmp_path / "out", "cvat").glob("*.xml"))) == 2
