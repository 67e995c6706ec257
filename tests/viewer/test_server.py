"""What the server answers, and to whom."""

import io
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import parse_qs

import av
import numpy as np
import pytest
from films import draw_film
from made_labels import MadeClip, make_labels
from PIL import Image
from viewing import TOKEN, until, viewing

from pipeline.records.vocabulary import UsageError
from pipeline.viewer.config import ViewConfig
from pipeline.viewer.serve import opened_models, place_of

pytestmark = pytest.mark.lengthy

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.lengthy
@pytest.mark.parametrize("path", ["/", "/static/main.js", "/api/clips", "/picture/x", "/media/x/whole", "/nothing"])
def test_nothing_is_said_without_the_token(viewer, path):
    for token in (None, "wrong", TOKEN[:-1]):
        answer = viewer.get(path, token=token)
        assert answer.status == 403
        assert b"token" in answer.body


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::2]"])
def test_another_host_name_is_refused_whatever_it_knows(viewer, host):
    assert viewer.get(f"/?token={TOKEN}", Host=host).status == 403


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost", "LOCALHOST:9000", "[::1]:80"])
def test_loopback_names_are_answered_at_any_port_of_a_tunnel(viewer, host):
    assert viewer.get("/api/clips", Host=host).status == 200


def test_the_address_gives_a_cookie_that_no_other_site_gets(viewer):
    answer = viewer.get(f"/?token={TOKEN}", token=None)
    assert answer.status == 200
    assert "HttpOnly; SameSite=Strict" in answer.headers["set-cookie"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({}, 400),
    ],
)
def test_no_other_site_changes_anything(viewer, headers, status):
    clip = viewer.ids()["show/one.avi"]
    given = {"Content_Type": "application/json", **headers}
    answer = viewer.get(f"/api/clips/{clip}/corrections", method="POST", body={"said": "x"}, **given)
    assert answer.status == status


@pytest.mark.parametrize("name", ["../app.py", "..%2Fapp.py", "%2e%2e%2fconfig.py", "viewer.css.py", "x.css"])
def test_only_the_files_of_the_page_are_given(viewer, name):
    assert viewer.get(f"/static/{name}").status == 404


@pytest.mark.parametrize(
    ("asked", "paths"),
    [
        ("emotion=Anger", ["show/one.avi"]),
        ("state=no_face", ["other/nobody.mp4"]),
        ("reason=not_a_video", ["other/broken.mp4"]),
        ("q=TWO", ["show/two.mp4"]),
        ("show=other&state=done", ["other/three.mkv"]),
        ("min_persons=2", ["show/one.avi"]),
        ("max_agreement=0.5&q=show&min_entropy=1.6", ["show/two.mp4"]),
        ("state=done&sort=-entropy&size=2", ["show/two.mp4", "other/three.mkv"]),
        ("state=done&sort=-entropy&size=2&start=2", ["show/four.ts", "show/one.avi"]),
        ("day=2026-11-21", []),
        ("corrected=yes", []),
        ("q=%25", []),
    ],
)
def test_filters_order_and_pages(viewer, asked, paths):
    found = viewer.get(f"/api/clips?{asked}").json()
    assert [row["path"] for row in found["rows"]] == paths


def test_a_clip_says_where_its_cuts_are(tmp_path):
    clips = [MadeClip("a.avi", cut=25), MadeClip("b.avi")]
    make_labels(tmp_path / "videos", tmp_path / "labels", clips)
    with viewing(tmp_path / "labels") as viewer:
        ids = viewer.ids()
        cut, whole = (viewer.get(f"/api/clips/{ids[name]}").json() for name in ("a.avi", "b.avi"))
    assert (cut["cuts"], whole["cuts"]) == ([pytest.approx(1.0, abs=0.041)], [])
    assert [person["last"] for person in cut["persons"]] == [pytest.approx(0.8, abs=0.05), pytest.approx(1.8, abs=0.05)]
    assert whole["num_tracks"] == 1


def test_counts_follow_the_filters(viewer):
    every, some = viewer.get("/api/clips").json(), viewer.get("/api/clips?q=show&size=1").json()
    assert every["total"] == 6
    assert every["states"] == {"done": 4, "no_face": 1, "quarantined": 1}
    assert some["total"] == 3
    assert {name: num for name, num in some["emotions"].items() if num} == {"Anger": 1, "Disgust": 1, "Happy": 1}
    (night,) = viewer.get("/api/drift?q=show").json()
    assert (night["day"], night["num"], night["Anger"]) == ("2026-11-20", 3, 1)


