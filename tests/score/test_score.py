"""Scoring night by night on a real S3 server: what is new, renamed, changed, removed, retryable or left for later."""

import io
import json
import os
import shutil
from dataclasses import replace

import av
import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch
from example_shards import drawn_example
from ledgers import audited, finish, pending, planned, planned_night

from pipeline.corpus.read import read_corpus
from pipeline.dataset.card import labels_card
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.lock import LedgerError
from pipeline.ledger.retry import chosen, quarantined, retry
from pipeline.ledger.snapshot import Snapshot
from pipeline.models.build import build_model
from pipeline.models.checkpoint import save_checkpoint
from pipeline.models.checkpoint_info import temperature_of, write_best
from pipeline.models.predict import Predictor
from pipeline.records.clips import CLIP_SCHEMA, Clip, clip_table
from pipeline.records.faces import CLIP_LABEL_SCHEMA, FRAME_SCHEMA, TRACK_SCHEMA
from pipeline.records.outcomes import Outcome, State
from pipeline.records.vocabulary import EMOTIONS, UsageError
from pipeline.runtime import cluster
from pipeline.score.config import ScoreConfig, parse_since
from pipeline.score.drift import unit_facts
from pipeline.score.job import score
from pipeline.score.night import (
    DEFAULT_SECONDS_PER_CLIP,
    close_night,
    commit_copies,
    estimated_seconds,
    partition_of,
    plan_night,
)
from pipeline.storage.spool import spooled
from pipeline.storage.store import Storage
from pipeline.synthetic.corpus import BROKEN_PATH, FACELESS_PATH, make_corpus

pytestmark = [pytest.mark.lengthy, pytest.mark.timeout(600)]
OPTIONS = {"attention_gain": "area", "recalibration_scale": "sqrt", "dropout": 0.5}
READING = {"detector": "dlib-hog", "frames_per_clip": 2, "face_px": 32, "context_px": 32, "faces": "largest"}


def save_model(folder, *, seed, **info):
    """A run with one checkpoint of an untrained network; its sha256."""
    torch.manual_seed(seed)
    sha256 = save_checkpoint(
        str(folder),
        epoch=1,
        step=1,
        model=build_model("caer-net-s"),
        optimizer_state={},
        config={
            "model": {"name": "caer-net-s", "options": OPTIONS, "face_px": 32, "context_px": 32},
            "training": {},
            "preprocessing": READING,
        },
        info={"metrics": {}, "manifest_sha256": "ab" * 32, **info},
    )
    write_best(str(folder), epoch=1, top1_accuracy=0.5)
    return sha256


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The bytes of clips with a face, of one without, and of a broken one."""
    folder = tmp_path_factory.mktemp("made")
    make_corpus(folder, clips_per_class=(3, 0, 0), seed=4)
    faces = [path.read_bytes() for path in sorted(folder.rglob("000*.avi"))]
    return {
        **{f"face {number}": content for number, content in enumerate(faces)},
        "nobody": (folder / FACELESS_PATH).read_bytes(),
        "broken": (folder / BROKEN_PATH).read_bytes(),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two runs and their sha256."""
    folder = tmp_path_factory.mktemp("models")
    return [(str(folder / str(seed)), save_model(folder / str(seed), seed=seed)) for seed in (0, 1)]


@pytest.fixture
def without_ray(monkeypatch):
    """A run that starts Ray, or so much as asks it for a GPU, fails."""

    def start():
        raise AssertionError("Ray was started")

    def forbid():
        monkeypatch.setattr(cluster, "start_ray", start)

    return forbid


def objects_of(s3, path):
    """Every object below a path with its bytes."""
    s3.fs.invalidate_cache()
    return {name: s3.fs.cat_file(name) for name in s3.fs.find(f"{s3.bucket}/{path}")}


def rows_of(folder, table):
    """The rows of one table as a user's query sees them."""
    query = f"from read_parquet('{folder}/*/{table}/**/*.parquet', hive_partitioning=true)"
    return duckdb.sql(query).to_arrow_table().to_pylist()


