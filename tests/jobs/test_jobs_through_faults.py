"""Whole trainings and scorings over a store, or on a disk, that fails: what passes is not seen in the output, what
lasts ends the job in one line, and the same command then goes on to the output of an undisturbed run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import torch
from example_shards import write_corpus
from fault_proxy import FaultProxy
from ledgers import audited

from pipeline.ledger.ledger import Ledger
from pipeline.models.build import build_model
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.models.checkpoint_info import committed_epochs, read_checkpoint_info, write_best
from pipeline.storage.store import Storage
from pipeline.synthetic.corpus import make_corpus
from pipeline.train.config import TrainConfig
from pipeline.train.worker import train_worker

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
TRAINING = {"model": "caer-net-s", "input_px": 16, "batch_size": 14, "epochs": 2, "lr": 0.03, "keep": 2}
READING = {"detector": "dlib-hog", "frames_per_clip": 2, "face_px": 32, "context_px": 32, "faces": "largest"}


@pytest.fixture
def proxy(s3, monkeypatch):
    """The way of this process and of jobs to `s3`."""
    with FaultProxy(s3.endpoint).running() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield running
        s3fs.S3FileSystem.clear_instance_cache()


def run_job(name, *switches, **flags):
    """`python jobs/NAME.py` with these flags; what it said and its code."""
    script = Path(__file__).resolve().parents[2] / "jobs" / f"{name}.py"
    given = [text for flag, value in flags.items() for text in (f"--{flag.replace('_', '-')}", str(value))]
    return subprocess.run(
        [sys.executable, str(script), *given, *switches], capture_output=True, text=True, check=False, timeout=300
    )


def assert_ended_in_one_line(found, *, told):
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr
    last = found.stderr.strip().splitlines()[-1]
    assert ".py: error: " in last
    assert told in last


# --- training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Examples, and a training on them that nothing disturbs."""
    folder = tmp_path_factory.mktemp("trained")
    write_corpus(folder / "data", train=42, validation=14)
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as in the job's one worker
    try:
        train_worker(TrainConfig(data=str(folder / "data"), output=str(folder / "run"), **TRAINING))
    finally:
        torch.set_num_threads(before)
    return folder


def assert_same_training(output, undisturbed):
    assert committed_epochs(output) == committed_epochs(undisturbed) == [1, 2]
    for epoch in (1, 2):
        one, other = (read_checkpoint_info(run, epoch) for run in (output, undisturbed))
        assert one["sha256"] == other["sha256"]
    curves = [[(row["epoch"], row["train_loss"]) for row in info["history"]] for info in (one, other)]
    assert curves[0] == curves[1]
    assert Storage(output).exists("summary.json")


@pytest.mark.slow
def test_a_training_over_a_failing_store_ends_as_an_undisturbed_one(s3, proxy, trained, tmp_path):
    for path in (trained / "data").rglob("*.*"):
        s3.put(f"data/{path.relative_to(trained / 'data')}", path.read_bytes())
    flags = {"data": s3.url("data"), "output": s3.url("run"), **TRAINING, "workers": 1}
    for kind, method, path in (
        ("slow_down", "GET", "manifest"),
        ("short_unsummed", "GET", "parquet"),
        ("reset_body", "GET", "parquet"),
        ("slow", "GET", "parquet"),
        ("lost_answer", "PUT", "epoch-0001"),
        ("internal_error", "PUT", "epoch-0001"),
    ):
        proxy.fail(kind, method=method, path=path, times=1)
    proxy.fail("expired", method="PUT", path="epoch-0002", spreads=True)
    cut_off = run_job("train", cache_dir=tmp_path / "cache", **flags)
    met = [proxy.met(kind) for kind in ("slow_down", "short_unsummed", "reset_body", "slow", "lost_answer")]
    assert_ended_in_one_line(cut_off, told="(ExpiredToken); renew the credentials")
    assert met == [1] * 5
    proxy.mend()
    kept = Storage(flags["output"]).read("checkpoints/epoch-0001/checkpoint.json")
    assert load_checkpoint(flags["output"], "last").info["epoch"] == 1
    for kind, method, path in (
        ("reset_body", "GET", "safetensors"),
        ("slow", "GET", "parquet"),
        ("slow_down", "PUT", "epoch-0002"),
        ("reset", "PUT", "epoch-0002"),
        ("bad_gateway", "GET", "checkpoint.json"),
    ):
        proxy.fail(kind, method=method, path=path, times=1)
    mended = run_job("train", "--resume", cache_dir=tmp_path / "another", **flags)
    assert mended.returncode == 0, mended.stderr
    assert [proxy.met(kind) for kind in ("reset_body", "slow", "slow_down", "reset", "bad_gateway")] == [1] * 5
    assert Storage(flags["output"]).read("checkpoints/epoch-0001/checkpoint.json") == kept
    assert_same_training(flags["output"], str(trained / "run"))