def test_clips_of_which_the_model_is_too_uncertain_are_counted_and_found(tmp_path):
    sure = MadeClip("a.mp4", emotions=(("Happy", "Happy"),))
    clips = [sure, MadeClip("b.mp4", sureness=0.4, num_frames=40), MadeClip("c.mp4", emotions=())]
    make_labels(tmp_path / "videos", tmp_path / "labels", clips, abstain_below=0.5)
    with viewing(tmp_path / "labels") as found:
        every, some = (found.get(f"/api/clips{asked}").json() for asked in ("", "?emotion=abstained"))
    assert (every["num_abstained"], every["states"]) == (1, {"done": 2, "no_face": 1})
    assert [row["path"] for row in some["rows"]] == ["b.mp4"]
    assert (some["total"], some["num_abstained"], sum(some["emotions"].values())) == (1, 1, 0)


@pytest.mark.parametrize("asked", ["sort=nothing", "emotion=Joy", "start=-1", "size=a", "min_persons=nan", "differ=1"])
def test_a_wrong_question_is_named(viewer, asked):
    answer = viewer.get(f"/api/clips?{asked}")
    assert answer.status == 400
    assert asked.partition("=")[0] in answer.json()["error"]


def test_times_are_read_as_browsers_write_them(viewer):
    clip = viewer.ids()["show/one.avi"]
    for times in ("from=0.30000000000000004&to=2.0000000000000004", "from=1e-7&to=1.5e0"):
        assert viewer.get(f"/api/clips/{clip}/faces?{times}").status == 200
    for times in ("from=nan&to=2", "from=0&to=1e999", "from=0&to=0x10", "from=&to=1", "from=1_0&to=11"):
        assert "give a number" in viewer.get(f"/api/clips/{clip}/faces?{times}").json()["error"]


def test_a_clip_that_is_not_there_is_named(viewer):
    assert viewer.get("/api/clips/nothing").status == 404
    assert "cannot be shown" in viewer.get(f"/api/clips/{viewer.ids()['other/broken.mp4']}/video").json()["error"]


def test_a_file_that_browsers_play_is_given_by_ranges(viewer, drawn):
    data = (drawn / "videos" / "show" / "two.mp4").read_bytes()
    path = f"/media/{viewer.ids()['show/two.mp4']}/whole"
    assert viewer.get(path).body == data
    part = viewer.get(path, Range="bytes=100-199")
    assert (part.status, part.body) == (206, data[100:200])


