"""Archives as inputs: members become clips, what is hostile or broken becomes a reason, and nothing is unpacked."""

import contextlib
import copy
import gzip
import hashlib
import io
import os
import stat
import struct
import tarfile
import zipfile
from collections import Counter
from functools import partial

import pyarrow as pa
import pytest
from packing import packed, requests_of

from pipeline.corpus.read import read_corpus
from pipeline.ledger.ledger import Ledger
from pipeline.preprocess.config import PreprocessConfig
from pipeline.preprocess.job import preprocess
from pipeline.preprocess.local_copies import open_archive
from pipeline.records.outcomes import State
from pipeline.storage.archives import listing, parts
from pipeline.storage.archives.listing import list_members
from pipeline.storage.archives.members import archive_of, kind_of, member_url, reading_order
from pipeline.storage.archives.parts import ArchiveError
from pipeline.storage.archives.reading import MemberReader
from pipeline.storage.contents import LocalContents
from pipeline.synthetic.corpus import make_corpus

KINDS = ("a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.zst")
FILES = {"one.mp4": b"1" * 1000, "sub/two.avi": os.urandom(70_000), "sub/empty.mkv": b"", "notes.txt": b"words"}


def listed(data, name):
    return list_members(
        io.BytesIO(data), kind_of(name) or "", size_bytes=len(data), content_id="id", is_wanted=lambda _: True
    )


def reasons(data, name):
    return {member.name: member.reason for member in listed(data, name)}


def reader_of(data, requests=None):
    def open_file(_url, num_bytes, block_bytes, _content_id):
        assert num_bytes == len(data)
        if requests is not None:
            requests.append(block_bytes)
        return io.BytesIO(data)

    return MemberReader(open_file)


def bytes_of(member, data, tmp_path, *, reader=None):
    target = tmp_path / "clip"
    target.unlink(missing_ok=True)
    with contextlib.closing(reader or reader_of(data)) as opened:
        opened.copy(member_url("x", len(data), member, content_id=""), target, content_id=member.content_id)
    return target.read_bytes()


def special(kind, path, target=""):
    info = tarfile.TarInfo(path)
    info.type, info.linkname = kind, target
    return info, b""


# --- what is whole ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_members_come_out_as_they_went_in(name, tmp_path):
    data = packed(name, FILES)
    members = listed(data, name)
    assert [member.name for member in members] == list(FILES)
    assert not any(member.reason for member in members)
    for member in members:
        assert member.size_bytes == len(FILES[member.name])
        assert bytes_of(member, data, tmp_path) == FILES[member.name]


@pytest.mark.parametrize("outer", KINDS)
@pytest.mark.parametrize("inner", ["i.zip", "i.tar", "i.tar.gz"])
def test_archives_in_archives_are_read(outer, inner, tmp_path):
    data = packed(outer, {"first.mp4": b"f", f"deep/{inner}": packed(inner, FILES), "last.mp4": b"l"})
    members = {member.name: member for member in listed(data, outer)}
    assert list(members) == ["first.mp4", *(f"deep/{inner}!{path}" for path in FILES), "last.mp4"]
    assert bytes_of(members[f"deep/{inner}!sub/two.avi"], data, tmp_path) == FILES["sub/two.avi"]
    assert bytes_of(members["last.mp4"], data, tmp_path) == b"l"


def test_the_third_archive_in_another_is_too_deep():
    data = packed("a.zip", {"b.tar.gz": packed("b.tar.gz", {"c.zip": packed("c.zip", FILES), "x.mp4": b"x"})})
    assert reasons(data, "a.zip") == {"b.tar.gz!c.zip": "nested_too_deep", "b.tar.gz!x.mp4": None}


def test_ids_are_those_of_the_same_archive_anywhere_and_tell_contents_apart():
    for name in KINDS:
        data = packed(name, FILES)
        assert listed(data, name) == listed(data, name)
        ids = [member.content_id for member in listed(data, name)]
        assert len(set(ids)) == len(FILES)
        changed = packed(name, {**FILES, "one.mp4": b"2" * 1000})
        other = list_members(io.BytesIO(changed), kind_of(name) or "", size_bytes=len(changed), content_id="id2",
                             is_wanted=lambda _: True)  # fmt: skip
        assert other[0].content_id != ids[0]
    # The bytes of a compressed tar pass by when it is listed.
    assert listed(packed("a.tgz", FILES), "a.tgz")[0].content_id == hashlib.md5(FILES["one.mp4"]).hexdigest()


