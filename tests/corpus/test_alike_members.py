"""Members of archives that have the bytes of another clip: one split, no two labels, and other bytes are no copies."""

import hashlib
import posixpath
import random
import zipfile
import zlib
from dataclasses import replace
from functools import partial

import fsspec
import pyarrow as pa
import pytest
from packing import packed, requests_of

from pipeline.corpus.alike import with_bytes_read
from pipeline.corpus.read import read_corpus
from pipeline.corpus.table import split_of
from pipeline.corpus.types import CorpusError
from pipeline.ledger.forgotten import ForgottenRecord, contents_of
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.planning import plan
from pipeline.records.vocabulary import SPLITS
from pipeline.storage.spool import spooled

FRACTIONS = (0.5, 0.25, 0.25)
CLIPS = {f"{number:02d}.avi": f"clip {number} ".encode() * 2500 for number in range(24)}
STORED = partial(packed, method=zipfile.ZIP_STORED)


def below(folder, files=CLIPS):
    return {f"{folder}/{name}": data for name, data in files.items()}


# Each a folder with every clip once or more.
INPUTS = {
    "a zip": {"a.zip": packed("a.zip", CLIPS)},
    "under another name": {"deep/other.ZIP": packed("a.zip", CLIPS)},
    "a copied zip": {"a.zip": packed("a.zip", CLIPS), "b.zip": packed("a.zip", CLIPS)},
    "twice in one zip": {"a.zip": packed("a.zip", below("x") | below("y"))},
    "twice in one tar": {"a.tar": packed("a.tar", below("x") | below("y"))},
    "packed in two ways": {"a.zip": packed("a.zip", CLIPS), "b.zip": STORED("b.zip", CLIPS)},
    "made again, a folder renamed": {"a.zip": packed("a.zip", below("renamed"))},
    "a zip and a tar": {"a.zip": packed("a.zip", CLIPS), "b.tar": packed("b.tar", below("x"))},
    "a zip and files beside it": {"a.zip": packed("a.zip", CLIPS), **below("x")},
    "a tar and files beside it": {"a.tar": packed("a.tar", CLIPS), **below("x")},
    "compressed tars and a zip": {
        "a.tgz": packed("a.tgz", CLIPS),
        "b.tar.zst": packed("b.tar.zst", CLIPS),
        "c.zip": packed("c.zip", CLIPS),
    },
    "archives in archives": {
        "a.zip": packed("a.zip", {"b.tar": packed("b.tar", CLIPS)}),
        "c.tar": packed("c.tar", {"d.zip": packed("d.zip", CLIPS)}),
        "e.tgz": packed("e.tgz", {"f.tar": packed("f.tar", CLIPS), "g.zip": packed("g.zip", CLIPS)}),
    },
    "unpacked": below("x"),
}


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def put(s3, folder, files):
    for name, data in files.items():
        s3.put(f"{folder}/{name}", data)
    return s3.url(folder)


def splits_by_name(corpus):
    """The splits in which the clips of each name lie."""
    found = {}
    for clip in corpus.clips:
        found.setdefault(posixpath.basename(clip.path.split("!")[-1]), set()).add(clip.split)
    return found


BY_BYTES = {
    name: {split_of(hashlib.md5(data, usedforsecurity=False).hexdigest(), FRACTIONS)} for name, data in CLIPS.items()
}


@pytest.mark.parametrize("name", INPUTS)
def test_a_split_follows_from_the_bytes_however_they_are_packed_on_a_disk(tmp_path, name):
    corpus = read_corpus(write(tmp_path, INPUTS[name]), split_fractions=FRACTIONS)
    assert splits_by_name(corpus) == BY_BYTES
    assert set().union(*BY_BYTES.values()) == set(SPLITS)
    # Ids are not of the bytes: outputs of before are resumed.
    without = read_corpus(str(tmp_path), split_fractions=None)
    assert [clip.clip_id for clip in without.clips] == [clip.clip_id for clip in corpus.clips]
    assert [clip.content_id for clip in without.clips] == [clip.content_id for clip in corpus.clips]


