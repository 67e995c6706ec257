"""What a store does wrong, over a real S3 server behind a proxy that breaks requests."""

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from example_shards import write_corpus
from fault_proxy import FaultProxy
from ledgers import audited, pending, planned

from pipeline.corpus.read import read_corpus
from pipeline.dataset.dataset import ExampleDataset
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.lock import LedgerError
from pipeline.ledger.units import Unit
from pipeline.models.build import build_model
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.preprocess.config import ExtractConfig, PreprocessConfig
from pipeline.preprocess.extractor import MAX_UNREACHED, ClipExtractor
from pipeline.preprocess.job import preprocess
from pipeline.records.clips import Clip
from pipeline.records.columns import table_of
from pipeline.records.faces import EXAMPLE_SCHEMA
from pipeline.records.outcomes import Outcome, State
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.unit_actor import UnitActor
from pipeline.sandbox.limits import SandboxLimits
from pipeline.storage import retry as room
from pipeline.storage.modes import own_umask
from pipeline.storage.redaction import without_secrets
from pipeline.storage.remote import fetch
from pipeline.storage.retry import StorageError, StoreLostError
from pipeline.storage.store import Storage
from pipeline.synthetic.corpus import make_corpus

TRANSIENT = ("internal_error", "bad_gateway", "slow_down", "reset", "lost_answer")
DAMAGED = ("reset_body", "short", "short_length", "short_unsummed")
CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def proxy(s3, monkeypatch):
    """The way to `s3` for whatever reads the environment, with faults; waits between tries are short."""
    monkeypatch.setattr(room, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(room, "LONGEST_WAIT_SECONDS", 0.1)
    with FaultProxy(s3.endpoint).running() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield running
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def storage(s3, proxy):  # noqa: ARG001 (the way to it must be there first)
    return Storage(s3.url("out"))


@pytest.mark.lengthy
@pytest.mark.parametrize("kind", TRANSIENT)
def test_whatever_passes_is_tried_again(storage, proxy, kind):
    for method in ("PUT", "GET", "DELETE"):
        proxy.fail(kind, method=method, times=2)
    storage.put("a/b", CONTENT)
    assert storage.create("a/entry", b"mine")
    assert storage.read("a/b") == CONTENT
    assert storage.sizes("a") == {"a/b": len(CONTENT), "a/entry": 4}
    storage.delete("a/b")
    assert not storage.exists("a/b")
    assert proxy.met(kind) == 6


@pytest.mark.lengthy
@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_answer_is_fetched_again(storage, proxy, kind, tmp_path):
    storage.put("clip", CONTENT)
    proxy.fail(kind, method="GET", path="clip", times=2)
    # Without checksums only the size tells; a caller that knows none reads JSON, whose half does not parse.
    size_bytes = len(CONTENT) if kind == "short_unsummed" else None
    assert storage.read("clip", size_bytes=size_bytes) == CONTENT
    proxy.fail(kind, method="GET", path="clip", times=2)
    fetch(f"{storage.url}/clip", tmp_path / "clip", size_bytes=len(CONTENT))
    assert (tmp_path / "clip").read_bytes() == CONTENT
    assert proxy.met(kind) == 4


@pytest.mark.lengthy
def test_a_body_that_stops_coming_is_given_up_and_fetched_again(storage, proxy, monkeypatch, tmp_path):
    storage.put("clip", CONTENT)
    monkeypatch.setattr(room, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(room, "SLOWEST_BYTES_PER_SECOND", 2**24)
    proxy.fail("stall", method="GET", path="clip", times=1)
    fetch(f"{storage.url}/clip", tmp_path / "clip", size_bytes=len(CONTENT))
    assert (tmp_path / "clip").read_bytes() == CONTENT


def test_a_write_whose_answer_is_lost_is_ones_own(storage, proxy):
    proxy.fail("lost_answer", method="PUT", path="entry", times=1)
    assert storage.create("entry", b"attempt 1")
    assert proxy.met("lost_answer") == 1
    proxy.fail("lost_answer", method="PUT", path="entry", times=1)
    assert not storage.create("entry", b"attempt 2")
    assert storage.read("entry") == b"attempt 1"


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("kind", "lost", "message"),
    [
        ("expired", True, r"The provided token has expired\. \(ExpiredToken\); renew the credentials$"),
        ("no_bucket", True, r"does not exist \(NoSuchBucket\); create the bucket, or correct its name$"),
        ("forbidden", False, r"Access Denied \(AccessDenied\); check the permissions$"),
    ],
)
def test_a_fault_that_lasts_is_one_line_with_a_cure(storage, proxy, kind, lost, message):
    storage.put("a", b"1")
    proxy.fail(kind)
    actions = {
        "written": lambda: storage.put("a", b"2"),
        "read": lambda: storage.read("a"),
        "listed": lambda: storage.sizes("a"),
        "deleted": lambda: storage.delete("a"),
    }
    for verb, action in actions.items():
        with pytest.raises(StorageError, match=rf"^{storage.url}/a cannot be {verb}: .*{message}") as caught:
            action()
        assert isinstance(caught.value, StoreLostError) == lost
        assert "\n" not in str(caught.value)
    proxy.mend()
    assert storage.read("a") == b"1"


@pytest.mark.lengthy
@pytest.mark.parametrize("kind", ["slow_down", "reset"])
def test_what_does_not_pass_in_time_is_told_with_the_number_of_tries(s3, proxy, kind):
    proxy.fail(kind)
    with pytest.raises(StorageError, match=r"/a cannot be read: .*; tried 2 times; check the address, the network"):
        Storage(s3.url("out"), num_tries=2).read("a")


def test_an_absent_object_is_no_fault(s3, storage, proxy, tmp_path):
    with pytest.raises(FileNotFoundError):
        fetch(s3.url("out/gone"), tmp_path / "gone", size_bytes=1)
    with pytest.raises(FileNotFoundError):
        storage.read("gone")
    assert len(proxy.log) <= 4


# --- the ledger and its lock


def plan_of(ledger, clips):
    planned(ledger, clips, kind="examples", config={}, versions={}, clips_per_shard=1)
    return pending(ledger, clips)


def clip_at(url):
    return Clip(clip_id="0" * 20, path="a.mp4", url=url, size_bytes=len(CONTENT), content_id="x")


def commit(ledger, unit):
    facts = {"clip_id": unit.clips[0].clip_id, "path": unit.clips[0].path}
    outcome = Outcome(**facts, state=State.NO_FACE, reason="no_face_found")
    return ledger.commit(unit, tables={"examples": table_of([], EXAMPLE_SCHEMA)}, outcomes=[outcome], facts={})


@pytest.mark.lengthy
@pytest.mark.parametrize("kind", ["lost_answer", "slow_down", "reset"])
def test_a_commit_through_faults_stands_once(storage, proxy, kind):
    ledger = Ledger(storage.url)
    (unit,) = plan_of(ledger, [clip_at("/a.mp4")])
    proxy.fail(kind, method="PUT", times=2)
    entry = commit(ledger, unit)
    assert ledger.entries() == [entry]
    assert list(storage.sizes("examples")) == [shard["path"] for shard in entry["shards"]]
    assert commit(ledger, unit) == entry
    assert list(storage.sizes("examples")) == [shard["path"] for shard in entry["shards"]]
    assert audited(ledger).holds


@pytest.mark.lengthy
def test_two_runs_at_once_are_one_whatever_the_store_does(storage, proxy):
    ledger = Ledger(storage.url)
    proxy.fail("lost_answer", method="PUT", path="lock.json", times=1)
    proxy.fail("slow_down", method="GET", path="lock.json", times=2)
    with ledger.lock() as lock:
        lock.require()
        with pytest.raises(LedgerError, match="another run"), Ledger(storage.url).lock():
            pass
    assert not storage.exists("lock.json")


def test_a_run_whose_lock_was_taken_while_it_could_not_reach_it_stops(s3, storage, proxy, monkeypatch):
    monkeypatch.setattr("pipeline.ledger.lock.HEARTBEAT_SECONDS", 0.02)
    with Ledger(storage.url).lock() as lost:
        proxy.fail("forbidden", path="lock.json")
        time.sleep(0.1)  # heartbeats fail
        # Past the proxy: a heartbeat between its look and its write would put the own lock back.
        s3.put("out/lock.json", json.dumps({"token": "other", "pid": 1, "host": "there", "heartbeat": 1e12}).encode())
        proxy.mend()
        time.sleep(0.1)  # heartbeats that leave the other's lock alone
        with pytest.raises(LedgerError, match="was taken by pid 1 on there while this run could not reach it"):
            lost.require()
    assert json.loads(storage.read("lock.json"))["token"] == "other"


@pytest.mark.lengthy
def test_a_run_whose_store_is_gone_ends_with_the_store_s_own_line(storage, proxy):
    def run():
        with Ledger(storage.url).lock():
            proxy.fail("expired")
            storage.put("a", b"")

    with pytest.raises(StoreLostError, match=r"a cannot be written: .*renew the credentials"):
        run()


# --- clips


@pytest.fixture
def extractor(proxy):  # noqa: ARG001 (the way to the store)
    extractor = ClipExtractor(ExtractConfig(detector="dlib-hog"), limits=SandboxLimits())
    yield extractor
    extractor.sandbox.close()


def test_a_clip_is_lost_its_store_is_lost_or_it_was_never_there(s3, storage, proxy, extractor):
    clip = clip_at(s3.url("out/a.mp4"))
    assert extractor.extract(clip)[1].reason == "missing"
    storage.put("a.mp4", CONTENT)
    proxy.fail("forbidden", method="GET", path="a.mp4", times=1)
    outcome = extractor.extract(clip)[1]
    assert (outcome.state, outcome.reason, outcome.stage) == (State.RETRYABLE, "store_failed", "fetch")
    assert "cannot be copied to" in outcome.detail
    assert outcome.detail.endswith("Access Denied (AccessDenied); check the permissions")
    for kind in ("expired", "no_bucket"):
        proxy.fail(kind, method="GET", path="a.mp4", times=1)
        with pytest.raises(StoreLostError):
            extractor.extract(clip)
    proxy.fail("no_bucket", method="GET", path="a.mp4", times=1)
    assert extractor.extract(replace(clip, content_id="missing"))[1].reason == "missing"


def test_a_store_that_stays_out_of_reach_ends_the_run(s3, proxy, extractor, monkeypatch):
    monkeypatch.setattr(room.call, "__kwdefaults__", {**room.call.__kwdefaults__, "num_tries": 1})
    proxy.fail("bad_gateway")
    clip = clip_at(s3.url("out/a.mp4"))
    for _ in range(MAX_UNREACHED - 1):
        assert extractor.extract(clip)[1].reason == "store_failed"
    with pytest.raises(StoreLostError, match=f"so did the {MAX_UNREACHED - 1} clips before"):
        extractor.extract(clip)


@pytest.mark.lengthy
def test_a_full_temporary_folder_is_told(s3, storage, proxy, extractor, monkeypatch):  # noqa: ARG001
    storage.put("a.mp4", CONTENT)

    async def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipeline.storage.contents.IfMatch._copy", full)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreLostError, match=r"cannot be copied to .*: No space left on device; free space"):
        extractor.extract(clip_at(s3.url("out/a.mp4")))


def test_what_an_actor_meets_ends_the_run_without_another_try():
    class Failing:
        def __init__(self, error):
            self.error = error

        def run(self, _):
            raise self.error

    unit = Unit(unit_id="g000-u000000", clips=(clip_at("/a.mp4"),))
    assert UnitActor(Failing, {"error": StoreLostError("gone")}, own_umask())._entry(unit)["stopped_by"] == "storage"
    assert UnitActor(Failing, {"error": UsageError("wrong")}, own_umask())._entry(unit)["message"] == "wrong"
    with pytest.raises(ZeroDivisionError):
        UnitActor(Failing, {"error": ZeroDivisionError()}, own_umask())._entry(unit)


# --- corpus, checkpoints, shards of training


@pytest.mark.lengthy
@pytest.mark.parametrize("kind", ["slow_down", "reset_body", "bad_gateway"])
def test_a_corpus_is_read_through_faults(s3, proxy, kind):
    s3.put("in/list.csv", b"url,label\na.mp4,Sad\nb.mp4,Fear\n")
    for name in ("a.mp4", "b.mp4", "nameless"):
        s3.put(f"in/{name}", b"\0\0\0\x20ftypisom" + bytes(100))
    quiet = read_corpus(s3.url("in")), read_corpus(s3.url("in/list.csv"))
    assert (len(quiet[0].clips), len(quiet[1].clips)) == (3, 2)
    for method in ("GET", "HEAD"):
        proxy.fail(kind, method=method, times=3)
    assert (read_corpus(s3.url("in")), read_corpus(s3.url("in/list.csv"))) == quiet
    assert proxy.met(kind) >= 3


@pytest.mark.lengthy
def test_a_checkpoint_is_saved_and_read_through_faults_and_a_lasting_one_is_one_line(storage, proxy):
    model = build_model("caer-net-s")
    values = {"epoch": 1, "step": 1, "model": model, "optimizer_state": {}}
    config = {"model": {"name": "caer-net-s", "options": {}, "face_px": 32, "context_px": 32}}
    values |= {"config": {**config, "training": {}, "preprocessing": {}}}
    values |= {"info": {"metrics": {}, "manifest_sha256": "ab"}}
    proxy.fail("lost_answer", method="PUT", times=1)
    proxy.fail("slow_down", method="PUT", times=1)
    sha256 = save_checkpoint(storage.url, **values)
    proxy.fail("reset_body", method="GET", path="model.safetensors", times=1)
    proxy.fail("short_length", method="GET", path="checkpoint.json", times=1)
    assert load_checkpoint(storage.url, 1).info["checkpoint_sha256"] == sha256
    proxy.fail("expired", method="PUT")
    with pytest.raises(UsageError, match=r"can't be written: .*renew the credentials"):
        save_checkpoint(storage.url, **{**values, "epoch": 2})
    proxy.mend()
    assert load_checkpoint(storage.url, "last").info["epoch"] == 1


def test_the_shards_of_a_training_are_read_through_faults(s3, proxy, tmp_path):
    write_corpus(tmp_path / "data", train=14, validation=7)
    for path in (tmp_path / "data").rglob("*.*"):
        s3.put(f"data/{path.relative_to(tmp_path / 'data')}", path.read_bytes())
    proxy.fail("short_unsummed", method="GET", path="parquet", times=1)
    proxy.fail("slow_down", method="GET", path="manifest", times=1)
    found = ExampleDataset(s3.url("data"), split="train", cache_dir=tmp_path / "cache")
    assert found.labels.tolist() == [number % 7 for number in range(14)]
    assert proxy.met("short_unsummed") == 1


# --- whole jobs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, clips_per_class=(3, 0, 0), seed=1)
    return sorted((folder / "train" / "Happy").iterdir())


@pytest.mark.lengthy
@pytest.mark.timeout(600)
def test_a_job_ends_with_a_lost_store_and_goes_on_once_it_is_mended(s3, proxy, corpus):
    for number, path in enumerate(corpus):
        s3.put(f"in/{number}{path.suffix}", path.read_bytes())
    values = {"detector": "dlib-hog", "frames_per_clip": 1, "clips_per_shard": 1, "no_ray": True, "page": False}
    config = PreprocessConfig(input=s3.url("in"), output=s3.url("out"), **values)
    ledger = Ledger(config.output)
    # The first byte of a clip for the check, one clip whole, and then no more.
    proxy.fail("expired", method="GET", path=r"/in/\d", skip=2)
    with pytest.raises(StorageError, match=r"^s3://.*/in/\d.* cannot be copied to .*; renew the credentials$"):
        preprocess(config)
    (kept,) = ledger.entries()
    assert not ledger.storage.exists("_SUCCESS")
    assert not ledger.storage.exists("lock.json")
    proxy.mend()
    for kind, method in (("lost_answer", "PUT"), ("slow_down", "PUT"), ("reset", "PUT"), ("reset_body", "GET")):
        proxy.fail(kind, method=method, path="/(examples|ledger|in)/", times=2)
    run = preprocess(config)
    assert run.exit_code == 0
    assert (run.summary["inputs"], run.summary["done"], run.summary["processed"]) == (3, 3, 2)
    assert kept in ledger.entries()
    assert sum(map(proxy.met, ("lost_answer", "slow_down", "reset", "reset_body"))) == 8
    rows = [row["clip_id"] for shard in ledger.shards() for row in rows_of(ledger, shard)]
    assert len(rows) == len(set(rows)) == 3


def rows_of(ledger, shard):
    return pq.read_table(pa.BufferReader(ledger.storage.read(shard["path"]))).to_pylist()


def job(corpus, output, **options):
    jobs = Path(__file__).resolve().parents[2] / "jobs"
    flags = {"input": corpus[0].parent, "output": output, "detector": "dlib-hog", "page": "false"}
    flags |= {"frames-per-clip": 4, "clips-per-shard": 3, "actors": 1}
    arguments = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, str(jobs / "preprocess.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.lengthy
@pytest.mark.timeout(600)
def test_a_full_disk_ends_the_job_in_one_line_and_room_lets_it_go_on(corpus, small_disk):
    folder, mounted = small_disk
    full = job(corpus, folder / "out")
    last = full.stderr.strip().splitlines()[-1]
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    assert last.startswith(f"preprocess.py: error: {folder}/out/")
    assert "cannot be written: No space left on device; free space, or choose another place; what was committed" in last
    kept = Ledger(str(folder / "out")).entries()
    assert mounted("-o", "remount,size=64m")
    mended = job(corpus, folder / "out")
    assert mended.returncode == 0, mended.stderr
    ledger = Ledger(str(folder / "out"))
    assert audited(ledger).holds
    assert all(entry in ledger.entries() for entry in kept)


@pytest.mark.lengthy
def test_a_read_only_disk_is_refused_before_any_work(corpus, small_disk):
    folder, mounted = small_disk
    assert mounted("-o", "remount,ro")
    found = job(corpus, folder / "out")
    assert found.returncode == 2
    loading, line = found.stderr.strip().splitlines()
    assert loading == f"preprocessing {corpus[0].parent}: loading decoders and detector"
    assert line.startswith(f"preprocess.py: error: output {folder}/out")
    assert "Read-only file system" in line


def test_a_folder_that_this_user_may_not_write_is_refused(tmp_path):
    if os.getuid():
        pytest.skip("only root may become another user")
    tmp_path.chmod(0o755)
    # In a process of its own, after the imports: another user may not be able to read this Python.
    script = "import os; from pipeline.runtime.preflight import check_output; os.setuid(65534); "
    command = [sys.executable, "-c", f"{script}check_output({str(tmp_path / 'out')!r})"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    line = found.stderr.strip().splitlines()[-1]
    assert line.startswith(f"pipeline.records.vocabulary.UsageError: output {tmp_path}/out/preflight/")
    assert line.endswith("cannot be written: Permission denied; check the permissions")


# --- secrets

SIGNED = "https://store/clips/a.mp4?X-Amz-Credential=AKIAABCDEFGHIJKLMNOP&X-Amz-Signature="


def test_a_plan_keeps_no_signature_and_a_run_takes_the_address_of_its_day(tmp_path):
    ledger = Ledger(str(tmp_path))
    yesterday, today = clip_at(f"{SIGNED}hunter2"), clip_at(f"{SIGNED}correct-horse")
    assert plan_of(ledger, [yesterday])[0].clips[0].url == yesterday.url
    assert pending(ledger, [today])[0].clips[0].url == today.url
    assert [unit.clips[0].url for unit in list(ledger.snapshot().units())] == ["https://store/clips/a.mp4"]
    member = "archive://?file=https%3A%2F%2Fu%3Ap%40host%2Fa.zip%3FX-Amz-Signature%3Dhunter2&bytes=9&zip=1%2C2"
    assert without_secrets(member) == "archive://?file=https%3A%2F%2Fhost%2Fa.zip&bytes=9&zip=1%2C2"
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"hunter2" not in written
    assert b"Signature" not in written


def test_a_refused_signed_address_is_told_without_its_signature(proxy, extractor):
    proxy.fail("forbidden")
    outcome = extractor.extract(clip_at(f"{proxy.endpoint}/bucket/a.mp4?X-Amz-Signature=hunter2"))[1]
    assert outcome.reason == "store_failed"
    assert "403" in outcome.detail
    assert "hunter2" not in outcome.detail