def test_a_compressed_tar_is_read_once_for_members_in_their_order(tmp_path):
    files = {f"{number}.mp4": os.urandom(5000) for number in range(20)}
    data, requests = packed("a.tar.gz", files), []
    members = listed(data, "a.tar.gz")
    reader = reader_of(data, requests)
    urls = sorted((member_url("x", len(data), member, content_id="") for member in members), key=reading_order)
    for number, (url, member) in enumerate(zip(urls, members, strict=True)):
        reader.copy(url, tmp_path / str(number), content_id=member.content_id)
        assert (tmp_path / str(number)).read_bytes() == files[member.name]
    assert len(requests) == 1
    reader.copy(urls[3], tmp_path / "again", content_id=members[3].content_id)
    assert len(requests) == 2
    reader.close()


def test_only_what_lies_in_a_compressed_stream_is_kept_in_order():
    for name in ("a.zip", "a.tar"):
        data = packed(name, FILES)
        assert {reading_order(member_url("x", len(data), member, content_id="")) for member in listed(data, name)} == {
            ()
        }
    assert reading_order("s3://bucket/a.mp4") == ()


def test_odd_names_are_read_and_undecodable_ones_are_kept(tmp_path):
    names = ["видео é.mp4", "new\nline.mp4", "a!b.mp4", "%41::x.mp4", os.fsdecode(b"bad \xff.mp4"), "./dotted.mp4"]
    for archive in ("a.tar", "a.tar.zst"):
        data = packed(archive, [(name, name.encode(errors="surrogateescape")) for name in names])
        members = listed(data, archive)
        assert [member.name for member in members] == [*names[:-1], "dotted.mp4"]
        assert [bytes_of(member, data, tmp_path) for member in members] == [
            name.encode(errors="surrogateescape") for name in names
        ]


# --- what is hostile or broken ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("archive", ["a.zip", "a.tar", "a.tar.gz"])
def test_names_that_lead_elsewhere_are_refused_and_the_others_read(archive, tmp_path):
    bad = ["../up.mp4", "a/../../up.mp4", "/etc/abs.mp4", "C:/drive.mp4", "back\\slash.mp4", ".."]
    data = packed(archive, [*((name, b"x") for name in bad), ("good.mp4", b"y")])
    assert reasons(data, archive) == {**dict.fromkeys(bad, "unsafe_name"), "good.mp4": None}
    assert bytes_of(listed(data, archive)[-1], data, tmp_path) == b"y"


def test_links_and_devices_are_refused():
    entries = [
        special(tarfile.SYMTYPE, "sym.mp4", "/etc/passwd"),
        special(tarfile.LNKTYPE, "hard.mp4", "good.mp4"),
        special(tarfile.CHRTYPE, "device.mp4"),
        special(tarfile.FIFOTYPE, "fifo.mp4"),
        special(tarfile.DIRTYPE, "folder.mp4"),
        ("good.mp4", b"y"),
    ]
    expected = {
        "sym.mp4": "link",
        "hard.mp4": "link",
        "device.mp4": "not_a_file",
        "fifo.mp4": "not_a_file",
        "good.mp4": None,
    }
    assert reasons(packed("a.tar", entries), "a.tar") == expected
    link = zipfile.ZipInfo("sym.mp4")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert reasons(packed("a.zip", [(link, b"/etc/passwd")]), "a.zip") == {"sym.mp4": "link"}


def test_encrypted_and_unknown_compression_are_refused():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("locked.mp4", b"x")
        archive.writestr("lzma.mp4", b"x" * 100, zipfile.ZIP_LZMA)
        archive.writestr("good.mp4", b"y")
    data = bytearray(sink.getvalue())
    place = data.index(b"PK\x01\x02")
    data[place + 8] |= 1
    expected = {"locked.mp4": "encrypted", "lzma.mp4": "unsupported_compression", "good.mp4": None}
    assert reasons(bytes(data), "a.zip") == expected