@pytest.mark.parametrize("path", ["show/one.avi", "show/four.ts", "other/three.mkv"])
def test_other_files_are_converted_in_stretches_that_join(viewer, path):
    clip = viewer.ids()[path]
    facts = viewer.get(f"/api/clips/{clip}/video").json()
    assert viewer.get(f"/media/{clip}/whole").status == 404
    times, sounds = [], []
    for number in range(facts["num_stretches"]):
        answer = viewer.get(f"/media/{clip}/{number}.mp4")
        if answer.status == 204:  # The container claims a little more than its frames.
            assert number + 1 == facts["num_stretches"]
            continue
        with av.open(io.BytesIO(answer.body)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            for packet in container.demux():
                if packet.pts is not None:
                    own = times if packet.stream.type == "video" else sounds
                    own.append(float(packet.pts * packet.time_base))
    assert np.allclose(np.diff(times[1:]), 0.04, atol=1e-3)  # The made AVI has a longer first frame.
    assert len(times) == {"show/one.avi": 100, "show/four.ts": 100, "other/three.mkv": 50}[path]
    if facts["sound"]:
        assert np.allclose(np.diff(sounds), 1024 / 48_000, atol=1e-4)  # No gap and no packet twice between stretches.
    first = viewer.get(f"/media/{clip}/0.mp4", Range="bytes=0-9")
    assert (first.status, len(first.body)) == (206, 10)


def test_pictures_show_the_frame_of_a_time(viewer):
    clip = viewer.ids()["show/one.avi"]
    for seconds in (0.4, 2.0):
        data = viewer.get(f"/picture/{clip}?t={seconds}&px=320").body
        image = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
        columns = np.flatnonzero((image[40:80] > 200).all(axis=0))
        assert abs(columns.min() - (20 + 2 * 25 * seconds)) <= 4


@pytest.mark.lengthy
def test_no_face_is_shown_where_faces_are_blurred(drawn):
    with viewing(drawn / "labels", blur_faces=True) as found:
        clip = found.ids()["show/two.mp4"]
        assert found.get(f"/media/{clip}/whole").status == 404
        image = np.asarray(Image.open(io.BytesIO(found.get(f"/picture/{clip}?t=0&px=320").body)).convert("L"))
        # The edge of the bright square was one pixel wide.
        assert np.abs(np.diff(image.astype(int), axis=1)).max() < 60
        with av.open(io.BytesIO(found.get(f"/media/{clip}/0.mp4").body)) as container:
            frame = next(container.decode(video=0)).to_ndarray(format="gray").astype(int)
        assert np.abs(np.diff(frame, axis=1)).max() < 60


def test_a_correction_is_saved_read_and_taken_back_by_its_annotator_alone(own_viewer):
    clip = own_viewer.ids()["show/one.avi"]
    path = f"/api/clips/{clip}/corrections"
    said = {"said": "emotion", "label": "Fear", "annotator": "Ada", "track_index": 1, "start_pts_seconds": 0.5}
    (one,) = own_viewer.get(path, method="POST", body=said, Content_Type="application/json").json()
    assert (one["label"], one["start_pts_seconds"], one["end_pts_seconds"]) == ("Fear", 0.5, None)
    assert own_viewer.get("/api/clips?corrected=yes").json()["rows"][0]["num_corrections"] == 1
    undo = {"said": "undo", "annotator": "Ben", "undoes": one["correction_id"]}
    assert own_viewer.get(path, method="POST", body=undo, Content_Type="application/json").status == 400
    undo["annotator"] = "Ada"
    assert own_viewer.get(path, method="POST", body=undo, Content_Type="application/json").json() == []
    assert len(list(own_viewer.labels.glob("model=*/corrections/*.json"))) == 2


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([], "object"),
        ({"said": "emotion", "annotator": "Ada", "label": "Joy"}, "label"),
        ({"said": "emotion", "annotator": "", "label": "Sad"}, "annotator"),
        ({"said": "not_a_face"}, "annotator"),
        ({"said": "cannot_tell", "annotator": "Ada", "track_index": 9}, "track_index"),
        ({"said": "cannot_tell", "annotator": "Ada", "start_pts_seconds": 2, "end_pts_seconds": 1}, "span"),
        ({"said": "cannot_tell", "annotator": "Ada", "correction_id": "../x"}, "correction_id"),
        ({"said": "undo", "annotator": "Ada", "undoes": "x"}, "undoes"),
        ({"said": "cannot_tell", "annotator": "Ada", "start_pts_seconds": float("inf")}, "start_pts_seconds"),
        ({"said": "cannot_tell", "annotator": "Ada", "end_pts_seconds": float("nan")}, "end_pts_seconds"),
    ],
)
def test_what_no_correction_can_be_is_refused(own_viewer, said, told):
    clip = own_viewer.ids()["show/one.avi"]
    path = f"/api/clips/{clip}/corrections"
    answer = own_viewer.get(path, method="POST", body=said, Content_Type="application/json")
    assert answer.status == 400
    assert told in answer.json()["error"]
    assert own_viewer.get(path).json() == []


@pytest.mark.lengthy
def test_two_models_stand_side_by_side(tmp_path):
    clips = [MadeClip("a.mp4", codec="libx264"), MadeClip("b.mp4", codec="libx264", num_frames=40)]
    make_labels(tmp_path / "videos", tmp_path / "labels", clips)
    other = [MadeClip("a.mp4", codec="libx264", emotions=(("Fear", "Fear"),)), clips[1]]
    make_labels(tmp_path / "videos", tmp_path / "labels", other, sha256="fedcba987654" + "0" * 52, draw=False)
    with viewing(tmp_path / "labels") as found:
        assert found.get("/api/collection").json()["models"] == ["0123456789ab", "fedcba987654"]
        (row,) = found.get("/api/clips?differ=1").json()["rows"]
        assert (row["path"], row["emotion"], row["other_emotion"]) == ("a.mp4", "Happy", "Fear")
        strips = found.get(f"/api/clips/{row['clip_id']}/strips?model=1&from=0&to=2&step=0.2").json()
        assert {each[0] for each in strips[0]["bins"]} == {2}


@pytest.mark.lengthy
def test_labels_and_videos_in_a_bucket(s3, drawn):
    for folder in ("labels", "videos"):
        for path in (drawn / folder).rglob("*"):
            if path.is_file():
                s3.put(f"{folder}/{path.relative_to(drawn / folder)}", path.read_bytes())
    with viewing(s3.url("labels"), s3.url("videos")) as found:
        clip = found.ids()["show/two.mp4"]
        assert len(found.get(f"/media/{clip}/whole").body) == (drawn / "videos" / "show" / "two.mp4").stat().st_size
        said = {"said": "cannot_tell", "annotator": "Ada"}
        path = f"/api/clips/{clip}/corrections"
        assert len(found.get(path, method="POST", body=said, Content_Type="application/json").json()) == 1
    assert any("/corrections/" in name for name in s3.fs.find(f"{s3.bucket}/labels"))