@pytest.mark.lengthy
def test_copies_lie_in_one_split_however_they_are_packed_in_a_store(s3):
    found = {
        name: splits_by_name(read_corpus(put(s3, name.replace(" ", "-"), files), split_fractions=FRACTIONS))
        for name, files in INPUTS.items()
    }
    apart = {name: sum(len(split) > 1 for split in splits.values()) for name, splits in found.items()}
    assert apart == dict.fromkeys(INPUTS, 0)
    # By the CRC-32, which a zip has wherever it lies and however it is packed.
    for name in ("under another name", "a copied zip", "twice in one zip", "made again, a folder renamed"):
        assert found[name] == found["a zip"]
    # By the MD5 where some clip's is known without reading it.
    for name in ("a zip and files beside it", "a tar and files beside it", "compressed tars and a zip", "unpacked"):
        assert found[name] == BY_BYTES


def large(number):
    return random.Random(number).randbytes(100_000)


@pytest.mark.lengthy
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_of_archives_in_a_store_only_what_may_be_a_copy_is_read(s3, kind):
    clips = {f"{number}.avi": large(number) for number in range(20)}  # all of one size
    first, second = ({f"{start}{name}": data for name, data in clips.items()} for start in "ab")
    second = {name: bytes(reversed(data)) for name, data in second.items()} | {"b7.avi": clips["7.avi"]}
    url = put(s3, "in", {f"a.{kind}": packed(f"a.{kind}", first), f"b.{kind}": packed(f"b.{kind}", second)})

    def num_bytes(**options):
        corpus, requests = requests_of(s3, partial(read_corpus, url, **options))
        ranges = [asked.decode().removeprefix("bytes=").split("-") for _, asked in requests if asked]
        return corpus, sum(int(last) - int(start) + 1 for start, last in ranges)

    listed, num_listed = num_bytes(split_fractions=None)
    corpus, num_read = num_bytes()
    assert {clip.path[6:]: clip.bytes_id for clip in corpus.clips if len(clip.bytes_id or "") == 32} == dict.fromkeys(
        ("a7.avi", "b7.avi"), hashlib.md5(clips["7.avi"], usedforsecurity=False).hexdigest()
    )
    assert num_read <= num_listed + 2 * (100_000 + 2**13)  # two members of them
    assert [clip.clip_id for clip in corpus.clips] == [clip.clip_id for clip in listed.clips]


def patched(data, crc):
    """The data with four bytes more, so that it has this CRC-32."""
    # CRC-32 of four bytes after a state is linear in them: Gauss over 32 columns.
    start = zlib.crc32(data + bytes(4))
    columns = [(zlib.crc32(data + (1 << bit).to_bytes(4, "little")) ^ start, 1 << bit) for bit in range(32)]
    left, found = crc ^ start, 0
    for bit in reversed(range(32)):
        pivot = next(each for each in columns if each[0] >> bit & 1)
        columns.remove(pivot)
        columns = [(v ^ pivot[0], w ^ pivot[1]) if v >> bit & 1 else (v, w) for v, w in columns]
        if left >> bit & 1:
            left, found = left ^ pivot[0], found ^ pivot[1]
    return data + found.to_bytes(4, "little")


ONE = b"the same size, and other bytes"
OTHER = patched(b"a CRC-32 that is the same.", zlib.crc32(ONE))


def two_labels(one, other):
    """Inputs in which two clips with these bytes lie under two labels, and two others under one."""
    rest = {"Happy/2.avi": b"two", "Happy/3.avi": b"two", "Fear/4.avi": b"four"}
    return {
        "one zip": {"a.zip": packed("a.zip", {"Sad/0.avi": one, "Happy/1.avi": other, **rest})},
        "one tar": {"a.tar": packed("a.tar", {"Sad/0.avi": one, "Happy/1.avi": other, **rest})},
        "two archives": {
            "a.zip": packed("a.zip", {"Sad/0.avi": one}),
            "b.tar": packed("b.tar", {"Happy/1.avi": other, **rest}),
        },
        "an archive and files": {"Sad.zip": packed("a.zip", {"Sad/0.avi": one}), "Happy/1.avi": other, **rest},
        "an archive in a zip": {
            "a.zip": packed("a.zip", {"b.zip": packed("b.zip", {"Sad/0.avi": one}), "Happy/1.avi": other, **rest}),
        },
    }