def test_the_last_of_members_with_one_name_is_read(tmp_path):
    data = packed("a.tar", [("x.mp4", b"old"), ("y.mp4", b"y"), ("x.mp4", b"new")])
    members = listed(data, "a.tar")
    assert [member.reason for member in members] == ["duplicate_name", None, None]
    assert bytes_of(members[2], data, tmp_path) == b"new"
    assert members[0].content_id != members[2].content_id


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.zst"])
def test_bombs_are_refused_before_they_burst(name, monkeypatch):
    for room in (parts, listing):
        monkeypatch.setattr(room, "RATIO_FLOOR_BYTES", 2**20)
    data = packed(name, {"small.mp4": b"s", "bomb.mp4": bytes(20 * 2**20), "after.mp4": b"a"})
    found = reasons(data, name)
    assert found["small.mp4"] is None
    assert found.get("bomb.mp4", found.get("")) == "archive_bomb"
    assert found.get("after.mp4") is None
    assert ("" in found) == (name != "a.zip")  # a stream cannot be read past its bomb


def test_a_bomb_in_an_archive_in_an_archive_is_refused(monkeypatch):
    for room in (parts, listing):
        monkeypatch.setattr(room, "RATIO_FLOOR_BYTES", 2**20)
    inner = packed("i.tar.gz", {"bomb.mp4": bytes(20 * 2**20)})
    assert reasons(packed("a.zip", {"i.tar.gz": inner, "good.mp4": b"g"}), "a.zip") == {
        "i.tar.gz": "archive_bomb",
        "good.mp4": None,
    }


def test_too_many_members_and_too_many_bytes_are_refused(monkeypatch):
    monkeypatch.setattr(listing, "MAX_MEMBERS", 3)
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        data = packed(name, {f"{number}.mp4": b"x" for number in range(5)})
        assert Counter(reasons(data, name).values()) == {None: 3, "too_many_members": 1}
    monkeypatch.setattr(listing, "MAX_TOTAL_BYTES", 100)
    assert reasons(packed("a.tar", {"a.mp4": bytes(60), "b.mp4": bytes(60)}), "a.tar") == {
        "a.mp4": None,
        "": "too_large",
    }
    monkeypatch.setattr(listing, "MAX_MEMBER_BYTES", 10)
    assert reasons(packed("a.zip", {"a.mp4": bytes(60)}), "a.zip") == {"a.mp4": "too_large"}


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_cut_off_anywhere_ends_with_a_reason_and_keeps_what_is_whole(name, tmp_path):
    files = {f"{number}.mp4": os.urandom(3000) for number in range(4)}
    data = packed(name, files)
    for num_bytes in (0, 1, 100, 600, len(data) // 2, 14_000 if name == "a.tar" else len(data) - 100):
        cut = data[:num_bytes]
        members = listed(cut, name)
        assert any(member.reason in ("truncated_archive", "damaged_archive") for member in members)
        for member in members:
            if member.reason is None:
                assert bytes_of(member, cut, tmp_path) == files[member.name]


def test_flipped_bytes_never_crash_and_never_give_wrong_bytes_of_a_zip(tmp_path):
    files = {f"{number}.mp4": os.urandom(300) for number in range(3)}
    data = packed("a.zip", files)
    for place in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 0x55
        for member in listed(bytes(damaged), "a.zip"):
            if member.reason is None:
                with contextlib.suppress(ArchiveError):
                    assert bytes_of(member, bytes(damaged), tmp_path) in files.values()


def test_a_damaged_header_in_a_tar_is_told_not_passed_over():
    data = bytearray(packed("a.tar", {"0.mp4": b"x", "1.mp4": b"y", "2.mp4": b"z"}))
    data[1024 + 148 : 1024 + 156] = b"notasum!"
    assert reasons(bytes(data), "a.tar") == {"0.mp4": None, "": "damaged_archive"}


def test_headers_that_claim_gigabytes_are_not_read():
    huge = tarfile.TarInfo("x")
    huge.type, huge.size = tarfile.XHDTYPE, 2**33
    data = huge.tobuf(tarfile.GNU_FORMAT) + bytes(2**20)
    assert reasons(data, "a.tar") == {"": "damaged_archive"}
    directory = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 2**25, 100, 0)
    assert reasons(b"PK\x03\x04" + bytes(2**25 + 96) + directory, "a.zip") == {"": "damaged_archive"}