def test_another_file_under_the_name_is_told_and_shown_to_nobody_whose_faces_are_hidden(tmp_path):
    make_labels(tmp_path / "videos", tmp_path / "labels", [MadeClip("a.mp4"), MadeClip("b.mp4", num_frames=30)])
    path = tmp_path / "videos" / "a.mp4"
    data = bytearray(path.read_bytes())
    data[data.index(b"Lavc")] ^= 1
    with viewing(tmp_path / "labels") as found:
        ids = found.ids()
        assert found.get(f"/api/clips/{ids['a.mp4']}/video").json()["is_changed"] is False
        path.write_bytes(data)
        assert found.get(f"/api/clips/{ids['a.mp4']}/video").json()["is_changed"] is True
    with viewing(tmp_path / "labels", blur_faces=True) as found:
        for address in (f"/picture/{ids['a.mp4']}", f"/media/{ids['a.mp4']}/0.mp4"):
            answer = found.get(address)
            assert answer.status == 404
            assert "another file than the one that was scored" in answer.json()["error"]
        assert found.get(f"/picture/{ids['b.mp4']}").status == 200


def test_a_large_file_is_told_from_another_while_the_page_waits(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.labels.videos.SOON_HASHED_BYTES", 10)
    make_labels(tmp_path / "videos", tmp_path / "labels", [MadeClip("a.mp4")])
    with viewing(tmp_path / "labels") as found:
        address = f"/api/clips/{found.ids()['a.mp4']}/video"
        assert found.get(address).json()["is_changed"] is None
        until(lambda: found.get(address).json()["is_changed"] is False)


def test_what_is_swept_from_under_the_viewer_is_one_line_on_the_page(tmp_path, monkeypatch):
    make_labels(tmp_path / "videos", tmp_path / "labels", [MadeClip("a.mp4")])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with viewing(tmp_path / "labels") as found:
        assert found.get("/api/clips").json()["total"] == 1
        for path in scratch.rglob("*.parquet"):
            path.unlink()
        answer = found.get("/api/clips")
    assert answer.status == 502
    assert "temporary folder cannot be read" in answer.json()["error"]
    assert "start it again" in answer.json()["error"]


def started(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "jobs" / "view.py"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        **options,
    )


def test_an_address_opens_a_clip_at_its_second(drawn):
    (labels,) = opened_models(ViewConfig(labels=str(drawn / "labels")))
    clip = next(labels.database.rows("select * from clips where path = 'show/four.ts'"))
    first = labels.faces(clip).slice(0, 1).to_pylist()[0]
    zero = 0.0 if first["seconds"] is None else first["pts_seconds"] - first["seconds"]
    for name in (clip["path"], clip["clip_id"]):
        asked = parse_qs(place_of(labels, name, seconds=1.5).removeprefix("&"))
        assert asked == {"clip": [clip["clip_id"]], "t": [f"{zero + 1.5:.3f}"]}
    with pytest.raises(UsageError, match="--clip 'nothing' is no path or clip_id"):
        place_of(labels, "nothing", seconds=0.0)
    with pytest.raises(ValueError, match=r"--at is 3\.0 without --clip"):
        ViewConfig(labels="labels", at=3.0)


@pytest.mark.lengthy
def test_the_job_prints_its_address_and_ends_when_it_is_told(drawn, tmp_path):
    with started(drawn / "labels", "--no-browser", cwd=tmp_path) as process:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        assert "token=" in address
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "99999"], "--port is 99999"),
        (["--input", "nowhere"], "--input nowhere"),
        (["--model", "fff"], "--model is 'fff'"),
        (["--cache-gib", "0"], "--cache-gib is 0"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(drawn, tmp_path, arguments, told):
    with started(drawn / "labels", "--no-browser", *arguments, cwd=tmp_path) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert told in errors
    assert "Traceback" not in errors


def test_a_film_in_a_bucket_that_browsers_play_is_given_by_ranges(s3, tmp_path):
    make_labels(tmp_path / "videos", tmp_path / "labels", [MadeClip("a.mp4", codec="libx264")])
    data = draw_film(tmp_path / "a.mp4", "libx264", seconds=24).read_bytes()
    s3.put("videos/a.mp4", data)
    with viewing(tmp_path / "labels", s3.url("videos")) as found:
        path = f"/media/{found.ids()['a.mp4']}/whole"
        assert found.get(path, Range="bytes=100-199").body == data[100:200]
        begun = found.get(path, Range="bytes=1000000-")
        assert (begun.status, begun.body) == (206, data[1_000_000 : 1_000_000 + len(begun.body)])
        end = 1_000_000 + len(begun.body) - 1
        assert begun.headers["content-range"] == f"bytes 1000000-{end}/{len(data)}"
        assert found.get(path, Range="bytes=-500").body == data[-500:]
        assert found.get(path, Range=f"bytes={len(data)}-").status == 416
        assert found.get(path).body == data
