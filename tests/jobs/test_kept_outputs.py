"""Outputs of released versions (tests/kept) are resumed, scored into, trained on, evaluated, paged and joined as if
this version had made them. Every step is the command that a user types."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.lengthy

REPOSITORY = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).parents[1] / "kept"
VERSIONS = sorted(path.name for path in KEPT.iterdir() if path.is_dir())
# The flags with which they were made (make.py beside them).
PREPROCESS = "--detector dlib-hog --sample-fps 5 --face-px 48 --context-px 48 --clips-per-shard 6 --no-ray".split()  # noqa: SIM905
TRAIN = "--model se-af --input face --batch-size 7 --momentum 0 --nesterov false --keep 1".split()  # noqa: SIM905
DAY = "2026-11-20"


@pytest.fixture(params=VERSIONS)
def kept(request, tmp_path):
    """A copy of what a user of that version has on his disk."""
    shutil.copytree(KEPT / request.param, tmp_path / "kept")
    return tmp_path / "kept"


def job(name, *arguments, code=0):
    found = subprocess.run(
        [sys.executable, REPOSITORY / "jobs" / f"{name}.py", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert found.returncode == code, found.stderr
    return found.stdout + found.stderr


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outcomes_of(folder):
    """Each clip's state and reason, by path."""
    rows = map(json.loads, (folder / "outcomes.jsonl").read_text().splitlines())
    return {row["path"]: (row["state"], row["reason"]) for row in rows}


def test_a_finished_run_has_nothing_left_to_do(kept):
    data = kept / "data"
    committed = {name: data_ for name, data_ in files_of(data).items() if name.startswith(("ledger/", "examples/"))}
    ended = outcomes_of(data)
    told = job("preprocess", "--input", kept / "corpus", "--output", data, *PREPROCESS)
    assert "nothing is missing: every input has a state" in told
    assert "versions differ" not in told or "versions differ from those the run began with" in told
    assert outcomes_of(data) == ended
    found = files_of(data)
    assert {name: found[name] for name in committed} == committed
    assert (data / "_SUCCESS").exists()
    assert (data / "report.html").exists()


def test_a_run_that_was_cut_off_is_resumed_and_clips_are_added(kept):
    data = kept / "data"
    ended = outcomes_of(data)
    for name in ("_SUCCESS", "outcomes.jsonl", "manifest.json", "summary.json", "compact/entries.arrow"):
        (data / name).unlink()
    (entry,) = (data / "ledger").glob("g000-u000001.json")
    entry.unlink()
    shutil.copy(kept / "uploads" / "two.avi", kept / "corpus" / "train" / "Sad" / "0002.avi")
    told = job("preprocess", "--input", kept / "corpus", "--output", data, *PREPROCESS)
    assert "1 new inputs added to the plan of 16" in told
    assert outcomes_of(data) == {**ended, "train/Sad/0002.avi": ("done", None)}
    assert json.loads((data / "summary.json").read_text())["audit_holds"]
    clips = duckdb.sql(
        f"select count(distinct clip_id) from read_parquet('{data}/examples/**/*.parquet', union_by_name=true)"
    ).fetchall()
    assert clips == [(15,)]


def test_quarantined_clips_of_it_are_listed_and_tried_again(kept):
    data = kept / "data"
    assert "undecodable" in job("quarantine", "list", data)
    assert job("quarantine", "retry", data).startswith("1 clips are planned again")
    job("preprocess", "--input", kept / "corpus", "--output", data, *PREPROCESS)
    assert outcomes_of(data)["train/Sad/0009.mp4"] == ("quarantined", "undecodable")


def test_its_shards_are_verified_against_their_sha256(kept):
    for folder in (kept / "data", kept / "labels", *(kept / "labels").glob("model=*")):
        assert job("quarantine", "verify", folder).strip().endswith(": each has the sha256 of its ledger entry")
    shards = sorted((kept / "data" / "examples").rglob("*.parquet"))
    data = bytearray(shards[0].read_bytes())
    data[100] ^= 1
    shards[0].write_bytes(data)
    shutil.copy(shards[1], shards[1].with_name("copy.parquet"))
    told = job("quarantine", "verify", kept / "data", code=2).strip().splitlines()
    assert told[0].startswith(f"{shards[0].relative_to(kept / 'data')} has other bytes than were committed")
    assert "move away" in told[1]
    assert "copy.parquet" in told[1]
    assert told[2].endswith("read: 1 are not as committed")
    assert "mend each as it says" in told[3]


@pytest.mark.parametrize("day", [DAY, "2026-11-21"])
def test_a_night_goes_on_in_the_same_partition(kept, day):
    shutil.copy(kept / "corpus" / "train" / "Fear" / "0001.avi", kept / "uploads" / "three.avi")
    night = ("--checkpoint", kept / "run", "--output", kept / "labels", "--no-ray", "--day", day)
    told = job("score", "--input", kept / "uploads", *night)
    assert "3 known to this model, 1 new" in told
    (partition,) = (kept / "labels").glob("model=*")
    assert {state for state, _ in outcomes_of(partition).values()} == {"done"}
    assert len(outcomes_of(partition)) == 4
    rows = pq.read_table(partition / "clips" / f"day={day}", partitioning=None).to_pylist()
    assert {row["path"] for row in rows} >= {"three.avi"}
    assert len(rows) == (4 if day == DAY else 1)
    assert "three.avi" in (partition / "report.html").read_text()
    # And once more: nothing is left.
    assert "nothing is missing" in job("score", "--input", kept / "uploads", *night)


@pytest.mark.parametrize("day", [DAY, "2026-11-21"])
def test_segments_that_wait_are_joined(kept, day):
    night = ("--checkpoint", kept / "run", "--output", kept / "waiting", "--no-ray", "--day", day)
    job("score", "--input", kept / "films", *night, "--segment-seconds", "0.6")
    (partition,) = (kept / "waiting").glob("model=*")
    assert outcomes_of(partition) == {"film.avi": ("done", None)}
    (row,) = pq.read_table(partition / "clips" / f"day={day}", partitioning=None).to_pylist()
    assert row["num_faces"] > 0
    assert row["num_tracks"] >= 1


@pytest.mark.ray
@pytest.mark.usefixtures("shared_ray")
def test_a_training_is_evaluated_and_goes_on(kept):
    job("evaluate", "--data", kept / "data", "--checkpoint", kept / "run", "--output", kept / "again", "--splits",
        "validation")  # fmt: skip
    then, now = (json.loads((kept / name / "evaluation.json").read_text()) for name in ("evaluation", "again"))
    then, now = then["splits"]["validation"], now["splits"]["validation"]
    assert now["num_examples"] == then["num_examples"] == 14
    assert now["top1_accuracy"] == then["top1_accuracy"]
    saved = json.loads((kept / "run" / "checkpoints" / "epoch-0001" / "checkpoint.json").read_text())
    told = job("train", "--data", kept / "data", "--output", kept / "run", *TRAIN, "--epochs", "2", "--resume")
    assert "epoch 2/2" in told
    newest = json.loads((kept / "run" / "checkpoints" / "epoch-0002" / "checkpoint.json").read_text())
    assert newest["info"]["history"][:1] == saved["info"]["history"]
