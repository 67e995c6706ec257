"""One person of a clip of labels is forgotten: nothing of her is left, all of the others, whenever it is cut off."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ledgers import audited, finish, pending, planned, sweep
from made_labels import DAY, SHA256, MadeClip, box_at, make_labels, predicted

from pipeline.labels.source import Labels
from pipeline.ledger.config import ForgetConfig
from pipeline.ledger.files import arrow_bytes, json_bytes
from pipeline.ledger.forgotten import ForgottenPerson, read_records
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.lock import LedgerError
from pipeline.ledger.outputs import runs_in
from pipeline.ledger.retry import quarantined, retry
from pipeline.records.clips import Clip, segment_id
from pipeline.records.faces import Box
from pipeline.records.outcomes import Outcome, State
from pipeline.records.vocabulary import UsageError
from pipeline.score.actor import join_segments
from pipeline.score.forget_job import forget_in
from pipeline.score.forgotten import without_persons
from pipeline.score.labels import UnitLabels
from pipeline.score.night import close_night
from pipeline.storage.store import Storage

pytestmark = pytest.mark.lengthy

REPOSITORY = Path(__file__).resolve().parents[2]
TWO = MadeClip("show/one.avi", codec="mpeg4", emotions=(("Happy", "Sad"), ("Anger", "Anger")))
OTHER = MadeClip("show/two.mp4", codec="mpeg4", num_frames=20, emotions=(("Fear", "Neutral"),))
OTHER_SHA256 = "ba9876543210" + "d" * 52


def made(tmp_path, url=None, *, sha256=SHA256, clips=(TWO, OTHER)):
    """Labels with a page, thumbnails, corrections, an export and the table of clips beside them; the model's ledger."""
    folder = make_labels(tmp_path / "videos", tmp_path / "made", list(clips), sha256=sha256)
    ledger = Ledger(str(folder))
    if url is not None:
        target = Storage(f"{url}/{folder.name}")
        for name in ledger.storage.sizes(""):
            target.put(name, ledger.storage.read(name))
        ledger = Ledger(target.url)
    ids = {each.path: each.clip_id for each in ledger.snapshot().outcomes()}
    put = ledger.storage.put
    put("report.html", b"<img src='data:'>")
    put("summary.json", b"{}")
    put(f"nights/{DAY}.json", b"{}")
    put("nights/2020-01-01.json", b"{}")
    put("tables/export.json", b"{}")
    put("tables/persons.csv", b"all")
    small = {"clip_id": [ids[clip.path] for clip in clips], "jpeg": [b"small"] * len(clips)}
    put(f"thumbnails/day={DAY}/u.arrow", arrow_bytes(pa.table(small)))
    first = ids[TWO.path]
    for name, said in {
        "a": {"clip_id": first, "track_index": 0},
        "b": {"clip_id": first, "track_index": 1},
        "c": {"clip_id": first, "track_index": None},
        "d": {"clip_id": first, "track_index": None, "undoes": "b"},
        "e": {"clip_id": "0" * 20, "track_index": 1},
    }.items():
        put(f"corrections/{name}.json", json_bytes({"correction_id": name, **said}))
    Labels(ledger.storage.url)
    return ledger


@pytest.mark.lengthy
@pytest.mark.parametrize("what", ["clip", "person"])
def test_exports_beside_the_models_go_too_and_what_else_names_the_clip_is_told(what, tmp_path):
    ledger = made(tmp_path)
    beside = Storage(ledger.storage.url.rpartition("/")[0])
    (first,) = (each.clip_id for each in ledger.snapshot().outcomes() if each.path == TWO.path)
    for name in ("tables/export.json", "tables/a.vtt", "deep/er/export.json", "deep/er/x/face.jpg", "deep/notes.txt"):
        beside.put(name, b"{}")
    beside.put("mine.csv", f"id\n{first}\n".encode())
    beside.put("film.mp4", first.encode())
    named = {"clip": (first,)} if what == "clip" else {"person": (f"{first}:2",)}
    told = [line for line, _ in forget_in(runs_in(beside.url), ForgetConfig(output=beside.url, **named))]
    assert {name for name in beside.sizes("") if not name.startswith("model=")} == {
        "deep/notes.txt",
        "mine.csv",
        "film.mp4",
    }
    assert [line for line in told if "lies beside" in line] == (
        [f"warning: {beside.url}/mine.csv lies beside the labels and names it: delete it, if it is about it"]
        if what == "clip"
        else []
    )


def forgotten(output, *persons, **config):
    return list(forget_in(runs_in(output), ForgetConfig(output=output, person=persons, **config)))


def rows_of(ledger, table):
    found = []
    for name in ledger.storage.sizes(table):
        if name.endswith(".parquet"):
            found += pq.read_table(io.BytesIO(ledger.storage.read(name))).to_pylist()
    return found


