"""Every job with its input, output and checkpoints on an S3 server over HTTP, beside the same jobs on a local disk."""

import json
import os
import re
import subprocess
import sys
from collections import Counter

import harness
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from fault_proxy import FaultProxy

from benchmarks.timing import one_thread
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.job import write_evaluation
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.retry import quarantined
from pipeline.models.checkpoint_info import read_checkpoint_info
from pipeline.preprocess.config import PreprocessConfig
from pipeline.preprocess.job import preprocess
from pipeline.score.config import ScoreConfig
from pipeline.score.job import score
from pipeline.storage.store import Storage
from pipeline.synthetic.corpus import make_corpus
from pipeline.train.config import TrainConfig
from pipeline.train.job import train
from pipeline.train.worker import train_worker

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
READING = {"detector": "dlib-hog", "frames_per_clip": 2, "face_px": 32, "context_px": 32, "clips_per_shard": 8}
PART_BYTES = 5 * 2**20  # S3 takes no smaller part but the last


@pytest.fixture
def counted(s3, monkeypatch):
    """The way to `s3` for whatever reads the environment, Ray's workers too, with a log of the requests."""
    with FaultProxy(s3.endpoint).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy


def by_profile(endpoint, folder, monkeypatch):
    """From here on the address and the keys of the server stand in a profile of an AWS config file alone."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    lines = {"region": "us-east-1", "endpoint_url": endpoint, **keys}.items()
    file = folder / "aws-config"
    file.write_text("[profile emotion]\n" + "".join(f"{name} = {value}\n" for name, value in lines))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "emotion")
    s3fs.S3FileSystem.clear_instance_cache()


def upload(s3, folder, *, to):
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        s3.put(f"{to}/{path.relative_to(folder)}", path.read_bytes())


def upload_in_parts(s3, name, content):
    place = {"Bucket": s3.bucket, "Key": name}
    given = {**place, "UploadId": s3.fs.call_s3("create_multipart_upload", **place)["UploadId"]}
    parts = []
    for number, start in enumerate(range(0, len(content), PART_BYTES), start=1):
        body = content[start : start + PART_BYTES]
        etag = s3.fs.call_s3("upload_part", **given, PartNumber=number, Body=body)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    s3.fs.call_s3("complete_multipart_upload", **given, MultipartUpload={"Parts": parts})


def downloaded(s3, name, folder):
    s3.fs.invalidate_cache()
    s3.fs.get(f"{s3.bucket}/{name}/", f"{folder / name}/", recursive=True)
    return folder / name


def rows_by_path(output, table):
    """The rows of a table of labels, each with its clip's path in place of the id, which follows the etag."""
    paths = {outcome["clip_id"]: outcome["path"] for outcome in harness.outcomes_of(output)}
    rows = [dict(row) for row in harness.rows_of(output, table)]
    return sorted(
        (sorted({**row, "clip_id": paths[row["clip_id"]], "content_id": None}.items()) for row in rows), key=repr
    )


