"""A clip whose bytes are no longer those that were listed: its result is never filed under what nobody read."""

import io
import json
import os
import shutil
import tarfile
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pyarrow.parquet as pq
import pytest
from ledgers import audited

from pipeline.corpus.read import read_corpus
from pipeline.ledger import removal
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.retry import quarantined, retry, verify
from pipeline.preprocess.config import ExtractConfig, PreprocessConfig
from pipeline.preprocess.extractor import ClipExtractor
from pipeline.preprocess.job import preprocess
from pipeline.preprocess.local_copies import local_file
from pipeline.records.outcomes import State
from pipeline.runtime import run as running
from pipeline.sandbox.limits import SandboxLimits
from pipeline.storage.contents import LocalContents, md5_of
from pipeline.storage.remote import RangedFile, fetch, open_filesystem
from pipeline.storage.retry import ContentChangedError
from pipeline.synthetic.corpus import make_corpus

CONFIG = ExtractConfig(detector="dlib-hog", frames_per_clip=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Files of different videos with a face in each."""
    folder = tmp_path_factory.mktemp("videos")
    make_corpus(folder, clips_per_class=(3, 0, 0), seed=3)
    return sorted(path for path in folder.rglob("*.avi") if "Neutral" not in str(path))[:6]


@pytest.fixture(scope="module")
def extractor():
    extractor = ClipExtractor(CONFIG, limits=SandboxLimits())
    yield extractor
    extractor._members.close()
    extractor.sandbox.close()


@pytest.fixture
def web_folder(tmp_path):
    """A folder and the address of a web server of its files, which gives no hashes."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ended(extractor, clip):
    examples, outcome = extractor.extract(clip)
    assert bool(examples) == (outcome.state is State.DONE)
    return outcome.state, outcome.reason


OTHER = (State.CHANGED, "other_bytes")
DONE = (State.DONE, None)


def test_a_local_file_is_hashed_once_and_again_when_it_was_touched(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    contents = LocalContents()
    contents.verify(str(path), md5_of(path))
    contents.require_unchanged(str(path))
    os.utime(path, (1, 1))
    with pytest.raises(ContentChangedError):
        contents.require_unchanged(str(path))
    contents.verify(str(path), md5_of(path))  # touched, and the same bytes
    path.write_bytes(b"two")
    with pytest.raises(ContentChangedError, match="other bytes"):
        contents.verify(str(path), "f97c5d29941bfb1b2fdab0874906ab82")
    path.unlink()
    with pytest.raises(ContentChangedError, match="taken away"):
        contents.require_unchanged(str(path))
    with pytest.raises(FileNotFoundError):
        contents.verify(str(path), "f97c5d29941bfb1b2fdab0874906ab82")


@pytest.mark.lengthy
def test_a_file_overwritten_after_its_listing_ends_changed(tmp_path, videos, extractor):
    shutil.copy(videos[0], tmp_path / "a.avi")
    (clip,) = read_corpus(str(tmp_path)).clips
    assert ended(extractor, clip) == DONE
    shutil.copy(videos[1], tmp_path / "a.avi")
    assert ended(extractor, clip) == OTHER
    shutil.copy(videos[0], tmp_path / "a.avi")
    assert ended(extractor, clip) == DONE


def test_a_file_of_the_same_size_and_time_is_told_too(tmp_path, videos, extractor):
    shutil.copy2(videos[0], tmp_path / "a.avi")
    (clip,) = read_corpus(str(tmp_path)).clips
    status = os.stat(tmp_path / "a.avi")
    with open(tmp_path / "a.avi", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(tmp_path / "a.avi", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ended(extractor, clip) == OTHER


@pytest.mark.lengthy
def test_a_file_written_to_while_it_is_read_ends_changed(tmp_path, videos, extractor, monkeypatch):
    shutil.copy(videos[0], tmp_path / "a.avi")
    (clip,) = read_corpus(str(tmp_path)).clips
    run = extractor.sandbox.run

    def run_and_write(task, **options):
        found = run(task, **options)
        shutil.copy(videos[1], tmp_path / "a.avi")
        return found

    monkeypatch.setattr(extractor.sandbox, "run", run_and_write)
    assert ended(extractor, clip) == OTHER


GREW = (State.RETRYABLE, "growing")


@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_a_file_that_grows_after_its_listing_is_retryable(share, tmp_path, videos, extractor):
    whole = videos[0].read_bytes()
    begun = whole[: int(len(whole) * share)]
    (tmp_path / "a.avi").write_bytes(begun)
    (clip,) = read_corpus(str(tmp_path)).clips
    with open(tmp_path / "a.avi", "ab") as file:
        file.write(whole[len(begun) :])
    assert ended(extractor, clip) == GREW
    (clip,) = read_corpus(str(tmp_path)).clips
    assert ended(extractor, clip) == DONE


def test_a_file_that_grows_while_it_is_read_is_retryable(tmp_path, videos, extractor, monkeypatch):
    whole = videos[0].read_bytes()
    (tmp_path / "a.avi").write_bytes(whole)
    (clip,) = read_corpus(str(tmp_path)).clips
    run = extractor.sandbox.run

    def run_and_write(task, **options):
        found = run(task, **options)
        with open(tmp_path / "a.avi", "ab") as file:
            file.write(b"JUNK")
        return found

    monkeypatch.setattr(extractor.sandbox, "run", run_and_write)
    assert ended(extractor, clip) == GREW


@pytest.mark.parametrize("place", ["s3", "memory", "web"])
def test_a_file_that_grows_in_a_store_is_retryable(place, tmp_path, s3, videos, web_folder):
    extractor = ClipExtractor(CONFIG, limits=SandboxLimits())
    whole = videos[0].read_bytes()
    folder, web_url = web_folder
    url = {"s3": s3.url("in/a.avi"), "memory": "memory://grown/a.avi", "web": f"{web_url}/a.avi"}[place]

    def put(data):
        if place == "web":
            (folder / "a.avi").write_bytes(data)
        else:
            fsspec.open(url, "wb").fs.pipe_file(url, data)

    put(whole[: len(whole) // 2])
    (tmp_path / "list.csv").write_text(f"url\n{url}\n")
    (clip,) = read_corpus(str(tmp_path / "list.csv"), allow_private_hosts=True).clips
    put(whole)
    assert ended(extractor, clip) == GREW
    (clip,) = read_corpus(str(tmp_path / "list.csv"), allow_private_hosts=True).clips
    assert ended(extractor, clip) == DONE
    extractor.sandbox.close()


def test_what_was_missing_when_it_was_listed_is_no_input_that_was_read(tmp_path, videos, extractor):
    (tmp_path / "list.csv").write_text("url\na.avi\n")
    (clip,) = read_corpus(str(tmp_path / "list.csv")).clips
    assert (clip.content_id, ended(extractor, clip)) == ("missing", (State.QUARANTINED, "missing"))
    shutil.copy(videos[0], tmp_path / "a.avi")
    assert ended(extractor, clip) == OTHER


def test_an_object_overwritten_after_its_listing_ends_changed(s3, videos, extractor):
    s3.put("in/a.avi", videos[0].read_bytes())
    (clip,) = read_corpus(s3.url("in")).clips
    assert ended(extractor, clip) == DONE
    s3.put("in/a.avi", videos[1].read_bytes())
    assert ended(extractor, clip) == OTHER
    s3.put("in/a.avi", videos[0].read_bytes())
    assert ended(extractor, clip) == DONE


def test_ranges_of_an_object_are_all_of_the_bytes_that_were_listed(s3, tmp_path):
    s3.put("in/a.bin", b"a" * 100)
    store, place = open_filesystem(s3.url("in/a.bin"))
    etag = store.info(place)["ETag"].strip('"')
    source = RangedFile(store, place, what="it", size_bytes=100, block_bytes=10, content_id=etag)
    assert source.read(10) == b"a" * 10
    s3.put("in/a.bin", b"b" * 100)
    with pytest.raises(ContentChangedError):
        source.read(10)
    with pytest.raises(ContentChangedError):
        fetch(s3.url("in/a.bin"), tmp_path / "copy", size_bytes=100, content_id=etag)
    fetch(s3.url("in/a.bin"), tmp_path / "copy", size_bytes=100)  # of which no hash is known
    assert (tmp_path / "copy").read_bytes() == b"b" * 100


def archive(kind, paths):
    """Bytes of a zip, tar or tar.gz with these files, named a.avi, b.avi, ..."""
    packed = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as opened:
            for name, path in zip("abc", paths, strict=False):
                opened.write(path, f"{name}.avi")
    else:
        with tarfile.open(fileobj=packed, mode="w:gz" if kind == "tar.gz" else "w") as opened:
            for name, path in zip("abc", paths, strict=False):
                opened.add(path, f"{name}.avi")
    return packed.getvalue()


@pytest.mark.lengthy
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_member_of_an_archive_that_was_packed_anew_ends_changed(kind, tmp_path, s3, videos, extractor):
    one, other = archive(kind, videos[:2]), archive(kind, [videos[2], videos[1]])
    (tmp_path / f"a.{kind}").write_bytes(one)
    s3.put(f"{kind}/a.{kind}", one)
    local, remote = read_corpus(str(tmp_path)).clips, read_corpus(s3.url(kind)).clips
    assert [ended(extractor, clip) for clip in (*local, *remote)] == [DONE] * 4
    (tmp_path / f"a.{kind}").write_bytes(other)
    s3.put(f"{kind}/a.{kind}", other)
    assert [ended(extractor, clip) for clip in (*local, *remote)] == [OTHER] * 4


def test_bytes_of_a_plan_that_is_older_than_the_check_are_read(tmp_path, videos, extractor):
    (tmp_path / "a.tar").write_bytes(archive("tar", videos[:1]))
    (clip,) = read_corpus(str(tmp_path)).clips
    before = replace(clip, url=clip.url.replace(clip.url[clip.url.index("&content=") : clip.url.index("&tar=")], ""))
    assert "content=" not in before.url
    assert ended(extractor, before) == DONE


def test_a_copy_of_a_link_names_the_file_that_was_checked(tmp_path, videos):
    shutil.copy(videos[0], tmp_path / "a.avi")
    (clip,) = read_corpus(str(tmp_path)).clips
    with local_file(clip, copies=None, contents=LocalContents()) as path:
        assert path.read_bytes() == videos[0].read_bytes()
    with (
        pytest.raises(ContentChangedError),
        local_file(replace(clip, content_id="0" * 32), copies=None, contents=LocalContents()),
    ):
        pass


# Whole runs


def config_of(corpus, output):
    return PreprocessConfig(
        input=str(corpus), output=str(output), detector="dlib-hog", frames_per_clip=1, clips_per_shard=2, no_ray=True
    )


def states_of(run):
    return {(outcome.path, outcome.state, outcome.reason) for outcome in run.ledger.snapshot().outcomes()}


def upload(put, videos, count):
    for number, name in enumerate("abcd"[:count]):
        put(f"{name}.avi", videos[number].read_bytes())


@pytest.mark.lengthy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_clips_overwritten_since_their_listing_are_inputs_of_their_own(place, tmp_path, s3, videos, monkeypatch):
    """Listed, two of three overwritten, then read: the same run takes the new bytes, and nothing is filed twice."""

    def put(name, data):
        if place == "s3":
            s3.put(f"in/{name}", data)
        else:
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / name).write_bytes(data)

    source = s3.url("in") if place == "s3" else str(tmp_path / "in")
    upload(put, videos, 3)
    prepare, listings = running.prepare, []

    def prepare_and_overwrite(job, ledger, snapshot, corpus):
        choice = prepare(job, ledger, snapshot, corpus)
        if not listings:
            put("a.avi", videos[3].read_bytes())
            put("b.avi", videos[4].read_bytes())
        listings.append(len(corpus.table))
        return choice

    monkeypatch.setattr(running, "prepare", prepare_and_overwrite)
    run = preprocess(config_of(source, tmp_path / "out"))
    assert (run.exit_code, listings) == (0, [3, 3])
    assert states_of(run) == {
        ("a.avi", State.CHANGED, "replaced"),
        ("b.avi", State.CHANGED, "replaced"),
        *((f"{name}.avi", State.DONE, None) for name in "abc"),
    }
    assert audited(run.ledger).holds
    now = {clip.path: clip.clip_id for clip in read_corpus(source).clips}
    rows = run.ledger.snapshot().latest("state = 'done'").to_pylist()
    assert {row["path"]: row["clip_id"] for row in rows} == now


@pytest.mark.lengthy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_whole_at_last", [True, False])
def test_a_file_that_grows_during_a_run_is_done_once_it_is_whole(is_whole_at_last, tmp_path, videos, monkeypatch):
    source, whole = tmp_path / "in", videos[0].read_bytes()
    source.mkdir()
    shutil.copy(videos[1], source / "b.avi")
    (source / "a.avi").write_bytes(whole[:2000])
    prepare, listings = running.prepare, []

    def prepare_and_write(job, ledger, snapshot, corpus):
        choice = prepare(job, ledger, snapshot, corpus)
        listings.append(len(corpus.table))
        share = 0.3 * len(listings)
        if len(listings) == 1 and is_whole_at_last:
            (source / "a.avi").write_bytes(whole)
        elif not is_whole_at_last:
            (source / "a.avi").write_bytes(whole[: int(len(whole) * share)])
        return choice

    with monkeypatch.context() as patch:
        patch.setattr(running, "prepare", prepare_and_write)
        run = preprocess(config_of(source, tmp_path / "out"))
    assert (run.audit.holds, run.exit_code) == (True, 0)
    assert run.summary["retryable"] == (not is_whole_at_last)
    assert ("a.avi", *(DONE if is_whole_at_last else GREW)) in states_of(run)
    (source / "a.avi").write_bytes(whole)
    run = preprocess(config_of(source, tmp_path / "out"))
    assert (run.audit.holds, run.summary["retryable"], run.summary["done"]) == (True, 0, 2)
    rows = [pq.read_table(path, columns=["path"])["path"].to_pylist() for path in (tmp_path / "out").rglob("*.parquet")]
    assert sorted(path for each in rows for path in each) == ["a.avi", "b.avi"]


@pytest.mark.lengthy
@pytest.mark.timeout(600)
def test_a_broken_upload_that_was_mended_under_its_name_is_another_input(tmp_path, videos):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.avi").write_bytes(videos[0].read_bytes()[:1000])
    shutil.copy(videos[1], source / "b.avi")
    config = config_of(source, tmp_path / "out")
    preprocess(config)
    ledger = Ledger(str(tmp_path / "out"))
    (broken,) = quarantined(ledger)
    shutil.copy(videos[0], source / "a.avi")
    assert retry(ledger, [broken]) == 1
    run = preprocess(config)
    assert run.exit_code == 0
    ids = {row["clip_id"]: row["state"] for row in run.ledger.snapshot().latest("path = 'a.avi'").to_pylist()}
    assert ids == {broken.clip_id: "changed", read_corpus(str(source)).clips[0].clip_id: "done"}
    (source / "old.avi").write_bytes(videos[0].read_bytes()[:1000])  # the old bytes turn up elsewhere
    run = preprocess(config)
    assert ("old.avi", State.QUARANTINED) in {(path, state) for path, state, _ in states_of(run)}


@pytest.mark.lengthy
@pytest.mark.timeout(600)
def test_the_examples_of_what_was_replaced_leave_the_shards_also_when_that_is_cut_off(tmp_path, videos, monkeypatch):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number, name in enumerate("abc"):
        shutil.copy(videos[number], source / f"{name}.avi")
    config = config_of(source, output)
    preprocess(config)
    shutil.copy(videos[3], source / "a.avi")

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(removal, "json_bytes", kill)  # new shards are there, the entry is not
        with pytest.raises(Killed):
            preprocess(config)
    run = preprocess(config)
    assert (run.exit_code, run.audit.holds) == (0, True)
    now = {clip.clip_id for clip in read_corpus(str(source)).clips}
    stored = [pq.read_table(path, columns=["clip_id"])["clip_id"].to_pylist() for path in output.rglob("*.parquet")]
    assert sorted(clip_id for ids in stored for clip_id in ids) == sorted(now)
    assert sum(shard["rows"] for shard in json.loads((output / "manifest.json").read_text())["shards"]) == 3
    found = verify(run.ledger)
    assert (found.num_shards > 0, found.faults, found.foreign) == (True, (), ())
    assert {(path, state) for path, state, _ in states_of(run) if path == "a.avi"} == {
        ("a.avi", State.CHANGED),
        ("a.avi", State.DONE),
    }
    assert preprocess(config).summary["processed"] == 0