def check_second_is_gone(ledger):
    """Of the first clip's persons only the first is left, and all of the other clip."""
    assert audited(ledger).holds
    assert audited(ledger).foreign_shards == ()
    faces, tracks = rows_of(ledger, "frames"), rows_of(ledger, "tracks")
    clips = {row["path"]: row for row in rows_of(ledger, "clips")}
    assert {(row["path"], row["person"]) for row in faces} == {(TWO.path, 1), (OTHER.path, 1)}
    assert {(row["path"], row["person"]) for row in tracks} == {(TWO.path, 1), (OTHER.path, 1)}
    one = clips[TWO.path]
    (person,) = (row for row in tracks if row["path"] == TWO.path)
    assert (one["num_faces"], one["num_tracks"], one["state"]) == (10, 1, "done")
    for name in ("probabilities", "emotion", "emotion_shares", "mean_entropy", "p_Happy", "p_Anger", "num_changes"):
        assert one[name] == pytest.approx(person[name]), name
    assert one["emotion_shares"]["Anger"] == 0
    facts = [entry["facts"] for entry in ledger.entries()]
    assert sum(each["faces"] for each in facts) == len(faces)
    shares = np.sum([each["emotion_share_sums"] for each in facts], axis=0)
    assert shares.sum() == pytest.approx(2)
    assert shares[0] == pytest.approx(0)  # Anger
    names = set(ledger.storage.sizes(""))
    assert {name for name in names if name.startswith("corrections/")} == {
        "corrections/a.json",
        "corrections/c.json",
        "corrections/e.json",
    }
    assert not names & {"report.html", "summary.json", f"nights/{DAY}.json", "tables/persons.csv"}
    assert "nights/2020-01-01.json" in names
    assert not [name for name in names if name.startswith("view/")]
    small = pa.ipc.open_file(ledger.storage.read(f"thumbnails/day={DAY}/u.arrow")).read_all()
    assert small["clip_id"].to_pylist() == [clips[OTHER.path]["clip_id"]]
    labels = Labels(ledger.storage.url)
    row = labels.clip(one["clip_id"])
    assert (row["num_tracks"], labels.persons(row)["track_index"].to_pylist()) == (1, [0])


@pytest.mark.parametrize("store", ["disk", "s3"])
def test_a_person_is_forgotten_and_the_others_stay(store, tmp_path, request):
    url = request.getfixturevalue("s3").url("labels") if store == "s3" else str(tmp_path / "labels")
    ledger = made(tmp_path, url)
    before = {name: ledger.storage.read(name) for name in ledger.storage.sizes("")}
    ((line, left),) = forgotten(url, f"{TWO.path}:2", dry_run=True)
    assert "would be forgotten: show/one.avi: person 2 (10 faces, 0.00 to 1.80 s); its other persons: 1" in line
    assert left == ()
    assert {name: ledger.storage.read(name) for name in ledger.storage.sizes("")} == before
    lines = forgotten(url, f"{TWO.path}:2")
    assert all(left == () for _, left in lines)
    assert "10 faces" in lines[0][0]
    assert "0 of them hold something of it" in lines[1][0]
    check_second_is_gone(ledger)
    # Once more it changes nothing, and the same command does not end in an error.
    after = {name: ledger.storage.read(name) for name in ledger.storage.sizes("ledger")}
    assert all(left == () for _, left in forgotten(url, f"{TWO.path}:2"))
    assert {name: ledger.storage.read(name) for name in ledger.storage.sizes("ledger")} == after


def test_a_clip_whose_only_person_is_forgotten_is_forgotten(tmp_path):
    ledger = made(tmp_path)
    (clip,) = (each for each in ledger.snapshot().outcomes() if each.path == OTHER.path)
    forgotten(str(tmp_path / "made"), f"{clip.clip_id}:1")
    states = {each.path: each.state for each in ledger.snapshot().outcomes()}
    assert states == {TWO.path: State.DONE, OTHER.path: State.FORGOTTEN}
    assert {row["path"] for row in rows_of(ledger, "clips")} == {TWO.path}
    assert audited(ledger).holds
    assert all(left == () for _, left in forgotten(str(tmp_path / "made"), f"{clip.clip_id}:1"))


@pytest.mark.parametrize(
    ("person", "message"),
    [
        (f"{TWO.path}:3", r"show/one.avi has no person 3 in .*; its persons: 1, 2"),
        ("nobody.mp4:1", "'nobody.mp4' is no id or path of a clip"),
    ],
)
def test_who_is_not_there_is_reported(person, message, tmp_path):
    made(tmp_path)
    with pytest.raises(UsageError, match=message):
        forgotten(str(tmp_path / "made"), person)