def record(key, value):
    """A record of a pax header."""
    rest = f" {key}={value}\n".encode()
    length = len(rest)
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def tar_with_header(records, *, kind, num_members=3):
    """A tar whose first header is a pax header of these records, for all members (g) or for the first (x)."""
    body = b"".join(record(*each) for each in records)
    header = tarfile.TarInfo("g")
    header.type, header.size = kind, len(body)
    members = b"".join(tarfile.TarInfo(f"{number}.mp4").tobuf(tarfile.USTAR_FORMAT) for number in range(num_members))
    padding = b"\0" * (-len(body) % tarfile.BLOCKSIZE)
    return header.tobuf(tarfile.USTAR_FORMAT) + body + padding + members + b"\0" * 1024


@pytest.mark.parametrize(
    "records",
    [[("path", "a" * 900_000 + ".mp4")], [("path", "a" * 70_000)], [(f"k{number}", "v") for number in range(60_000)]],
)
def test_what_a_tar_says_for_all_its_members_is_bounded(records):
    data = tar_with_header(records, kind=tarfile.XGLTYPE, num_members=2000)
    assert reasons(data, "a.tar") == {"": "headers_too_large"}
    assert reasons(gzip.compress(data), "a.tar.gz") == {"": "headers_too_large"}


def test_a_small_header_for_all_members_is_read():
    data = tar_with_header([("comment", "0123456789abcdef" * 3)], kind=tarfile.XGLTYPE)
    assert reasons(data, "a.tar") == {"0.mp4": None, "1.mp4": None, "2.mp4": None}


