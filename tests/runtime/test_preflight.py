"""Preflight: what a job needs is tried before hours are spent, and what fails is one line with a cure."""

import errno
import os
from collections import namedtuple

import pytest
import s3fs
from fault_proxy import FaultProxy

from pipeline.corpus.read import read_corpus
from pipeline.corpus.types import CorpusError
from pipeline.records.vocabulary import UsageError
from pipeline.runtime import preflight as room
from pipeline.runtime.cluster import fault_of_node
from pipeline.runtime.preflight import check_clips, check_output, missing_decoders, preflight
from pipeline.storage import retry
from pipeline.storage.store import Storage


@pytest.fixture
def proxy(s3, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.01)
    with FaultProxy(s3.endpoint).running() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield running
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_good_output_is_told_in_words_and_left_as_it_was(tmp_path):
    told = check_output(str(tmp_path / "out"))
    assert told.startswith("the output is writable, the first of two writers wins, ")
    assert told.endswith("GiB free")
    assert os.listdir(tmp_path / "out") == []


def test_all_is_well_is_one_line(s3, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (line,) = preflight(input_url=str(tmp_path), output_url=s3.url("out"))
    assert line.startswith("checked: the output is writable, the first of two writers wins; decoders")
    assert line.endswith("decoders h264, hevc, mpeg4, vp8, vp9, av1")
    assert Storage(s3.url("out")).sizes("") == {}


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match=r"output .*/out is not a folder; give a folder"):
        check_output(str(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"output .*/out/below"):
        check_output(str(tmp_path / "out" / "below"))


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "No space left on device; free space, or choose another place"),
        (errno.EROFS, "Read-only file system; make it writable, or choose another place"),
        (errno.EACCES, "Permission denied; check the permissions"),
    ],
)
def test_a_disk_that_refuses_is_one_line_with_the_cure(tmp_path, monkeypatch, number, cure):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UsageError, match=rf"^output {tmp_path}/preflight/\w+ cannot be written: {cure}$"):
        check_output(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_little_space_is_told(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage(2**28))
    assert check_output(str(tmp_path)).endswith("only 0.2 GiB free")


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("kind", "method", "message"),
    [
        ("expired", "PUT", "cannot be written: .*ExpiredToken.*; renew the credentials"),
        ("no_bucket", "PUT", "cannot be written: .*NoSuchBucket.*; create the bucket"),
        ("forbidden", "GET", "cannot be read: .*AccessDenied.*; check the permissions"),
        ("forbidden", "DELETE", "cannot be deleted: .*AccessDenied.*; check the permissions"),
    ],
)
def test_a_store_that_refuses_is_one_line_with_the_cure(s3, proxy, kind, method, message):
    proxy.fail(kind, method=method)
    with pytest.raises(UsageError, match=f"^output {s3.url('out')}/preflight/[0-9a-f]+ {message}") as caught:
        check_output(s3.url("out"))
    assert "\n" not in str(caught.value)


@pytest.mark.lengthy
def test_a_store_without_conditional_writes_is_refused(s3, proxy):
    proxy.drop_header = "if-none-match"
    with pytest.raises(UsageError, match="the store ignores If-None-Match, so that two attempts at one unit"):
        check_output(s3.url("out"))


def test_an_input_that_may_be_listed_but_not_read_is_refused(s3, proxy):
    for number in range(4):
        s3.put(f"in/{number}.mp4", b"x")
    clips = read_corpus(s3.url("in")).clips
    check_clips(clips)
    proxy.fail("forbidden", method="GET", path="in/0.mp4")
    check_clips(clips)
    proxy.fail("forbidden", method="GET", path="in/.*mp4")
    with pytest.raises(UsageError, match=r"^input s3://.*/in/0.mp4 cannot be read: .*; check the permissions"):
        check_clips(clips)


def test_an_input_that_is_not_there_is_told_before_the_output_is_touched(tmp_path):
    with pytest.raises(CorpusError, match="does not exist; check the path"):
        preflight(input_url=str(tmp_path / "gone"), output_url=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_missing_decoder_is_a_warning(tmp_path, monkeypatch):
    assert missing_decoders() == []
    monkeypatch.setitem(room.DECODERS, "theora9", ("theora9", "libtheora9"))
    line = preflight(input_url=str(tmp_path), output_url=str(tmp_path))[1]
    assert line.startswith("warning: PyAV has no decoder for theora9: such clips will be quarantined")


def test_a_node_that_does_not_see_the_output_is_told(tmp_path):
    Storage(str(tmp_path)).put("preflight/mark", b"")
    assert fault_of_node(str(tmp_path), "preflight/mark") is None
    assert "is not what the driver sees; mount it on every node" in str(fault_of_node(str(tmp_path), "preflight/other"))
