"""Scoring night by night on a real S3 server: what is new, renamed, changed, removed, retryable or left for later."""

import json

import duckdb
import pytest
import torch

from pipeline import pool
from pipeline.checkpoint import save_checkpoint, write_best
from pipeline.corpus import read_corpus
from pipeline.ledger import Ledger
from pipeline.models import build_model
from pipeline.records import CLIP_LABEL_SCHEMA, FRAME_SCHEMA, TRACK_SCHEMA, Outcome, State
from pipeline.score import ScoreConfig, score
from pipeline.synthetic import BROKEN_PATH, FACELESS_PATH, make_corpus

pytestmark = pytest.mark.timeout(600)
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

    return lambda: monkeypatch.setattr(pool, "start_ray", start)


def objects_of(s3, path):
    """Every object below a path with its bytes."""
    return {name: s3.fs.cat_file(name) for name in s3.fs.find(f"{s3.bucket}/{path}")}


def rows_of(folder, table):
    """The rows of one table as a user's query sees them."""
    query = f"from read_parquet('{folder}/*/{table}/**/*.parquet', hive_partitioning=true)"
    return duckdb.sql(query).fetchdf().to_dict("records")


def test_nights_on_a_bucket_that_changes(s3, made, models, without_ray, tmp_path):
    checkpoint, sha256 = models[0]

    def night(day, model=checkpoint, **changes):
        values = {"input": s3.url("uploads"), "checkpoint": model, "output": s3.url("labels"), "actors": 1}
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
    assert {outcome.path for outcome in first.ledger.outcomes()} == {"0.avi", "1.avi", "2.avi", "again/1.avi"}
    ledger = Ledger(s3.url(f"labels/model={sha256[:12]}"))
    assert ledger.storage.url == first.ledger.storage.url
    before = objects_of(s3, f"labels/model={sha256[:12]}/ledger")

    # By day: one is renamed, one has other bytes, one is removed, one is new. A run was cut off before nobody.avi,
    # which has another name since, and the store failed at late.avi.
    s3.fs.mv(f"{s3.bucket}/uploads/2.avi", f"{s3.bucket}/uploads/moved/2.avi")
    s3.put("uploads/0.avi", made["face 3"])
    s3.fs.rm(f"{s3.bucket}/uploads/1.avi")
    s3.put("uploads/late.avi", made["face 4"])
    ledger.add_generation([clips()["nobody.avi"]], clips_per_shard=8)
    (unit,) = ledger.add_generation([clips()["late.avi"]], clips_per_shard=8)
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
    state = {(outcome.path, outcome.state, outcome.attempts) for outcome in ledger.outcomes()}
    assert state == {
        ("0.avi", State.DONE, 1),  # twice: the old bytes and the new
        ("1.avi", State.DONE, 1),
        ("2.avi", State.DONE, 1),
        ("again/1.avi", State.DONE, 0),
        ("moved/2.avi", State.DONE, 0),
        ("broken.mp4", State.QUARANTINED, 1),
        ("late.avi", State.DONE, 1),
        ("nobody.avi", State.NO_FACE, 1),
        ("was/nobody.avi", State.NO_FACE, 0),
    }
    assert len(ledger.outcomes()) == 10 == second.audit.num_inputs
    assert before.items() <= objects_of(s3, f"labels/model={sha256[:12]}/ledger").items()
    assert second.summary["night"]["clips"] == 4

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

    s3.fs.get(f"{s3.bucket}/labels/", str(tmp_path / "labels") + "/", recursive=True)
    rows = rows_of(tmp_path / "labels", "clips")
    by_path = {row["path"]: row for row in rows}
    assert (
        sorted(row["path"] for row in rows) == sorted(outcome.path for outcome in ledger.outcomes()) + ["late.avi"] * 0
    )
    assert {str(row["day"])[:10] for row in rows} == {"2026-11-20", "2026-11-21", "2026-11-23"}
    assert by_path["new/name.avi"]["same_as"] == by_path["late.avi"]["clip_id"]
    assert by_path["new/name.avi"]["probabilities"] == by_path["late.avi"]["probabilities"]
    assert by_path["was/nobody.avi"]["reason"] == "no_face_found"