@pytest.mark.parametrize("letter", ["a", "ü", "\u20ac"])
def test_a_name_that_is_too_long_is_refused_and_not_kept(letter):
    name = letter * (5000 // len(letter.encode()))
    long = {f"{name}1.mp4": b"x", f"{name}2.mp4": b"y", "short.mp4": b"z"}
    for kind in ("a.zip", "a.tar", "a.tar.gz"):
        found = reasons(packed(kind, long), kind)
        assert Counter(found.values()) == {"name_too_long": 2, None: 1}
        assert found["short.mp4"] is None
        assert max(map(len, found)) < 120
    pax = tar_with_header([("path", "a" * 900_000 + ".mp4")], kind=tarfile.XHDTYPE)
    assert Counter(reasons(pax, "a.tar").values()) == {"name_too_long": 1, None: 2}


def test_names_and_headers_are_bounded_in_all(monkeypatch):
    monkeypatch.setattr(listing, "MAX_NAMES_BYTES", 100)
    for name in ("a.zip", "a.tar"):
        found = reasons(packed(name, {f"{'n' * 40}{number}.mp4": b"x" for number in range(5)}), name)
        assert Counter(found.values()) == {None: 2, "name_too_long": 1}
    monkeypatch.undo()
    monkeypatch.setattr(listing, "MAX_ALL_HEADERS_BYTES", 2000)
    found = reasons(packed("a.tar", {f"{number}.mp4": b"x" for number in range(9)}), "a.tar")
    assert found[""] == "headers_too_large"
    assert found["0.mp4"] is None


@pytest.mark.parametrize("num_copies", [1, 500])
def test_a_zip_whose_members_share_bytes_is_refused(num_copies):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("000.mp4", os.urandom(1000))
        for number in range(num_copies):
            again = copy.copy(archive.filelist[0])
            again.filename = again.orig_filename = f"{number + 1:03d}.mp4"
            archive.filelist.append(again)
    assert reasons(sink.getvalue(), "a.zip") == {"": "overlapping_members"}
    both = packed("b.tar", {"inner.zip": sink.getvalue(), "good.mp4": b"g"})
    assert reasons(both, "b.tar") == {"inner.zip": "overlapping_members", "good.mp4": None}


def test_an_archive_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(listing, "MIN_CPU_SECONDS", -1.0)
    for name in KINDS:
        assert reasons(packed(name, FILES), name) == {"": "too_slow"}


def test_any_failure_of_a_reader_costs_its_archive_alone(monkeypatch):
    for error in (MemoryError("no memory"), RuntimeError("odd"), KeyError("x"), pa.ArrowMemoryError("malloc failed")):
        # Stands for a fault of a library that nobody has met yet.
        monkeypatch.setattr(tarfile.TarFile, "next", lambda _, error=error: (_ for _ in ()).throw(error))
        assert reasons(packed("a.tar", FILES), "a.tar") == {"": "damaged_archive"}
        inner = packed("b.zip", {"a.tar": packed("a.tar", FILES), "x.mp4": b"x"})
        assert reasons(inner, "b.zip") == {"a.tar": "damaged_archive", "x.mp4": None}


def test_an_archive_that_was_replaced_is_told(tmp_path):
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        data = packed(name, {"x.mp4": os.urandom(5000), "y.mp4": os.urandom(5000)})
        other = packed(name, {"z.mp4": os.urandom(7000), "y.mp4": os.urandom(3100)})
        member = listed(data, name)[1]
        other = other.ljust(len(data), b"\0")
        with pytest.raises(ArchiveError) as caught:
            bytes_of(member, other, tmp_path)
        assert caught.value.reason in ("damaged_archive", "truncated_archive")


def test_a_failing_store_is_not_the_archives_fault(tmp_path):
    class Broken(io.BytesIO):
        def read(self, *_):
            raise ConnectionResetError("cut")

    data = packed("a.tar.gz", FILES)
    with pytest.raises(ConnectionResetError):
        list_members(Broken(data), "gz", size_bytes=len(data), content_id="id", is_wanted=lambda _: True)
    member = listed(data, "a.tar.gz")[0]
    reader = MemberReader(lambda *_: Broken(data))
    with pytest.raises(ConnectionResetError):
        reader.copy(member_url("x", len(data), member, content_id=""), tmp_path / "clip", content_id=member.content_id)


# --- in a corpus -----------------------------------------------------------------------------------------------------


@pytest.mark.lengthy
def test_archives_of_a_folder_give_clips_and_the_same_ids_elsewhere(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "loose.mp4").write_bytes(b"loose")
        for name in ("a.zip", "b.tar", "c.tar.gz"):
            (tmp_path / folder / name).write_bytes(
                packed(name, {**FILES, ".hidden.mp4": b"h", "__MACOSX/._x.mp4": b""})
            )
        (tmp_path / folder / "bad.zip").write_bytes(b"PK\x03\x04 cut")
        (tmp_path / folder / "old.rar").write_bytes(b"Rar!")
    corpus = read_corpus(str(tmp_path / "here"))
    members = [f"{name}!{path}" for name in ("a.zip", "b.tar", "c.tar.gz") for path in FILES if path != "notes.txt"]
    assert [clip.path for clip in corpus.clips] == sorted(["bad.zip", "loose.mp4", *members])
    ignored = {item.path: item.reason for item in corpus.ignored}
    assert ignored["a.zip!notes.txt"] == "not a video by its name: .txt"
    assert ignored["c.tar.gz!.hidden.mp4"] == ignored["b.tar!__MACOSX/._x.mp4"]
    assert ignored["old.rar"] == "an archive of a kind that is not read: .rar"
    there = read_corpus(str(tmp_path / "there"))
    assert [clip.clip_id for clip in corpus.clips] == [clip.clip_id for clip in there.clips]


@pytest.mark.lengthy
def test_an_archive_is_labelled_as_if_it_were_unpacked_where_it_lies(tmp_path):
    caer = {"train/Anger/1.avi": b"1", "validation/Happy/2.avi": b"2", "test/Sad/3.avi": b"3"}
    for name, files in {
        "plain/caer.zip": caer,
        "wrapped/caer.tar.gz": {f"CAER/{path}": data for path, data in caer.items()},
        "parts/train/Anger/1.tar": {"1.avi": b"1"},
        "parts/validation/more.zip": {"Happy/2.avi": b"2"},
        "parts/rest.zip": {"test/Sad/3.avi": b"3"},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(packed(name, files))
    for given in ("plain", "plain/caer.zip", "wrapped", "wrapped/caer.tar.gz", "parts"):
        corpus = read_corpus(str(tmp_path / given))
        assert corpus.layout == "caer", given
        assert sorted((clip.split, clip.label) for clip in corpus.clips) == [
            ("test", "Sad"),
            ("train", "Anger"),
            ("validation", "Happy"),
        ]
        assert all("!" in clip.path for clip in corpus.clips)
    (tmp_path / "classes.zip").write_bytes(packed("classes.zip", {"Happy/1.mp4": b"1", "Sad/2.mp4": b"2"}))
    assert [clip.label for clip in read_corpus(str(tmp_path / "classes.zip")).clips] == ["Happy", "Sad"]


def test_a_hostile_member_upsets_no_layout(tmp_path):
    (tmp_path / "caer.zip").write_bytes(packed("caer.zip", {"train/Anger/1.avi": b"1", "../../evil.avi": b"2"}))
    corpus = read_corpus(str(tmp_path))
    assert {clip.path: clip.label for clip in corpus.clips} == {
        "caer.zip!../../evil.avi": None,
        "caer.zip!train/Anger/1.avi": "Anger",
    }


@pytest.mark.lengthy
def test_archives_on_s3_are_read_by_ranges_and_keep_their_local_ids(s3, tmp_path):
    files = {f"{number}.mp4": os.urandom(200_000) for number in range(5)}
    for name in ("a.zip", "b.tar", "c.tar.gz"):
        data = packed(name, files)
        s3.put(f"in/{name}", data)
        (tmp_path / name).write_bytes(data)
    corpus = read_corpus(s3.url("in"))
    local = read_corpus(str(tmp_path))
    assert [(clip.path, clip.clip_id) for clip in corpus.clips] == [(clip.path, clip.clip_id) for clip in local.clips]
    reader = MemberReader(partial(open_archive, contents=LocalContents()))
    for clip in corpus.clips:
        assert archive_of(clip.url).startswith("s3://")
        target = tmp_path / clip.clip_id
        _, seen = requests_of(s3, lambda clip=clip, target=target: reader.copy(
            clip.url, target, content_id=clip.content_id))  # fmt: skip
        assert target.read_bytes() == files[clip.path.split("!")[1]]
        assert len(seen) <= 1, seen
        if clip.path.startswith(("a", "b")):
            assert [method for method, _ in seen] == ["GET"]
            first, last = map(int, seen[0][1].decode().removeprefix("bytes=").split("-"))
            assert last - first < 210_000
    reader.close()


# --- end to end ------------------------------------------------------------------------------------------------------


@pytest.mark.lengthy
@pytest.mark.timeout(300)
def test_preprocess_reads_loose_and_packed_clips_alike(s3, tmp_path):
    make_corpus(tmp_path / "made", clips_per_class=(3, 0, 0), seed=3)
    happy = sorted((tmp_path / "made/train/Happy").iterdir())
    for clip in happy:
        s3.put(f"in/{clip.name}", clip.read_bytes())
    files = {clip.name: clip.read_bytes() for clip in happy}
    s3.put("in/a.zip", packed("a.zip", {**files, "../evil.mp4": b"x", "sub/i.tar.gz": packed("i.tar.gz", files)}))
    s3.put("in/b.tar.gz", packed("b.tar.gz", {**files, "broken.mp4": b"no video"}))
    s3.put("in/cut.tar", packed("cut.tar", files)[:-12_000])
    config = PreprocessConfig(
        input=s3.url("in"),
        output=s3.url("out"),
        detector="dlib-hog",
        frames_per_clip=1,
        clips_per_shard=4,
        no_ray=True,
        page=False,
    )
    run = preprocess(config)
    assert run.audit.holds
    outcomes = {outcome.path: outcome for outcome in run.ledger.snapshot().outcomes()}
    done = {path for path, outcome in outcomes.items() if outcome.state is State.DONE}
    assert set(files) | {f"a.zip!{name}" for name in files} <= done
    assert {f"a.zip!sub/i.tar.gz!{name}" for name in files} | {f"b.tar.gz!{name}" for name in files} <= done
    bad = {path: (outcome.reason, outcome.stage) for path, outcome in outcomes.items() if path not in done}
    assert bad == {
        "a.zip!../evil.mp4": ("unsafe_name", "unpack"),
        "b.tar.gz!broken.mp4": ("not_a_video", "open"),
        f"cut.tar!{happy[-1].name}": ("truncated_archive", "unpack"),
        "cut.tar": ("truncated_archive", "unpack"),
    }
    again = preprocess(config)
    assert again.summary["processed"] == 0
    units = list(Ledger(s3.url("out")).snapshot().units())
    packed_clips = [clip.path for unit in units for clip in unit.clips if clip.path.startswith("b.tar.gz!")]
    for split in {unit.split for unit in units}:
        ordered = [clip.path for unit in units if unit.split == split for clip in unit.clips]
        assert [path for path in ordered if path in packed_clips] == sorted(
            (path for path in ordered if path in packed_clips), key=lambda path: [*files, "broken.mp4"].index(path[9:])
        )