def test_nights_on_a_bucket_that_changes(s3, made, models, without_ray, tmp_path):
    checkpoint, sha256 = models[0]

    def night(day, model=checkpoint, **changes):
        values = {"input": s3.url("uploads"), "checkpoint": model, "output": s3.url("labels"), "no_ray": True}
        return score(ScoreConfig(**{**values, "day": f"2026-11-{day}", **changes}))

    def clips():
        return {clip.path: clip for clip in read_corpus(s3.url("uploads"), split_fractions=None).clips}

    for path, name in {
        "0.avi": "face 0",
        "1.avi": "face 1",
        "2.avi": "face 2",
        "again/1.avi": "face 1",
        "broken.mp4": "broken",
        "nobody.avi": "nobody",
    }.items():
        s3.put(f"uploads/{path}", made[name])

    # The first night: the first three contents; the same bytes under a second name cost nothing.
    first = night(20, limit=3)
    assert first.exit_code == 0
    assert (first.summary["scored"], first.summary["same_content"], first.summary["inputs"]) == (3, 1, 4)
    assert {outcome.path for outcome in first.ledger.snapshot().outcomes()} == {
        "0.avi",
        "1.avi",
        "2.avi",
        "again/1.avi",
    }
    ledger = Ledger(s3.url(f"labels/model={sha256[:12]}"))
    assert ledger.storage.url == first.ledger.storage.url
    before = objects_of(s3, f"labels/model={sha256[:12]}/ledger")

    # By day: one is renamed, one has other bytes, one is removed, one is new. A run was cut off before nobody.avi,
    # which has another name since, and the store failed at late.avi.
    s3.fs.mv(f"{s3.bucket}/uploads/2.avi", f"{s3.bucket}/uploads/moved/2.avi")
    s3.put("uploads/0.avi", made["face 3"])
    s3.fs.rm(f"{s3.bucket}/uploads/1.avi")
    s3.put("uploads/late.avi", made["face 4"])
    info = ledger.run_info()
    options = {"kind": info["kind"], "config": info["config"], "versions": info["versions"], "clips_per_shard": 8}
    for name in ("nobody.avi", "late.avi"):
        planned(ledger, [clips()[name]], **options)
    unit = pending(ledger)[1]
    failed = Outcome(
        clip_id=unit.clips[0].clip_id, path="late.avi", state=State.RETRYABLE, reason="store_failed", stage="fetch"
    )
    schemas = {"frames": FRAME_SCHEMA, "tracks": TRACK_SCHEMA, "clips": CLIP_LABEL_SCHEMA}
    empty = {name: schema.empty_table() for name, schema in schemas.items()}
    ledger.commit(unit, tables=empty, outcomes=[failed], facts={}, partition="day=2026-11-20")
    s3.fs.mv(f"{s3.bucket}/uploads/nobody.avi", f"{s3.bucket}/uploads/was/nobody.avi")

    dry = night(21, dry_run=True)
    assert (dry.summary["new"], dry.summary["to_score"], dry.summary["same_content"]) == (2, 4, 2)
    second = night(21)
    assert second.exit_code == 0
    assert (second.summary["processed"], second.summary["scored"], second.summary["same_content"]) == (4, 2, 2)
    state = {(outcome.path, outcome.state, outcome.attempts) for outcome in ledger.snapshot().outcomes()}
    assert state == {
        ("0.avi", State.DONE, 1),
        ("0.avi", State.CHANGED, 1),  # the old bytes, in whose place the new ones are
        ("1.avi", State.DONE, 1),
        ("2.avi", State.DONE, 1),
        ("again/1.avi", State.DONE, 0),
        ("moved/2.avi", State.DONE, 0),
        ("broken.mp4", State.QUARANTINED, 1),
        ("late.avi", State.DONE, 1),
        ("nobody.avi", State.NO_FACE, 1),
        ("was/nobody.avi", State.NO_FACE, 0),
    }
    assert len(list(ledger.snapshot().outcomes())) == 10 == second.audit.num_inputs
    assert before.items() <= objects_of(s3, f"labels/model={sha256[:12]}/ledger").items()
    assert second.summary["night"]["clips"] == 4

    # Another model has seen nothing: one clip for now, of which it is not sure. The old labels stay.
    settled = objects_of(s3, "labels")
    other = night(21, models[1][0], limit=1, abstain_below=1.0)
    assert (other.summary["scored"], other.audit.num_inputs) == (1, 1)
    assert settled.items() <= objects_of(s3, "labels").items()

    # A night on which nothing changed, and one that knows every content: neither starts Ray.
    settled = objects_of(s3, "labels")
    without_ray()
    third = night(22)
    assert (third.exit_code, third.summary["processed"], third.audit.num_inputs) == (0, 0, 10)
    now = objects_of(s3, "labels")
    assert {name.rpartition("/")[2] for name in now if now[name] != settled.get(name)} == {"summary.json"}
    assert now.keys() == settled.keys()
    s3.put("uploads/new/name.avi", made["face 4"])
    fourth = night(23)
    assert (fourth.summary["scored"], fourth.summary["same_content"], fourth.audit.num_inputs) == (0, 1, 11)
    assert json.loads(ledger.storage.read("manifest.json"))["counts"]["inputs"] == 11
    assert ledger.storage.exists("_SUCCESS")
    assert set(ledger.storage.sizes("nights")) == {"nights/2026-11-20.json", "nights/2026-11-21.json"}

    # A driver that was killed after its last unit left no record, summary or _SUCCESS: they are made good.
    for name in ("_SUCCESS", "summary.json", "nights/2026-11-21.json"):
        ledger.storage.delete(name)
    fifth = night(24)
    assert (fifth.summary["processed"], fifth.summary["same_content"], fifth.summary["done"]) == (0, 0, 7)
    assert ledger.storage.exists("_SUCCESS")
    assert json.loads(ledger.storage.read("nights/2026-11-21.json")) == second.summary["night"]

    s3.fs.invalidate_cache()
    s3.fs.get(f"{s3.bucket}/labels/", str(tmp_path / "labels") + "/", recursive=True)
    rows = rows_of(tmp_path / "labels", "clips")
    assert {(row["model"], str(row["day"])[:10]) for row in rows} == {
        *((sha256[:12], f"2026-11-{day}") for day in (20, 21, 23)),
        (models[1][1][:12], "2026-11-21"),
    }
    own = [row for row in rows if row["model"] == sha256[:12]]
    assert sorted(row["path"] for row in own) == sorted(outcome.path for outcome in ledger.snapshot().outcomes())
    by_path = {row["path"]: row for row in own}
    copied = ("state", "probabilities", "emotion_shares", "num_faces", "emotion", "content_id")
    for copy, original in (("new/name.avi", "late.avi"), ("moved/2.avi", "2.avi"), ("again/1.avi", "1.avi")):
        assert by_path[copy]["same_as"] == by_path[original]["clip_id"]
        assert all(by_path[copy][name] == by_path[original][name] for name in copied)
    assert by_path["was/nobody.avi"]["reason"] == "no_face_found"
    (unsure,) = (row for row in rows if row["model"] != sha256[:12])
    assert (unsure["emotion"], unsure["reason"], unsure["state"]) == (None, "abstained", "done")
    assert sum(unsure["probabilities"].values()) == pytest.approx(1)
    assert sum(unsure["emotion_shares"].values()) == 0
    tracks, frames = rows_of(tmp_path / "labels", "tracks"), rows_of(tmp_path / "labels", "frames")
    assert len(frames) == sum(row["num_faces"] for row in rows if row["same_as"] is None) == 12
    assert len(tracks) == sum(row["num_tracks"] for row in rows if row["same_as"] is None)
    assert {(row["clip_id"], row["track_index"]) for row in tracks} == {
        (row["clip_id"], row["track_index"]) for row in frames
    }
    everything = f"from read_parquet('{tmp_path}/labels/**/*.parquet', hive_partitioning=true, union_by_name=true)"
    shots = rows_of(tmp_path / "labels", "shots")
    assert len(duckdb.sql(everything)) == len(rows) + len(tracks) + len(frames) + len(shots)