@pytest.mark.parametrize("person", ["clip", "clip:", "clip:0", "clip:-1", "clip:x", ":2", "clip:2 "])
def test_what_names_no_person_is_refused(person):
    with pytest.raises(ValueError, match="give CLIP:N"):
        ForgetConfig(output="x", person=(person,))


def test_examples_have_no_persons(tmp_path):
    ledger = Ledger(str(tmp_path))
    ledger.begin(kind="examples", config={}, versions={}, schema_version=1)
    with pytest.raises(
        UsageError, match=r"holds examples, which have no persons.*; forget the whole clip, with --clip ID"
    ):
        forgotten(str(tmp_path), "a.mp4:1")


def test_other_models_know_who_it_is_by_where_it_was(tmp_path):
    """Another model sees the persons in another order, and only every tenth frame."""
    ledger = made(tmp_path)
    swapped = replace(TWO, emotions=(("Anger", "Anger"),), every=10)
    made(tmp_path, sha256=OTHER_SHA256, clips=(swapped, OTHER))
    with pytest.raises(UsageError, match=r"person 1 of .* has no|has no person 3"):
        forgotten(str(tmp_path / "made"), f"{TWO.path}:3")
    forgotten(str(tmp_path / "made"), f"{TWO.path}:2")  # Of the first model; the other has not found her.
    check_second_is_gone(ledger)
    other = Ledger(str(tmp_path / "made" / f"model={OTHER_SHA256[:12]}"))
    assert {row["path"] for row in rows_of(other, "frames")} == {TWO.path, OTHER.path}
    (small,) = (name for name in other.storage.sizes("thumbnails"))
    assert pa.ipc.open_file(other.storage.read(small)).read_all().num_rows == 1


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.timeout(1200)
def test_a_kill_at_any_moment_leaves_what_the_same_command_ends(step, monkeypatch, tmp_path):
    class Killed(BaseException):
        """Stands for SIGKILL: what is written is written, and nothing more is."""

    changes = {"left": 10**9}

    def counted(method):
        def count(storage, *arguments):
            if "lock.json" not in arguments:
                if changes["left"] == 0:
                    raise Killed
                changes["left"] -= 1
            return method(storage, *arguments)

        return count

    made(tmp_path)
    number, is_done = 0, False
    while not is_done:
        output = str(shutil.copytree(tmp_path / "made", tmp_path / str(number)))
        with monkeypatch.context() as patch:
            for name in ("put", "put_stream", "delete"):
                patch.setattr(Storage, name, counted(getattr(Storage, name)))
            changes["left"] = number
            try:
                forgotten(output, f"{TWO.path}:2")
                is_done = True
            except Killed:
                pass
        changes["left"] = 10**9
        if not is_done:
            assert all(left == () for _, left in forgotten(output, f"{TWO.path}:2"))
        check_second_is_gone(runs_in(output)[0])
        number += step
    assert number >= 15