@pytest.mark.slow
def test_the_jobs_on_s3_leave_what_they_leave_on_a_local_disk(s3, counted, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    make_corpus(here / "corpus", clips_per_class=(3, 3, 3), seed=5)
    for clip in (here / "corpus").glob("*/*/000*"):
        if int(clip.stem) > (2 if "train" in clip.parts else 1):
            clip.unlink()  # 2 of a class to train on, and one elsewhere, are enough
    new = here / "new"
    new.mkdir()
    clips = sorted((here / "corpus" / "test").rglob("*.avi"))[:2]
    for number, clip in enumerate(clips):
        (new / f"{number}.avi").write_bytes(clip.read_bytes())
    (new / "broken.mp4").write_bytes((here / "corpus" / "train" / "Neutral" / "9001.mp4").read_bytes())
    upload(s3, here, to="in")
    # A chunk that players pass over makes a clip so large that it is uploaded in parts.
    junk = b"JUNK" + (PART_BYTES + 1000).to_bytes(4, "little") + bytes(PART_BYTES + 1000)
    (new / "parts.avi").write_bytes(clips[0].read_bytes() + junk)
    upload_in_parts(s3, "in/new/parts.avi", (new / "parts.avi").read_bytes())
    counted.mend()

    def preprocessed(place, output):
        return preprocess(PreprocessConfig(input=f"{place}/corpus", output=f"{output}/data", actors=2, **READING))

    preprocessed(here, here)
    assert preprocessed(s3.url("in"), s3.url("out")).audit.holds
    gets = Counter(re.sub(r"\?.*", "", path) for method, path, _ in counted.log if method == "GET")
    videos = [count for path, count in gets.items() if path.endswith((".avi", ".mp4"))]
    assert len(videos) == 30
    assert sum(videos) == 30 + 1  # one GET a clip, and the byte that is read before the work
    assert harness.rows_of(downloaded(s3, "out/data", there)) == harness.rows_of(here / "data")
    assert harness.outcomes_of(there / "out/data") == harness.outcomes_of(here / "data")

    def training(output, cache):
        small = {"model": "caer-net-s", "input_px": 16, "epochs": 2, "batch_size": 7, "keep": 2}
        return TrainConfig(data=f"{output}/data", output=f"{output}/run", cache_dir=str(tmp_path / cache), **small)

    with one_thread():
        train_worker(training(here, "cache here"))
    train(training(s3.url("out"), "cache there"))
    ours, theirs = (read_checkpoint_info(f"{output}/run", "last") for output in (here, s3.url("out")))
    for one, other in zip(ours["history"], theirs["history"], strict=True):
        for name in ("train_loss", "validation_loss"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)

    by_profile(s3.endpoint, tmp_path, monkeypatch)
    downloaded(s3, "out/run", there)
    for place, output, run in ((new, here, there / "out/run"), (s3.url("in/new"), s3.url("out"), s3.url("out/run"))):
        data, cache = f"{output}/data", str(tmp_path / "cache")
        write_evaluation(EvaluateConfig(data=data, checkpoint=str(run), output=f"{output}/evaluation", cache_dir=cache))
        score(ScoreConfig(input=str(place), checkpoint=str(run), output=f"{output}/labels", actors=2, day="2026-11-22"))
    found = [json.loads(Storage(f"{output}/evaluation").read("evaluation.json")) for output in (here, s3.url("out"))]
    assert found[0]["splits"] == found[1]["splits"]
    (ours,) = (here / "labels").iterdir()
    (theirs,) = downloaded(s3, "out/labels", there).iterdir()
    for table in ("frames", "tracks", "clips"):
        assert rows_by_path(ours, table) == rows_by_path(theirs, table)
    states = {outcome["path"]: outcome["state"] for outcome in harness.outcomes_of(theirs)}
    assert states == {"0.avi": "done", "1.avi": "done", "parts.avi": "done", "broken.mp4": "quarantined"}
    plan = pa.ipc.open_file(theirs / "plan/g000.arrow").read_all().to_pylist()
    assert {row["path"] for row in plan if row["content_id"].endswith("-2")} == {"parts.avi"}
    command = [sys.executable, "jobs/quarantine.py", "list", s3.url("out/data")]
    told = subprocess.run(command, check=True, cwd=harness.REPOSITORY, capture_output=True, text=True).stdout
    (bad,) = quarantined(Ledger(str(here / "data")))
    assert bad.clip_id in told
    assert told.endswith("1 clips: 1 undecodable\n")


@pytest.mark.parametrize("way", ["environment", "profile", "profile and address"])
def test_readers_find_the_shards_as_the_jobs_do(s3, tmp_path, monkeypatch, way):
    table = pa.table({"clip_id": ["a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    s3.put("out/examples/train/a.parquet", (tmp_path / "a.parquet").read_bytes())
    if way != "environment":
        by_profile(s3.endpoint, tmp_path, monkeypatch)
    if way == "profile and address":
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    assert Storage(s3.url("out")).sizes("examples").keys() == {"examples/train/a.parquet"}
    assert pq.read_table(f"{s3.bucket}/out/examples", filesystem=s3fs.S3FileSystem()).equals(table)
    if (
        way != "profile"
    ):  # pyarrow's own store takes the keys from a profile, but the address from the environment alone
        assert pq.read_table(s3.url("out/examples")).equals(table)


@pytest.mark.slow
def test_objects_larger_than_a_part_are_written_in_parts_and_read_back(s3):
    storage = Storage(s3.url("out"))
    data = os.urandom(2**20) * 101
    storage.put("at once", data)
    storage.put_stream("stream", (data[start : start + 2**20] for start in range(0, len(data), 2**20)))
    for name in ("at once", "stream"):
        assert s3.fs.info(f"{s3.bucket}/out/{name}")["ETag"].endswith('-3"')
        assert storage.read(name, size_bytes=len(data)) == data