@pytest.mark.slow
def test_a_training_on_a_full_disk_goes_on_with_room(small_disk, trained, tmp_path):
    folder, mounted = small_disk
    assert mounted("-o", "remount,size=24m")  # an epoch's checkpoint has 16 MB
    flags = {"data": trained / "data", "output": folder / "run", "cache_dir": tmp_path / "cache", **TRAINING}
    full = run_job("train", workers=1, **flags)
    assert_ended_in_one_line(full, told="No space left on device; free space, or choose another place")
    assert committed_epochs(str(folder / "run")) == [1]
    assert mounted("-o", "remount,size=200m")
    mended = run_job("train", "--resume", workers=1, **flags)
    assert mended.returncode == 0, mended.stderr
    assert_same_training(str(folder / "run"), str(trained / "run"))


# --- scoring


def save_model(url):
    torch.manual_seed(0)
    save_checkpoint(
        url,
        epoch=1,
        step=1,
        model=build_model("caer-net-s"),
        optimizer_state={},
        config={
            "model": {"name": "caer-net-s", "options": {}, "face_px": 32, "context_px": 32},
            "training": {},
            "preprocessing": READING,
        },
        info={"metrics": {}, "manifest_sha256": ""},
    )
    write_best(url, epoch=1, top1_accuracy=0.5)


@pytest.mark.slow
def test_a_scoring_over_a_failing_store_ends_as_an_undisturbed_one(s3, proxy, tmp_path):
    made = make_corpus(tmp_path / "made", clips_per_class=(3, 0, 0), seed=2)
    for clip in made[-5:]:  # the last two are a broken file and one without a face
        s3.put(f"in/{clip.path}", (tmp_path / "made" / clip.path).read_bytes())
    save_model(s3.url("run"))
    flags = {"input": s3.url("in"), "checkpoint": s3.url("run"), "clips_per_shard": 1, "actors": 1, "page": "false"}
    flags["day"] = "2026-11-20"
    undisturbed = run_job("score", output=s3.url("undisturbed"), **flags)
    assert undisturbed.returncode == 0, undisturbed.stderr
    for kind, method, path in (
        ("slow_down", "GET", "/in/"),
        ("reset_body", "GET", "/in/"),
        ("short_unsummed", "GET", "/in/"),
        ("slow", "GET", "safetensors"),
        ("lost_answer", "PUT", "/labels/.*/ledger/"),
    ):
        proxy.fail(kind, method=method, path=path, times=1)
    proxy.fail("no_bucket", method="PUT", path=r"/labels/.*/ledger/g", skip=2, spreads=True)
    cut_off = run_job("score", output=s3.url("labels"), **flags)
    assert_ended_in_one_line(cut_off, told="(NoSuchBucket); create the bucket, or correct its name")
    proxy.mend()
    (folder,) = s3.fs.ls(s3.url("labels"))
    ledger, whole = (Ledger(f"s3://{folder}".replace("labels", name)) for name in ("labels", "undisturbed"))
    kept = ledger.entries()
    assert 0 < len(kept) < 5
    for kind, method, path in (
        ("internal_error", "GET", "/in/"),
        ("reset", "PUT", "/labels/"),
        ("lost_answer", "PUT", "/labels/.*/ledger/g"),
        ("short_length", "GET", "/labels/.*/plan/"),
    ):
        proxy.fail(kind, method=method, path=path, times=1)
    mended = run_job("score", output=s3.url("labels"), **flags)
    assert mended.returncode == 0, mended.stderr
    assert all(entry in ledger.entries() for entry in kept)
    assert audited(ledger).holds
    for table in ("frames", "tracks", "clips"):
        rows, expected = (rows_of(each, table) for each in (ledger, whole))
        assert rows == expected
        assert len(rows) >= 3
    summaries = [json.loads(each.storage.read("summary.json")) for each in (ledger, whole)]
    assert summaries[0]["inputs"] == summaries[1]["inputs"] == 5


def rows_of(ledger, table):
    """The rows of a table that the manifest names, sorted."""
    shards = [shard for shard in ledger.shards() if shard["table"] == table]
    found = [pq.read_table(pa.BufferReader(ledger.storage.read(shard["path"]))).to_pylist() for shard in shards]
    return sorted((row for rows in found for row in rows), key=repr)