@pytest.mark.chaos
@pytest.mark.parametrize("point", [5, 12])
def test_a_killed_command_is_ended_by_the_same_command(point, tmp_path):
    ledger = made(tmp_path)
    flags = (str(tmp_path / "made"), "--person", f"{TWO.path}:2")
    killed = [sys.executable, REPOSITORY / "tests" / "support" / "killed_forget.py", str(point), *flags]
    assert subprocess.run(killed, check=False, capture_output=True, timeout=120, cwd=REPOSITORY).returncode == -9
    again = [sys.executable, REPOSITORY / "jobs" / "forget.py", *flags]
    ended = subprocess.run(again, check=False, capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    assert ended.returncode == 0, ended.stderr
    assert "0 of them hold something of it" in ended.stdout + ended.stderr
    check_second_is_gone(ledger)


def faces_of(*persons, frames=range(0, 50, 5), fps=25.0):
    """Faces of the made persons, as extracted."""
    clip = replace(TWO, emotions=(("Happy", "Happy"), ("Sad", "Sad")), every=1)
    faces, _ = predicted(clip, "0" * 20, np.arange(50) / fps)
    return [face for face in faces if face.frame_index in frames and face.face_index in persons]


def noted(person=1, **values):
    faces = tuple((face.pts_seconds, face.box) for face in faces_of(person))
    own = {"clip_ids": ("0" * 20,), "contents": (), "numbers": (2,), "faces": faces}
    return ForgottenPerson(**{**own, **values})


@pytest.mark.parametrize("frames", [range(0, 50, 5), range(50), range(2, 50, 7), range(25, 50, 5), range(3, 9)])
def test_a_later_run_leaves_the_person_out_whatever_frames_it_samples(frames):
    kept = without_persons(faces_of(0, 1, frames=frames), [noted()])
    assert kept == faces_of(0, frames=frames)
    assert without_persons(faces_of(0, frames=frames), [noted()]) == faces_of(0, frames=frames)
    assert without_persons(faces_of(0, 1, frames=frames), [noted(0), noted(1)]) == []


def test_a_person_elsewhere_or_at_another_time_stays():
    faces = faces_of(0, 1)
    away = tuple((time, Box(box.x_min + 100, box.y_min, box.x_max + 100, box.y_max)) for time, box in noted().faces)
    assert without_persons(faces, [noted(faces=away)]) == faces
    later = tuple((time + 60.0, box) for time, box in noted().faces)
    assert without_persons(faces, [noted(faces=later)]) == faces
    assert without_persons(faces, []) == faces


def test_who_was_forgotten_by_one_model_is_known_to_the_next(tmp_path):
    ledger = made(tmp_path)
    clips = {each.path: each for unit in ledger.snapshot().units() for each in unit.clips}
    forgotten(str(tmp_path / "made"), f"{TWO.path}:2")
    forgotten(str(tmp_path / "made"), path=OTHER.path)
    record = read_records(Storage(str(tmp_path / "made" / f"model={OTHER_SHA256[:12]}")))
    (person,) = record.persons_of(clips[TWO.path])
    assert person.faces == tuple((frame / 25, box_at(1, frame)) for frame in range(0, 50, 5))
    assert record.holds(clips[OTHER.path])
    assert not record.holds(clips[TWO.path])
    renamed = Clip(**{**asdict(clips[TWO.path]), "clip_id": "f" * 20, "path": "again.avi"})
    assert record.persons_of(renamed) == [person]
    assert json.loads(ledger.storage.read("forgotten.json"))["persons"][0]["numbers"] == [2]


def segment_labels(ledger, unit, persons, frames):
    """Commit one segment's faces, as an actor does."""
    (part,) = unit.clips
    faces = [replace(face, face_index=0) for face in faces_of(*persons, frames=frames)]
    faces = [replace(face, clip_id=part.clip_id.partition(".")[0]) for face in faces]
    rows = UnitLabels(SHA256, abstain_below=0.0, day=DAY)
    state, reason = (State.DONE, None) if faces else (State.QUARANTINED, "crash")
    counts = {"num_frames": len(frames), "num_examples": len(faces)}
    outcome = Outcome(clip_id=part.clip_id, path=part.path, state=state, reason=reason, **counts)
    rows.add(part, outcome, faces, np.full((len(faces), 7), 1 / 7, np.float32))
    ledger.commit(
        unit, tables={"segments": rows.tables()["frames"]}, outcomes=[outcome], facts={}, partition=f"day={DAY}"
    )


def test_a_person_of_a_film_leaves_its_segments_and_comes_back_with_none_of_them(tmp_path):
    film = Clip(clip_id="0" * 20, path="film.mp4", url="/film.mp4", size_bytes=1, content_id="x")
    parts = [replace(film, clip_id=segment_id(film.clip_id, number)) for number in range(3)]
    copy = replace(film, clip_id="c" * 20, path="again.mp4", same_as=film.clip_id)
    ledger = Ledger(str(tmp_path / f"model={SHA256[:12]}"))
    planned(ledger, [*parts, replace(film, same_as=film.clip_id), copy], kind="labels", config={}, versions={},
            clips_per_shard=32)  # fmt: skip
    options = {"checkpoint_sha256": SHA256, "abstain_below": 0.0, "day": DAY}
    with pytest.raises(LedgerError, match=r"film.mp4 in .* is not finished, so its persons have no numbers yet"):
        forgotten(str(tmp_path), "film.mp4:1")
    spans = [range(0, 20, 2), range(20, 30, 2), range(30, 50, 2)]
    for unit, persons, frames in zip(pending(ledger, kinds=("compute",)), [(0, 1), (), (0, 1)], spans, strict=True):
        segment_labels(ledger, unit, persons, frames)

    def join():
        snapshot = ledger.snapshot()
        join_segments(ledger, snapshot, **options)
        close_night(ledger, snapshot, day=DAY)
        finish(ledger)
        sweep(ledger)

    join()
    assert {row["person"] for row in rows_of(ledger, "frames")} == {1, 2}
    assert all(left == () for _, left in forgotten(str(tmp_path), "again.mp4:2"))
    for table in ("segments", "frames"):
        rows = rows_of(ledger, table)
        assert {row["box"]["y_min"] for row in rows} == {30}, table
        assert len(rows) == 20
    assert {row["num_faces"] for row in rows_of(ledger, "clips")} == {20}
    assert audited(ledger).holds
    # The segment that failed is tried again, and she is in it.
    assert retry(ledger, quarantined(ledger)) == 2  # The film and its copy.
    (unit,) = pending(ledger, kinds=("compute",))
    segment_labels(ledger, unit, (0, 1), spans[1])
    join()
    assert {row["box"]["y_min"] for row in rows_of(ledger, "frames")} == {30}
    assert len(rows_of(ledger, "frames")) == 25
    assert audited(ledger).holds