def check_two_labels(url):
    with pytest.raises(CorpusError, match=r"2 clips have the bytes .*Happy/1.avi.*Sad/0.avi|Sad/0.avi.*Happy/1.avi"):
        read_corpus(url, label_conflicts="refuse")
    corpus = read_corpus(url, label_conflicts="leave-out")
    assert sorted(clip.path[-5:] for clip in corpus.clips) == ["2.avi", "3.avi", "4.avi"]
    assert sorted(item.path[-5:] for item in corpus.ignored) == ["0.avi", "1.avi"]
    assert "2 left out, whose bytes lie under two labels" in corpus.description


def check_no_copies(url):
    corpus = read_corpus(url, label_conflicts="refuse", split_fractions=FRACTIONS)
    assert len(corpus.clips) == 5


@pytest.mark.parametrize("name", two_labels(ONE, ONE))
def test_the_same_bytes_under_two_labels_are_found_in_archives_on_a_disk(tmp_path, name):
    assert (len(ONE), zlib.crc32(ONE)) == (len(OTHER), zlib.crc32(OTHER))
    assert ONE != OTHER
    check_two_labels(write(tmp_path / "in", two_labels(ONE, ONE)[name]))
    check_no_copies(write(tmp_path / "other", two_labels(ONE, OTHER)[name]))


@pytest.mark.lengthy
def test_the_same_bytes_under_two_labels_are_found_in_archives_in_a_store(s3):
    for number, (name, files) in enumerate(two_labels(ONE, ONE).items()):
        check_two_labels(put(s3, f"same{number}", files))
        check_no_copies(put(s3, f"other{number}", two_labels(ONE, OTHER)[name]))


def test_what_cannot_be_read_is_listed_as_before(tmp_path):
    data = bytearray(STORED("a.zip", {"0.avi": b"good bytes", "1.avi": b"others"}))
    data[data.index(b"good")] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    corpus = read_corpus(str(tmp_path))
    assert (corpus.clips[0].path, (corpus.clips[0].bytes_id or "")[:4]) == ("a.zip!0.avi", "crc ")
    assert [clip.clip_id for clip in corpus.clips] == [
        clip.clip_id for clip in read_corpus(str(tmp_path), split_fractions=None).clips
    ]
    assert len(corpus.clips[1].bytes_id or "") == 32