def test_a_dry_run_counts_and_writes_nothing(made, models, tmp_path, without_ray):
    without_ray()
    for number in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.avi").write_bytes(made[f"face {number}"])
        os.utime(tmp_path / "in" / f"{number}.avi", (parse_since("2026-11-20") + 86400 * number,) * 2)
    (tmp_path / "in" / "copy.avi").write_bytes(made["face 1"])
    values = {"input": str(tmp_path / "in"), "checkpoint": models[0][0], "output": str(tmp_path / "out")}
    run = score(ScoreConfig(**values, dry_run=True))
    assert (run.exit_code, run.summary["to_score"], run.summary["same_content"]) == (0, 3, 1)
    assert run.summary["core_hours"] == pytest.approx(3 * DEFAULT_SECONDS_PER_CLIP / 3600, abs=1e-4)
    late = score(ScoreConfig(**values, dry_run=True, since="2026-11-21T00:00:01"))
    assert (late.summary["to_score"], late.summary["same_content"]) == (2, 0)  # 2.avi, and copy.avi for 1.avi
    assert score(ScoreConfig(**values, dry_run=True, limit=2)).summary["to_score"] == 2
    assert not (tmp_path / "out").exists()


def commit_all(ledger, units=None, *, state=State.DONE, stage=None, seconds=2.0):
    """What actors commit, without a network: these units, or every pending one, end in one state."""
    for unit in pending(ledger, kinds=("compute",)) if units is None else units:
        labels = [
            {"clip_id": clip.clip_id, "path": clip.path, "content_id": clip.content_id, "state": str(state)}
            | {"num_frames": 2, "num_faces": 0, "num_tracks": 0, "num_shots": 0}
            for clip in unit.clips
        ]
        ledger.commit(
            unit,
            tables={"frames": FRAME_SCHEMA.empty_table(), "clips": labels_table(labels)},
            outcomes=[
                Outcome(
                    clip_id=clip.clip_id,
                    path=clip.path,
                    state=state,
                    stage=stage,
                    reason=None if state is State.DONE else "because",
                    seconds=seconds,
                )
                for clip in unit.clips
            ],
            facts=unit_facts(np.zeros((0, 7)), np.zeros(0), day="2026-11-20"),
            partition="day=2026-11-20",
        )


