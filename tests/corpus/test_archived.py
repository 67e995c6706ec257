"""Archives are listed in a child: what it says is what the listing says, and what it does costs one archive."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections import Counter

import hostile_listing
import pytest
from hostile_listing import MEMBER

from pipeline.corpus import archived
from pipeline.corpus.archived import ArchiveLister
from pipeline.corpus.read import read_corpus
from pipeline.sandbox.limits import SandboxError, SandboxLimits
from pipeline.sandbox.supervisor import Sandbox
from pipeline.storage.archives.listing import list_members
from pipeline.storage.archives.members import kind_of
from pipeline.video.formats import is_named_as_clip


@pytest.fixture(scope="module")
def told():
    """What a child says of each case."""
    with ArchiveLister() as lister:
        return {
            name: lister.members(io.BytesIO(data), kind_of(name), size_bytes=len(data), content_id="id")
            for name, data in CASES.items()
        }


def tar_of(entries, **options):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", **options) as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def zip_of(entries, *, forced_zip64=False):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            with archive.open(name, "w", force_zip64=forced_zip64) as member:
                member.write(data)
    return sink.getvalue()


def sparse_tar():
    """As GNU tar writes a file with a hole, in its old form."""
    info = tarfile.TarInfo("sparse.mp4")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"00000000000\0", b"00000001000\0"
    header[483:495] = b"00004000000\0"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + bytes(512) + tar_of([("after.mp4", b"a")])


def folder_header():
    info = tarfile.TarInfo("folder")
    info.type = tarfile.DIRTYPE
    return info.tobuf()


FILES = [("one.mp4", b"1" * 1000), ("sub/two.avi", os.urandom(70_000)), ("empty.mkv", b""), ("notes.txt", b"words")]
LONG = [(f"{'n' * 240}/{'m' * 150}.mp4", b"x"), ("x" * 4500 + ".mp4", b"y"), ("short.mp4", b"z")]
INNER = zip_of(FILES)
CASES = {
    "a.zip": zip_of(FILES),
    "zip64.zip": zip_of(FILES, forced_zip64=True),
    "a.tar": tar_of(FILES),
    "a.tar.gz": gzip.compress(tar_of(FILES)),
    "gnu_long_names.tar": tar_of(LONG, format=tarfile.GNU_FORMAT),
    "pax_long_names.tar.gz": gzip.compress(tar_of(LONG, format=tarfile.PAX_FORMAT)),
    "zip_in_gz.tar.gz": gzip.compress(tar_of([("inner.zip", INNER), ("after.mp4", b"a")])),
    "three_deep.zip": zip_of([("b.tar.gz", gzip.compress(tar_of([("c.zip", INNER), ("x.mp4", b"x")])))]),
    "surrogates.tar": tar_of([(os.fsdecode(b"bad \xff.mp4"), b"x")]),
    "bomb.tar.gz": gzip.compress(tar_of([("small.mp4", b"s"), ("bomb.mp4", bytes(80 * 2**20))])),
    "bomb.zip": zip_of([("small.mp4", b"s"), ("bomb.mp4", bytes(80 * 2**20)), ("after.mp4", b"a")]),
    "cut.tar": tar_of(FILES)[:3000],
    "cut.zip": zip_of(FILES)[:-10],
    "cut.tar.gz": gzip.compress(tar_of(FILES))[:-9000],
    "empty.zip": b"",
    "many.tar.gz": gzip.compress(folder_header() * 100_010),
    "sparse.tar": sparse_tar(),
    "negative.tar": tar_of(FILES)[:124] + b"\xff" * 12 + tar_of(FILES)[136:],
}


@pytest.mark.lengthy
@pytest.mark.parametrize("name", CASES)
def test_a_child_lists_what_the_listing_lists(told, name):
    data = CASES[name]
    known = list_members(
        io.BytesIO(data), kind_of(name), size_bytes=len(data), content_id="id", is_wanted=is_named_as_clip
    )
    assert [(each.name, each.reason, each.content_id) for each in told[name]] == [
        (each.name, each.reason, each.content_id) for each in known
    ]
    assert [each for each in told[name] if each.reason is None] == [each for each in known if each.reason is None]


def test_what_each_kind_ends_as(told):
    reasons = {name: Counter(each.reason for each in members) for name, members in told.items()}
    assert reasons["many.tar.gz"]["too_many_members"] == 1
    assert reasons["zip_in_gz.tar.gz"] == {None: 5}
    assert reasons["three_deep.zip"] == {"nested_too_deep": 1, None: 1}
    assert reasons["gnu_long_names.tar"] == reasons["pax_long_names.tar.gz"] == {"name_too_long": 1, None: 2}
    assert reasons["bomb.tar.gz"] == {None: 1, "archive_bomb": 1}
    assert reasons["bomb.zip"] == {None: 2, "archive_bomb": 1}
    assert reasons["sparse.tar"] == {"unsupported_compression": 1, None: 1}
    assert sum(reasons["negative.tar"].values()) == reasons["negative.tar"]["damaged_archive"]


@pytest.mark.lengthy
def test_an_archive_costs_itself_alone_and_kinds_that_are_not_read_are_named(tmp_path):
    for name in ("bomb.tar.gz", "cut.zip", "a.zip"):
        (tmp_path / name).write_bytes(CASES[name])
    (tmp_path / "b.tar.bz2").write_bytes(bz2.compress(CASES["a.tar"]))
    (tmp_path / "x.tar.xz").write_bytes(lzma.compress(CASES["a.tar"]))
    corpus = read_corpus(str(tmp_path))
    paths = set(corpus.table["path"].to_pylist())
    assert {"a.zip!one.mp4", "a.zip!sub/two.avi", "bomb.tar.gz!small.mp4", "bomb.tar.gz", "cut.zip"} <= paths
    ignored = {each.path: each.reason for each in corpus.ignored}
    assert {"b.tar.bz2", "x.tar.xz"} <= set(ignored)


def listed_by(how, *, limits=None, size_bytes=4):
    patience = 3 if how == "hangs" else 60  # A machine with other work is slow at all of these.
    limits = limits or SandboxLimits(timeout_seconds=patience, start_seconds=60, memory_bytes=400 * 2**20)
    with Sandbox(hostile_listing.build, {"how": how}, limits=limits, readable=[]) as sandbox:
        return archived._listed(sandbox, io.BytesIO(b"data"), "tar", size_bytes=size_bytes, content_id="id")


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("how", "reason", "told"),
    [
        ("dies", "crash", "SIGSEGV"),
        ("hangs", "hang", "no progress"),
        ("eats", "memory", "400 MiB"),
        ("reads without end", "bad_answer", "more bytes than a listing needs"),
        ("spools without end", "bad_answer", "more bytes than a listing needs"),
        ("members without end", "bad_answer", "more than 20000 members"),
        (["read", -1, 5], "bad_answer", "not there to be asked for"),
        (["read", 0, 2**40], "bad_answer", "not there to be asked for"),
        (["open", "/etc/passwd"], "bad_answer", "not there to be asked for"),
        ("no members", None, ""),
    ],
)
def test_a_child_that_was_taken_over_ends_with_a_reason(monkeypatch, how, reason, told):
    monkeypatch.setattr(archived, "MAX_MEMBER_BYTES", 2**28)  # of the spool, which lies on this disk
    monkeypatch.setattr(archived, "MAX_MEMBERS", 10_000)
    if reason is None:
        assert [each.name for each in listed_by(how)] == ["a.mp4"]
        return
    with pytest.raises(SandboxError, match=told) as caught:
        listed_by(how)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "lie",
    [
        None,
        [*MEMBER, 1],
        ["x" * 20_000, *MEMBER[1:]],
        ["a", 2**63, *MEMBER[2:]],
        [*MEMBER[:2], "not an id", *MEMBER[3:]],
        [*MEMBER[:3], [["file", [0, 1]]], None, None],
        [*MEMBER[:3], [["tar", [0]]], None, None],
        [*MEMBER[:3], [["tar", [-1, 5]]], None, None],
        [*MEMBER[:3], [["zip", [0, 1, 2, True, 3]]], None, None],
        [*MEMBER[:3], [], None, None],
        [*MEMBER[:4], "my own reason", None],
    ],
)
def test_a_member_that_is_none_is_refused(lie):
    with pytest.raises(ValueError, match="a member"):
        archived._member_of(lie, archive_id="id")