def test_many_small_members_in_any_order_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(3000):
            archive.writestr(f"{number:04d}.avi", random.Random(number // 2 * 2).randbytes(300))
        random.Random(0).shuffle(archive.filelist)
    ids = [clip.bytes_id for clip in read_corpus(str(tmp_path)).clips]
    data = [random.Random(number // 2 * 2).randbytes(300) for number in range(3000)]
    assert ids == [hashlib.md5(each, usedforsecurity=False).hexdigest() for each in data]


def test_archives_of_one_form_in_a_store_that_tells_no_content_are_no_copies():
    files = {"Sad/0.avi": b"a" * 50_000, "Happy/1.avi": b"b" * 100}
    store = fsspec.filesystem("memory")
    for name, data in {"a": files, "b": {"Sad/0.avi": b"c" * 50_000, "Happy/1.avi": b"d" * 100}, "c": files}.items():
        store.pipe(f"/in/{name}.tar", packed("x.tar", data))
    try:
        corpus = read_corpus("memory://in", split_fractions=FRACTIONS)
        store.pipe("/in/c.tar", packed("x.tar", {"Sad/1.avi": files["Happy/1.avi"], "Sad/2.avi": b"e" * 50_000}))
        conflicts = read_corpus("memory://in", label_conflicts="leave-out").ignored
    finally:
        store.rm("/in", recursive=True)
    first, second = corpus.clips[1], corpus.clips[3]
    assert (first.path, second.path) == ("a.tar!Sad/0.avi", "b.tar!Sad/0.avi")
    assert first.content_id == second.content_id  # of their places alone
    assert contents_of([first]).isdisjoint(contents_of([second]))
    assert {clip.path: len(clip.bytes_id or "") == 32 for clip in corpus.clips if "Sad" in clip.path} == {
        "a.tar!Sad/0.avi": True,
        "b.tar!Sad/0.avi": False,
        "c.tar!Sad/0.avi": True,
    }
    assert [item.path for item in conflicts] == ["a.tar!Happy/1.avi", "c.tar!Sad/1.avi"]


@pytest.mark.lengthy
def test_an_object_that_was_uploaded_in_parts_is_known_in_archives(s3):
    clip, others = random.Random(1).randbytes(6 * 2**20), random.Random(2).randbytes(6 * 2**20)
    for name, data in {"Sad/0.avi": clip, "Fear/1.avi": others, "Fear/2.avi": b"of another size"}.items():
        with s3.fs.open(f"{s3.bucket}/in/{name}", "wb", block_size=5 * 2**20) as sink:
            sink.write(data)
    for name in ("a.zip", "b.tar", "c.tar.gz"):
        s3.put(f"in/{name}", packed(name, {"Sad/copy.avi": clip, "Fear/3.avi": b"x"}))
    for fractions in ((0.5, 0.25, 0.25), (0.3, 0.3, 0.4), (0.2, 0.2, 0.6)):
        corpus = read_corpus(s3.url("in"), split_fractions=fractions)
        copies = [clip for clip in corpus.clips if "Sad" in clip.path]
        assert len(copies) == 4
        assert [len(clip.content_id) for clip in copies if "!" not in clip.path] == [34]
        assert len({clip.split for clip in copies}) == 1
    assert [clip.bytes_id for clip in corpus.clips if clip.path == "Fear/2.avi"] == [None]
    s3.put("in/d.zip", packed("d.zip", {"Happy/other.avi": clip}))
    conflicts = read_corpus(s3.url("in"), label_conflicts="leave-out").ignored
    assert len(conflicts) == 5


@pytest.mark.lengthy
def test_an_archive_that_was_overwritten_since_it_was_listed_gives_no_bytes(s3):
    url = put(s3, "in", {"a.zip": packed("a.zip", {"0.avi": ONE}), "b.zip": packed("b.zip", {"x/1.avi": ONE})})
    rows = read_corpus(url, split_fractions=None).rows
    s3.put("in/a.zip", packed("a.zip", {"0.avi": OTHER}))
    table = pa.Table.from_batches(with_bytes_read(rows))
    found = dict(zip(table["path"].to_pylist(), table["bytes_id"].to_pylist(), strict=True))
    md5 = hashlib.md5(ONE, usedforsecurity=False).hexdigest()
    assert found == {"a.zip!0.avi": f"crc {zlib.crc32(ONE)}", "b.zip!x/1.avi": md5}


# --- The plan keeps what it decided ----------------------------------------------------------------------------------


def planned(output, corpus):
    ledger = Ledger(str(output))
    snapshot = ledger.snapshot()
    snapshot.give(corpus.table)
    snapshot.recognise()
    changes = plan(ledger, snapshot, kind="examples", config={}, versions={}, clips_per_shard=4)
    clips = [clip for unit in ledger.snapshot().units() for clip in unit.clips]
    return changes, clips


def with_column(corpus, name, value):
    place = corpus.table.schema.get_field_index(name)
    values = pa.array([value] * corpus.num_clips, pa.string())
    return replace(corpus, rows=spooled(corpus.table.set_column(place, corpus.table.schema.field(place), values)))


# What lies there the next time; with whether the plan of a version that knew no bytes of members tells it, too.
LATER = {
    "a copy beside it": (INPUTS["a zip"] | below("x"), True),
    "another archive beside it": (INPUTS["a zip"] | {"b.tar": packed("b.tar", below("x"))}, True),
    "under another name": (INPUTS["under another name"], True),
    "made again, a folder renamed": (INPUTS["made again, a folder renamed"], True),
    "packed otherwise": ({"b.zip": STORED("b.zip", CLIPS)}, True),
    "unpacked and removed": (below("x"), False),
    "in a tar": ({"a.tar": packed("a.tar", CLIPS)}, False),
}


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("name", LATER)
def test_a_copy_takes_the_split_that_was_planned_whatever_rule_gave_it(tmp_path, name, is_old):
    first = read_corpus(write(tmp_path / "first", INPUTS["a zip"]))
    first = (
        with_column(with_column(first, "split", "test"), "bytes_id", None)
        if is_old
        else with_column(first, "split", "test")
    )
    planned(tmp_path / "out", first)
    files, is_told = LATER[name]
    today = read_corpus(write(tmp_path / "today", files), split_fractions=(1.0, 0.0, 0.0))
    assert {clip.split for clip in today.clips} == {"train"}
    changes, clips = planned(tmp_path / "out", today)
    assert not changes.relabelled
    assert not changes.replaced
    new = set(today.table["clip_id"].to_pylist()) - set(first.table["clip_id"].to_pylist())
    assert changes.num_new == len(new) > 0
    now = {clip.clip_id: clip.split for clip in clips}
    assert {now[clip_id] for clip_id in new} == {"test" if is_told or not is_old else "train"}


def test_a_renamed_tar_of_an_older_plan_moves_none(tmp_path):
    first = with_column(read_corpus(write(tmp_path / "first", {"a.tar": packed("a.tar", CLIPS)})), "split", "test")
    planned(tmp_path / "out", with_column(first, "bytes_id", None))
    today = read_corpus(write(tmp_path / "today", {"b.tar": packed("a.tar", CLIPS)}), split_fractions=(1.0, 0.0, 0.0))
    _, clips = planned(tmp_path / "out", today)
    assert {clip.split for clip in clips} == {"test"}


def test_the_plan_takes_other_bytes_with_the_crc_of_planned_ones_for_no_copy(tmp_path):
    first = read_corpus(write(tmp_path / "first", {"a.zip": packed("a.zip", {"0.avi": ONE})}))
    planned(tmp_path / "out", with_column(first, "split", "test"))
    files = {"b.zip": packed("b.zip", {"0.avi": OTHER, "1.avi": ONE})}
    today = read_corpus(write(tmp_path / "today", files), split_fractions=(1.0, 0.0, 0.0))
    _, clips = planned(tmp_path / "out", today)
    assert {clip.path: clip.split for clip in clips} == {
        "a.zip!0.avi": "test",
        "b.zip!0.avi": "train",
        "b.zip!1.avi": "test",
    }


def test_the_same_listing_of_an_older_plan_changes_nothing(tmp_path):
    first = read_corpus(write(tmp_path / "in", INPUTS["a zip and a tar"]))
    planned(tmp_path / "out", with_column(with_column(first, "split", "test"), "bytes_id", None))
    changes, clips = planned(tmp_path / "out", read_corpus(str(tmp_path / "in")))
    assert (changes.num_new, changes.gone.count, changes.relabelled.count) == (0, 0, 0)
    assert {clip.split for clip in clips} == {"test"}


def test_a_clip_that_was_forgotten_is_known_in_an_archive(tmp_path):
    name, data = "00.avi", CLIPS["00.avi"]
    loose = read_corpus(write(tmp_path / "loose", {name: data}))
    record = ForgottenRecord(contents=contents_of(loose.clips))
    packed_again = read_corpus(write(tmp_path / "in", {"a.zip": packed("a.zip", CLIPS)}))
    assert [clip.path for clip in packed_again.clips if record.holds(clip)] == [f"a.zip!{name}"]
    record = ForgottenRecord(contents=contents_of(packed_again.clips[:1]))
    assert [record.holds(clip) for clip in loose.clips] == [True]