def labels_table(rows):
    return pa.Table.from_pylist(rows, schema=CLIP_LABEL_SCHEMA)


PLAN = {"kind": "labels", "config": {}, "versions": {}, "clips_per_shard": 2}


def corpus_of(folder, **contents):
    """A folder of exactly these files, as it is read; __ in a name is a slash."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in contents.items():
        path = folder / f"{name.replace('__', '/')}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return read_corpus(str(folder), split_fractions=None)


def night_of(ledger, corpus, **options):
    """Plan a night; how many clips of each kind it has."""
    return planned_night(ledger, corpus, plan_options=PLAN, **options)[0]


def test_the_state_of_a_copy_follows_its_clip(tmp_path):
    ledger = Ledger(str(tmp_path / "out"))
    corpus = corpus_of(tmp_path / "in", a=b"one", b=b"one", c=b"two")
    night = night_of(ledger, corpus)
    assert (night.num_new, night.num_copies, night.num_to_score) == (2, 1, 2)
    assert commit_copies(ledger, ledger.snapshot(), day="2026-11-20") == 0  # Nothing has ended yet.
    commit_all(ledger, state=State.RETRYABLE)
    commit_copies(ledger, ledger.snapshot(), day="2026-11-20")
    assert audited(ledger).num_by_state["retryable"] == 3

    night = night_of(ledger, corpus)
    assert (night.num_new, night.num_retryable, night.num_copies) == (0, 2, 1)
    commit_all(ledger, state=State.QUARANTINED)
    assert commit_copies(ledger, ledger.snapshot(), day="2026-11-20") == 1
    assert audited(ledger).num_by_state["quarantined"] == 3

    (copy,) = (outcome for outcome in quarantined(ledger) if outcome.path == "b.avi")
    assert retry(ledger, [copy]) == 2  # The clip whose bytes it has, and itself.
    commit_all(ledger)
    commit_copies(ledger, ledger.snapshot(), day="2026-11-20")
    assert audited(ledger).counted == {"done": 2, "no_face": 0, "quarantined": 1, "retryable": 0}
    assert audited(ledger).holds
    assert "the same bytes as a.avi" in {outcome.detail for outcome in ledger.snapshot().outcomes()}


def test_copies_that_wait_stop_no_others_and_many_are_told_some_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.score.night.ENTRIES_AT_ONCE", 1)
    ledger = Ledger(str(tmp_path / "out"))
    corpus = corpus_of(
        tmp_path / "in", **{f"{name}{number}": name.encode() for name in "abcdefgh" for number in range(2)}
    )
    assert night_of(ledger, corpus).num_copies == 8
    first, *others = pending(ledger, kinds=("compute",))
    commit_all(ledger, units=others)
    units = pending(ledger, kinds=("copies",))
    originals = {clip.clip_id for clip in first.clips}
    held = [unit for unit in units if originals & {clip.same_as for clip in unit.clips}]
    snapshot = ledger.snapshot()
    assert 0 < len(held) < len(units)
    assert commit_copies(ledger, snapshot, day="2026-11-20") == sum(len(u.clips) for u in units if u not in held)
    assert len(ledger.storage.sizes("compact")) == len(units) - len(held)
    assert snapshot.count("state") == ledger.snapshot().count("state")
    commit_all(ledger)
    commit_copies(ledger, ledger.snapshot(), day="2026-11-20")
    assert audited(ledger).counted["done"] == 16


def test_bytes_that_were_gone_before_they_were_read_are_scored_where_they_turn_up(tmp_path):
    ledger = Ledger(str(tmp_path / "out"))
    night_of(ledger, corpus_of(tmp_path / "in", a=b"one"))
    commit_all(ledger, state=State.QUARANTINED, stage="fetch")
    night, _ = planned_night(ledger, corpus_of(tmp_path / "in", b=b"one"), plan_options=None)
    assert (night.num_new, night.num_copies) == (1, 0)


def test_a_clip_renamed_before_it_was_done_is_read_where_it_lies_now(tmp_path):
    ledger = Ledger(str(tmp_path / "out"))
    night_of(ledger, corpus_of(tmp_path / "in", a=b"one"))
    night, chosen = planned_night(ledger, corpus_of(tmp_path / "in", folder__b=b"one"), plan_options=PLAN)
    assert (night.num_new, night.num_cut_off, night.num_copies) == (0, 1, 1)
    (unit,) = pending(ledger, pa.Table.from_pylist(chosen).select(CLIP_SCHEMA.names), kinds=("compute",))
    assert [(clip.path, clip.url) for clip in unit.clips] == [("a.avi", str(tmp_path / "in/folder/b.avi"))]


@pytest.mark.parametrize("is_done", [False, True])
def test_bytes_that_moved_from_a_path_with_other_bytes_are_an_input_of_their_own(tmp_path, is_done):
    ledger = Ledger(str(tmp_path / "out"))
    night_of(ledger, corpus_of(tmp_path / "in", a=b"one"))
    if is_done:
        commit_all(ledger)
    night = night_of(ledger, corpus_of(tmp_path / "in", a=b"two", b=b"one"))
    assert (night.num_new, night.num_copies) == (2, 0)
    commit_all(ledger, [unit for unit in pending(ledger, kinds=("compute",)) if unit.unit_id >= "g001"])
    found = {(each.path, str(each.state), each.reason) for each in ledger.snapshot().outcomes()}
    assert found == {("a.avi", "changed", "replaced"), ("a.avi", "done", None), ("b.avi", "done", None)}


def test_a_limit_takes_the_first_contents_by_path_and_leaves_the_rest(tmp_path):
    ledger = Ledger(str(tmp_path / "out"))
    corpus = corpus_of(tmp_path / "in", a=b"1", b=b"2", c=b"1", d=b"3", e=b"4")
    paths = []
    for _ in range(2):
        _, chosen = planned_night(ledger, corpus, plan_options=PLAN, limit=2)
        paths.append([row["path"] for row in chosen])
        commit_all(ledger)
        commit_copies(ledger, ledger.snapshot(), day="2026-11-20")
        finish(ledger)
    assert paths == [["a.avi", "b.avi", "c.avi"], ["a.avi", "b.avi", "c.avi", "d.avi", "e.avi"]]
    night, _ = planned_night(ledger, corpus, plan_options=PLAN, limit=2)
    assert (night.num_to_score, night.num_copies, pending(ledger)) == (0, 0, [])


def test_a_clip_older_than_since_is_left_unless_a_newer_one_with_its_bytes_comes_first_by_path(tmp_path):
    corpus = corpus_of(tmp_path / "in", a=b"1", b=b"1", c=b"2", d=b"2", e=b"3")
    number = corpus.table.schema.get_field_index("modified_seconds")
    table = corpus.table.set_column(number, "modified_seconds", pa.array([9.0, 1.0, 1.0, 9.0, 1.0]))
    ledger = Ledger(str(tmp_path / "out"))
    night, chosen = planned_night(ledger, replace(corpus, rows=spooled(table)), plan_options=None, since=5.0)
    names = {row["clip_id"]: row["path"] for row in chosen}
    found = {row["path"]: names.get(row["same_as"]) for row in chosen}
    assert found == {"a.avi": None, "b.avi": "a.avi", "d.avi": None}
    assert (night.num_new, night.num_copies, night.num_older) == (2, 1, 2)


def test_the_estimate_is_what_earlier_nights_took(tmp_path):
    ledger = Ledger(str(tmp_path / "out"))
    night = night_of(ledger, corpus_of(tmp_path / "in", a=b"1", b=b"2", c=b"3"))
    commit_all(ledger, seconds=2.5)
    assert set(close_night(ledger, ledger.snapshot(), day="2026-11-20")) == {"same_content", "night", "drift"}
    assert estimated_seconds(ledger, night) == (7.5, "2.50 core-seconds a clip, measured in 1 nights")


def test_a_night_is_closed_from_one_reading_of_each_entry(tmp_path, monkeypatch):
    ledger = Ledger(str(tmp_path / "out"))
    night_of(ledger, corpus_of(tmp_path / "in", a=b"1", b=b"2", c=b"3", d=b"3"))
    commit_all(ledger, seconds=0.1)
    entries = ledger.entries()
    read, names = Storage.read, []
    monkeypatch.setattr(
        Storage, "read", lambda self, name, **options: names.append(name) or read(self, name, **options)
    )
    assert close_night(ledger, ledger.snapshot(), day="2026-11-20")["same_content"] == 1
    assert sorted(name for name in names if name.startswith("ledger/")) == [f"ledger/{e['unit']}.json" for e in entries]
    seconds = sum(row["seconds"] for entry in entries for row in entry["outcomes"])
    record = json.loads(ledger.storage.read("nights/2026-11-20.json"))
    assert (record["clips"], record["core_seconds"]) == (3, round(seconds, 3))


def clip_with(content_id, **fields):
    return Clip(**{"clip_id": "0" * 20, "path": "a", "url": "a", "size_bytes": 1, "content_id": content_id, **fields})


def are_alike(*clips, **options):
    snapshot = Snapshot()
    snapshot.give(clip_table(clips))
    return plan_night(snapshot, **options).num_copies == 1


def test_only_a_hash_of_the_bytes_tells_that_two_clips_are_alike():
    md5, other = "0" * 32, {"clip_id": "1" * 20, "path": "b"}
    for content_id in (md5, f"{md5}-12"):
        assert are_alike(clip_with(content_id), clip_with(content_id, **other))
    assert not are_alike(clip_with(md5), clip_with(md5, **other, start_pts_seconds=1.0))
    assert not are_alike(clip_with(md5), clip_with(md5, **other, size_bytes=2))
    assert not are_alike(clip_with(md5), clip_with(md5, **other), paths_matter=True)
    for url in ("http://a/b", "https://a/b.mp4"):  # A web server may answer with the MD5 of somebody else's clip.
        assert not are_alike(clip_with(md5), clip_with(md5, **other, url=url))
    for content_id in ("missing", "12 2026-11-22", "0x8D4BCC2E4835CD0"):
        assert not are_alike(clip_with(content_id), clip_with(content_id, **other))


def test_probabilities_are_at_the_checkpoints_temperature(tmp_path):
    save_model(tmp_path / "one", seed=0)
    save_model(tmp_path / "half", seed=0, temperature=0.5)
    examples = [drawn_example(number, label="Happy", split=None) for number in range(3)]
    one, half = (
        Predictor(str(tmp_path / name), which="best", device="cpu", batch_size=2).predict(examples)
        for name in ("one", "half")
    )
    squared = one.astype(np.float64) ** 2
    assert half == pytest.approx(squared / squared.sum(axis=1, keepdims=True), abs=1e-6)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), "1"])
def test_a_temperature_that_is_none_is_an_error(temperature):
    with pytest.raises(UsageError, match="temperature is"):
        temperature_of({"temperature": temperature})


def shrunk(video):
    """The same clip with two fifths of the pixels each way."""
    made = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(made, "w", format="avi") as target:
        stream = target.add_stream("mpeg4", rate=20, width=280, height=158, bit_rate=2_000_000)
        for frame in source.decode(video=0):
            target.mux(stream.encode(frame.reformat(width=280, height=158)))
        target.mux(stream.encode())
    return made.getvalue()


def test_what_changes_the_crop_is_refused_in_one_output_and_how_hard_is_looked_is_not(models, tmp_path, made, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.avi").write_bytes(made["face 0"])
    values = {
        "input": str(tmp_path / "in"),
        "checkpoint": models[0][0],
        "output": str(tmp_path / "out"),
        "no_ray": True,
    }
    first = score(ScoreConfig(**values, day="2026-11-20", page=False))
    (tmp_path / "in" / "b.avi").write_bytes(made["face 1"])
    second = score(ScoreConfig(**values, day="2026-11-21", sample_fps=4.0, abstain_below=0.0, page=False))
    told = capsys.readouterr().err
    assert "read otherwise than when this output began: abstain_below 0.5 -> 0.0" in told
    assert "sample_fps None -> 4.0; what has a label keeps it" in told
    assert second.ledger.storage.url == first.ledger.storage.url
    rows = {row["path"]: row for row in rows_of(tmp_path / "out", "clips")}
    assert (rows["a.avi"]["num_frames"], rows["b.avi"]["num_frames"]) == (2, 4)
    assert (rows["a.avi"]["emotion"], rows["a.avi"]["reason"]) == (None, "abstained")  # An untrained network.
    assert rows["b.avi"]["emotion"]

    assert second.ledger.storage.read("README.md") == labels_card()
    assert second.summary["model"]["warnings"][0].startswith("nobody knows how good this model is")

    # What had no face is looked at harder, in the same output: so small, the detector misses it.
    small = shrunk(made["face 3"])
    (tmp_path / "in" / "c.avi").write_bytes(small)
    third = score(ScoreConfig(**values, day="2026-11-22", page=False))
    (faceless,) = quarantined(third.ledger, with_faceless=True)
    assert (faceless.path, faceless.state) == ("c.avi", State.NO_FACE)
    assert "dlib-hog looked for faces of about 80 px and more: --upsample 1 finds those of 40 px" in faceless.detail
    assert quarantined(third.ledger) == []
    assert retry(third.ledger, chosen([faceless], ["no_face_found"])) == 1
    fourth = score(ScoreConfig(**values, day="2026-11-23", upsample=1, page=False))
    assert fourth.audit.holds
    assert (fourth.summary["processed"], fourth.summary["done"], fourth.summary["no_face"]) == (1, 3, 0)
    assert fourth.ledger.storage.url == third.ledger.storage.url

    ledger = Ledger(partition_of(str(tmp_path / "other"), models[0][1]))
    planned(ledger, [], **{**PLAN, "config": {"box_margin": 0.1}})
    with pytest.raises(LedgerError, match=r"box_margin 0\.1 -> 0\.0.*--force-new"):
        score(ScoreConfig(**{**values, "output": str(tmp_path / "other")}))


@pytest.mark.parametrize(
    ("flag", "value"),
    [("since", "yesterday"), ("day", "22.11.2026"), ("limit", 0), ("abstain_below", 1.5), ("faces", "some")],
)
def test_a_wrong_value_is_named_with_its_flag(flag, value):
    with pytest.raises(ValueError, match=f"--{flag.replace('_', '-')} is"):
        ScoreConfig(input="i", checkpoint="c", output="o", **{flag: value})


def test_the_labels_carry_the_meaning_of_every_column():
    for schema in (FRAME_SCHEMA, TRACK_SCHEMA, CLIP_LABEL_SCHEMA):
        assert set(json.loads(schema.metadata[b"columns"])) == set(schema.names)
    assert [field.name for field in TRACK_SCHEMA.field("emotion_shares").type] == list(EMOTIONS)
