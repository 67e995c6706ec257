import errno
import functools
import hashlib
import http.server
import os
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow as pa
import pytest
from fault_proxy import FaultProxy
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID

from pipeline.corpus.listing import shown_url
from pipeline.corpus.read import read_corpus
from pipeline.corpus.table import SplitRules, corpus_of, split_of
from pipeline.corpus.types import Corpus, CorpusError, ListedFile
from pipeline.records.clips import CLIP_SCHEMA, clip_table
from pipeline.records.columns import table_of
from pipeline.records.vocabulary import SPLITS
from pipeline.storage.remote import listed, local_path, open_filesystem
from pipeline.storage.spool import BatchSpool

ODD_NAMES = (
    "a name with  spaces.mp4",
    "-leading dash.mp4",
    "quote'\"$(x)`.mp4",
    "new\nline.mp4",
    "видео é 漢字.MP4",
    "%03d.mp4",
    "%41.mp4",
    "[brackets]*?.mp4",
    "a::b.mp4",
    "#hash?query=1&x.mp4",
    "back\\slash.mp4",
    "l" * 251 + ".mp4",
)


def write(root: Path, path: str, content: bytes | None = None) -> Path:
    """A file whose content is its path, unless given."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(path.encode(errors="surrogateescape") if content is None else content)
    return file


def write_all(root: Path, *paths: str) -> Path:
    for path in paths:
        write(root, path)
    return root


def paths_of(corpus: Corpus) -> list[str]:
    return [clip.path for clip in corpus.clips]


def reasons_of(corpus: Corpus) -> dict[str, str]:
    return {item.path: item.reason for item in corpus.ignored}


def labels_of(corpus: Corpus) -> dict[str, str | None]:
    return {clip.path: clip.label for clip in corpus.clips}


def splits_of(corpus: Corpus) -> dict[str, str | None]:
    return {clip.path: clip.split for clip in corpus.clips}


# --- folders, files and globs ----------------------------------------------------------------------------------------


def test_every_file_of_a_folder_is_a_clip_or_ignored_with_a_reason(tmp_path: Path) -> None:
    write_all(tmp_path, "b.MP4", "deep/er/a.Avi", "MANIFEST.tsv", "x.csv", "notes.txt", "poster.png", "clips.7z")
    write_all(tmp_path, ".DS_Store", "._b.mp4", ".cache/c.mp4", "thing.xyz")
    corpus = read_corpus(str(tmp_path))
    assert corpus.layout == "folder"
    assert corpus.root == str(tmp_path)
    assert paths_of(corpus) == ["b.MP4", "deep/er/a.Avi"]
    assert reasons_of(corpus) == {
        ".DS_Store": "hidden: its name begins with a dot",
        "._b.mp4": "hidden: its name begins with a dot",
        ".cache/": "hidden: its name begins with a dot",
        "MANIFEST.tsv": "not a video by its name: .tsv",
        "clips.7z": "an archive of a kind that is not read: .7z",
        "notes.txt": "not a video by its name: .txt",
        "poster.png": "not a video by its name: .png",
        "thing.xyz": "not a video: no known container in its first bytes",
        "x.csv": "not a video by its name: .csv",
    }
    assert corpus.description == "folder: 2 clips in {}; no labels; split by hash; 9 ignored".format(
        ", ".join(split for split in SPLITS if split in splits_of(corpus).values())
    )


def test_a_clip_carries_size_and_md5_and_an_absolute_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "in/a.mp4", b"abc")
    monkeypatch.chdir(tmp_path)
    (clip,) = read_corpus("in").clips
    assert clip.size_bytes == 3
    assert clip.content_id == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321
    assert clip.url == str(tmp_path / "in/a.mp4")
    # Written down, so that no later version gives other ids to a corpus that is already preprocessed.
    assert clip.clip_id == hashlib.sha256(f'["a.mp4", 3, "{clip.content_id}", null, null]'.encode()).hexdigest()[:20]
    assert clip.clip_id == "0c38e5ecb44b7b1f9b16"


def test_ids_do_not_depend_on_where_the_corpus_lies(tmp_path: Path) -> None:
    here = write_all(tmp_path / "here", "a.mp4", "b/c.mkv")
    there = write_all(tmp_path / "there/deeper", "a.mp4", "b/c.mkv")
    first, second = read_corpus(str(here)), read_corpus(f"file://{there}")
    assert [clip.clip_id for clip in first.clips] == [clip.clip_id for clip in second.clips]
    assert splits_of(first) == splits_of(second)


def test_the_id_changes_with_the_content_and_with_the_name(tmp_path: Path) -> None:
    write(tmp_path, "one/a.mp4", b"1")
    write(tmp_path, "two/a.mp4", b"2")
    write(tmp_path, "three/b.mp4", b"1")
    ids = {clip.clip_id for name in ("one", "two", "three") for clip in read_corpus(str(tmp_path / name)).clips}
    assert len(ids) == 3


def test_the_same_content_under_two_names_is_two_clips(tmp_path: Path) -> None:
    write(tmp_path, "a.mp4", b"same")
    write(tmp_path, "b.mp4", b"same")
    first, second = read_corpus(str(tmp_path)).clips
    assert first.content_id == second.content_id
    assert first.clip_id != second.clip_id


def test_a_single_file_has_the_id_it_has_in_its_folder(tmp_path: Path) -> None:
    write_all(tmp_path, "a.mp4", "b.mp4", ".hidden.mp4")
    assert read_corpus(str(tmp_path / "b.mp4")).clips == read_corpus(str(tmp_path)).clips[1:]
    assert paths_of(read_corpus(str(tmp_path / ".hidden.mp4"))) == [".hidden.mp4"]


def test_a_glob_takes_what_matches_and_keeps_the_ids_of_the_folder(tmp_path: Path) -> None:
    write_all(tmp_path, "a1.mp4", "a2.mkv", "b1.mp4", "sub/a3.mp4", "sub/deep/a4.mp4", "._a5.mp4", "sub/.git/x")
    whole = {clip.path: clip for clip in read_corpus(str(tmp_path)).clips}
    corpus = read_corpus(f"{tmp_path}/[a_.]*.mp4")
    assert paths_of(corpus) == ["a1.mp4"]
    assert list(reasons_of(corpus)) == ["._a5.mp4"]
    assert corpus.clips[0] == whole["a1.mp4"]
    assert paths_of(read_corpus(f"{tmp_path}/*/a?.mp4")) == ["sub/a3.mp4"]
    assert paths_of(read_corpus(f"{tmp_path}/**/a*.mp4")) == ["a1.mp4", "sub/a3.mp4", "sub/deep/a4.mp4"]
    with pytest.raises(CorpusError, match="alone between slashes"):
        read_corpus(f"{tmp_path}/x**.mp4")


def test_an_input_whose_name_looks_like_a_glob_is_taken_as_it_is(tmp_path: Path) -> None:
    write_all(tmp_path, "[set] *1/a.mp4", "s/b.mp4")
    assert paths_of(read_corpus(str(tmp_path / "[set] *1"))) == ["a.mp4"]


def test_odd_names_stay_whole_and_openable(tmp_path: Path) -> None:
    write_all(tmp_path, *ODD_NAMES)
    corpus = read_corpus(str(tmp_path))
    assert paths_of(corpus) == sorted(ODD_NAMES)
    for clip in corpus.clips:
        path = local_path(clip.url)
        assert path is not None
        assert Path(path).read_bytes() == clip.path.encode()


def test_a_name_with_undecodable_bytes_is_shown_and_can_be_opened(tmp_path: Path) -> None:
    try:
        write(tmp_path, os.fsdecode(b"bad \xff%41.mp4"), b"bytes")
    except OSError as error:
        if error.errno == errno.EILSEQ:
            pytest.skip("this file system takes valid UTF-8 only")
        raise
    write(tmp_path, "bad \\xff%41.mp4", b"bytes")  # how the other one is shown
    corpus = read_corpus(str(tmp_path))
    assert paths_of(corpus) == ["bad \\xff%41.mp4"] * 2
    assert len({clip.clip_id for clip in corpus.clips}) == 2
    assert table_of(corpus.clips, CLIP_SCHEMA).num_rows == 2
    for clip in corpus.clips:
        path = local_path(clip.url)
        assert path is not None
        assert Path(path).read_bytes() == b"bytes"


def test_a_file_url_may_be_plain_or_percent_encoded(tmp_path: Path) -> None:
    write(tmp_path, "a b/c.mp4")
    assert paths_of(read_corpus(f"file://{tmp_path}/a b")) == ["c.mp4"]
    assert paths_of(read_corpus(f"file://{tmp_path}/a%20b")) == ["c.mp4"]


def test_the_first_bytes_tell_where_the_name_does_not(tmp_path: Path, nasty_dir: Path) -> None:
    write(tmp_path, "no_extension", (nasty_dir / "syn_no_extension").read_bytes())
    for name in ("syn_trunc30.avi", "torchcodec_av1_video.mkv", "syn_interlaced.mpg", "syn_no_key_at_start.ts"):
        write(tmp_path, f"{name}.thing", (nasty_dir / name).read_bytes())
    for name in ("syn_wmv2.wmv", "syn_h264.flv", "decord_rot90.mov", "moviepy_bbb.webm"):
        write(tmp_path, name.replace(".", "_"), (nasty_dir / name).read_bytes())
    write(tmp_path, "playlist", (nasty_dir / "playlist_to_file_named.mp4").read_bytes())
    corpus = read_corpus(str(tmp_path))
    assert len(corpus.clips) == 9
    assert reasons_of(corpus) == {"playlist": "not a video: no known container in its first bytes"}


@pytest.mark.parametrize(
    ("start", "is_video"),
    [
        (b"\0\0\0\x20ftypisom", True),
        (b"RIFF\0\0\0\0AVI LIST", True),
        (b"RIFF\0\0\0\0WAVEfmt ", False),
        (b"\x1a\x45\xdf\xa3", True),
        (b"GIF89a", True),
        (b"\x89PNG\r\n\x1a\n", False),
        ((b"\x47" + bytes(187)) * 4, True),
        ((bytes(4) + b"\x47" + bytes(187)) * 4, True),
        ((b"\x47" + bytes(203)) * 4, True),
        (b"\0\0\0\x18stypmsdh", True),
        (b"YUV4MPEG2 W160 H96 F25:1\n", True),
        (b"DKIF\0\0\x20\0VP80", True),
        (b".RMF\0\0\0\x12", True),
        (b"\0\0\0\x01\x67\x64\0\x1e", True),
        (b"\0\0\0\x01\x40\x01\x0c\x01", True),
        (b"nut/multimedia container\0", True),
        (b"\0\0\0\x1cftypavif", False),
        (b"G" + bytes(400), False),
        (b"G", False),
        (b"#EXTM3U\n", False),
        (b"", False),
    ],
)
def test_a_nameless_file_is_a_clip_if_it_starts_like_a_video(tmp_path: Path, start: bytes, is_video: bool) -> None:
    write_all(tmp_path, "a.mp4")
    write(tmp_path, "nameless", start)
    assert ("nameless" in paths_of(read_corpus(str(tmp_path)))) is is_video


def test_an_empty_file_named_as_a_video_is_a_clip(tmp_path: Path) -> None:
    write(tmp_path, "empty.mp4", b"")
    (clip,) = read_corpus(str(tmp_path)).clips
    assert (clip.size_bytes, clip.content_id) == (0, hashlib.md5(b"", usedforsecurity=False).hexdigest())


def test_what_is_not_a_regular_file_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(tmp_path, "a.mp4")
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    (tmp_path / "broken.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "itself.mp4").symlink_to("itself.mp4")
    monkeypatch.chdir(tmp_path)  # a socket's path may have 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.mp4")
        corpus = read_corpus(str(tmp_path))
    assert paths_of(corpus) == ["a.mp4"]
    reasons = reasons_of(corpus)
    assert {path for path, reason in reasons.items() if reason.startswith("not a regular file")} == {
        "fifo.mp4",
        "device.mp4",
        "socket.mp4",
    }
    assert {path for path, reason in reasons.items() if reason.startswith("a link that leads nowhere")} == {
        "broken.mp4",
        "itself.mp4",
    }
    with pytest.raises(CorpusError, match="neither a folder nor a regular file"):
        read_corpus(str(tmp_path / "fifo.mp4"))


def test_linked_folders_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    root = write_all(tmp_path / "root", "z/real.mp4")
    write_all(tmp_path / "elsewhere", "far.mp4", "inner/deep.mp4")
    (root / "a_link_inside").symlink_to("z")
    (root / "b_up").symlink_to("..")
    (root / "c_self").symlink_to(".")
    (root / "z" / "loop").symlink_to("..")
    (root / "d_elsewhere").symlink_to("../elsewhere")
    (root / "e_again").symlink_to("../elsewhere")
    (root / "file_link.mp4").symlink_to("z/real.mp4")
    corpus = read_corpus(str(root), follow_links=True)
    assert paths_of(corpus) == ["d_elsewhere/far.mp4", "d_elsewhere/inner/deep.mp4", "file_link.mp4", "z/real.mp4"]
    assert reasons_of(corpus) == {
        "a_link_inside/": "a link to a folder already read: z",
        "b_up/": "a link to a folder already read: the input's own parent",
        "c_self/": "a link to a folder already read: the input itself",
        "e_again/": "a link to a folder already read: d_elsewhere",
        "z/loop/": "a link to a folder already read: the input itself",
    }


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that even root cannot read")
def test_an_unreadable_file_stays_a_clip(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to("/proc/self/mem")  # a regular file; reading it at 0 fails with EIO
    (tmp_path / "nameless").symlink_to("/proc/self/mem")
    corpus = read_corpus(str(tmp_path), follow_links=True)
    (clip,) = corpus.clips
    assert (clip.path, clip.content_id) == ("a.mp4", "unreadable")


def test_a_folder_that_may_not_be_listed_is_told(tmp_path: Path) -> None:
    write_all(tmp_path, "a.mp4", "locked/b.mp4")
    (tmp_path / "locked").chmod(0)
    if os.access(tmp_path / "locked", os.R_OK):
        pytest.skip("this user may read all")
    try:
        corpus = read_corpus(f"{tmp_path}/**")
    finally:
        (tmp_path / "locked").chmod(0o700)
    assert paths_of(corpus) == ["a.mp4"]
    assert reasons_of(corpus) == {"locked/": "a folder that cannot be listed: Permission denied"}


def test_the_order_is_decided_by_the_path(tmp_path: Path) -> None:
    write_all(tmp_path, "b.mp4", "a/z.mp4", "a.mp4", "B.mp4")
    assert paths_of(read_corpus(str(tmp_path))) == ["B.mp4", "a.mp4", "a/z.mp4", "b.mp4"]


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        ((), "nowhere", "input .*nowhere does not exist; check the path"),
        ((), ".", r"holds no video \(nothing is there\)"),
        ((), "*.mp4", r"holds no video \(nothing is there\)"),
        (("a.txt", "b.txt", ".c"), ".", r"holds no video \(2 × not a video by its name: .txt; 1 × hidden"),
        (("a.png",), ".", "images are read in the CAER-S layout only"),
        (("a.txt",), "a.txt", "not a video by its name"),
    ],
)
def test_an_input_without_clips_is_an_error_with_a_cure(
    tmp_path: Path, make: tuple[str, ...], given: str, message: str
) -> None:
    write_all(tmp_path, *make)
    with pytest.raises(CorpusError, match=message):
        read_corpus(f"{tmp_path}/{given}")


def test_wrong_use_is_named() -> None:
    with pytest.raises(CorpusError, match="layout 'imagenet' is unknown; choose one of auto, caer"):
        read_corpus(".", layout="imagenet")
    with pytest.raises(CorpusError, match="not three shares"):
        read_corpus(".", split_fractions=(0.5, 0.5))
    with pytest.raises(CorpusError, match="Protocol not known: foo"):
        read_corpus("foo://bucket/clips")
    with pytest.raises(CorpusError, match="the input is empty"):
        read_corpus("")


# --- splits by hash --------------------------------------------------------------------------------------------------


def test_the_hash_split_has_the_shares_asked_for() -> None:
    counts = Counter(split_of(f"{number:020x}", (0.7, 0.1, 0.2)) for number in range(20_000))
    assert counts["train"] == pytest.approx(14_000, abs=250)
    assert counts["validation"] == pytest.approx(2_000, abs=150)
    assert counts["test"] == pytest.approx(4_000, abs=200)


def test_the_hash_split_is_fixed_for_all_time() -> None:
    splits = [split_of(f"{number:020x}", (0.4, 0.3, 0.3)) for number in range(6)]
    assert splits == ["train", "validation", "validation", "test", "validation", "validation"]


def test_a_share_of_zero_stays_empty() -> None:
    assert {split_of(f"{number:020x}", (0.8, 0.2, 0.0)) for number in range(2000)} == {"train", "validation"}
    assert {split_of(f"{number:020x}", (0.1 + 0.2, 0.0, 0.7)) for number in range(2000)} == {"train", "test"}


@pytest.mark.parametrize("fractions", [(0.7, 0.1), (0.7, 0.1, 0.1), (1.1, -0.1, 0.0), (float("nan"), 0.5, 0.5)])
def test_shares_that_do_not_sum_to_one_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(CorpusError, match="sum to 1"):
        split_of("0" * 20, fractions)


def test_added_clips_move_no_other(tmp_path: Path) -> None:
    write_all(tmp_path, *(f"{number}.mp4" for number in range(30)))
    before = splits_of(read_corpus(str(tmp_path)))
    write_all(tmp_path, *(f"{number}.mp4" for number in range(30, 60)))
    after = splits_of(read_corpus(str(tmp_path)))
    assert before.items() <= after.items()


def test_without_fractions_clips_have_no_split(tmp_path: Path) -> None:
    write_all(tmp_path, "a.mp4")
    corpus = read_corpus(str(tmp_path), split_fractions=None)
    assert splits_of(corpus) == {"a.mp4": None}
    assert corpus.description == "folder: 1 clip; no labels"


# --- CAER and CAER-S -------------------------------------------------------------------------------------------------

CLASSES = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")


def test_caer_gives_labels_and_splits(tmp_path: Path) -> None:
    write_all(tmp_path, *(f"{split}/{label}/0001.avi" for split in SPLITS for label in CLASSES), "readme.txt")
    corpus = read_corpus(str(tmp_path))
    assert corpus.layout == "caer"
    assert corpus.description == "CAER layout: 21 clips in train, validation, test; 7 classes; 1 ignored"
    assert all(clip.path == f"{clip.split}/{clip.label}/0001.avi" for clip in corpus.clips)
    assert read_corpus(str(tmp_path), layout="caer") == corpus
    assert read_corpus(f"{tmp_path}/*/Fear/*").clips == tuple(clip for clip in corpus.clips if clip.label == "Fear")


def test_class_and_split_names_are_read_in_any_case_and_by_their_other_names(tmp_path: Path) -> None:
    write_all(tmp_path, "Train/angry/1.avi", "TRAIN/Anger/1.avi", "val/SURPRISED/1.avi", "test/happiness/1.avi")
    corpus = read_corpus(str(tmp_path))
    assert set(labels_of(corpus).values()) == {"Anger", "Surprise", "Happy"}
    assert set(splits_of(corpus).values()) == {"train", "validation", "test"}


def test_caer_is_found_one_folder_above_and_below_with_the_same_ids(tmp_path: Path) -> None:
    root = write_all(tmp_path / "data/CAER", "train/Anger/1.avi", "train/Sad/2.avi", "test/Sad/3.avi", "train/x.txt")
    write_all(tmp_path / "data", "CAER.7z")
    right = read_corpus(str(root))
    above = read_corpus(str(tmp_path / "data"))
    below = read_corpus(str(root / "train"))
    assert right.layout == above.layout == below.layout == "caer"
    assert above.clips == right.clips
    assert below.clips == tuple(clip for clip in right.clips if clip.split == "train")
    assert right.root == above.root == below.root
    assert list(reasons_of(right)) == list(reasons_of(below)) == ["train/x.txt"]
    assert list(reasons_of(above)) == ["../CAER.7z", "train/x.txt"]


@pytest.mark.parametrize("stray", ["train/Confused/2.avi", "train/2.avi", "2.avi", "extra/2.avi"])
def test_a_video_outside_the_classes_of_caer_is_an_error(tmp_path: Path, stray: str) -> None:
    write_all(tmp_path, "train/Anger/1.avi", stray)
    with pytest.raises(CorpusError, match=rf"1 of its 2 files .*{stray}.*rename or move them, or set the layout"):
        read_corpus(str(tmp_path))
    assert len(read_corpus(str(tmp_path), layout="folder").clips) == 2


def test_a_folder_that_is_not_caer_cannot_be_read_as_it(tmp_path: Path) -> None:
    write_all(tmp_path, "a/b.avi")
    for layout in ("caer", "caer-s"):
        with pytest.raises(CorpusError, match=f"not in the layout '{layout}'"):
            read_corpus(str(tmp_path), layout=layout)
    with pytest.raises(CorpusError, match="is not a manifest"):
        read_corpus(str(tmp_path), layout="manifest")


def test_caer_s_joins_angry_and_anger_and_cuts_validation_from_test_in_blocks(tmp_path: Path) -> None:
    numbers = ("2", "10", "0009", "11", "1", "12", "13")  # in the order of the numbers: 1 2 9 10 11 12 13
    write_all(tmp_path, "train/Angry/0001.png", *(f"test/Anger/{number}.png" for number in numbers))
    write_all(tmp_path, *(f"test/Sad/{number:04}.png" for number in range(1, 4)), "test/Happy/1.png")
    write_all(tmp_path, "test/Fear/1.png", "test/Fear/2.png")
    corpus = read_corpus(str(tmp_path))
    assert corpus.layout == "caer-s"
    assert corpus.description == (
        "CAER-S layout: 14 clips in train, validation, test; 4 classes; "
        "validation is the first third of each class of the official test"
    )
    assert labels_of(corpus)["train/Angry/0001.png"] == labels_of(corpus)["test/Anger/1.png"] == "Anger"
    validation = {path for path, split in splits_of(corpus).items() if split == "validation"}
    assert validation == {"test/Anger/1.png", "test/Anger/2.png", "test/Fear/1.png", "test/Sad/0001.png"}
    assert splits_of(corpus)["train/Angry/0001.png"] == "train"
    assert splits_of(corpus) == splits_of(read_corpus(str(tmp_path), split_fractions=None))


def test_a_caer_s_with_a_validation_of_its_own_is_left_as_it_is(tmp_path: Path) -> None:
    write_all(tmp_path, "train/Sad/1.png", "validation/Sad/1.png", *(f"test/Sad/{number}.png" for number in range(6)))
    assert Counter(splits_of(read_corpus(str(tmp_path))).values()) == {"train": 1, "validation": 1, "test": 6}


def test_images_beside_caer_and_videos_beside_caer_s_are_told(tmp_path: Path) -> None:
    write_all(tmp_path, "train/Sad/1.avi", "train/Sad/1.png")
    assert reasons_of(read_corpus(str(tmp_path))) == {"train/Sad/1.png": "not a video by its name: .png"}
    assert reasons_of(read_corpus(str(tmp_path), layout="caer-s")) == {
        "train/Sad/1.avi": "a video among the images of CAER-S"
    }


def test_class_folders_give_labels_and_hash_splits(tmp_path: Path) -> None:
    write_all(tmp_path, "happy/a.mp4", "Angry/deep/b.mp4", "top.mp4")
    corpus = read_corpus(str(tmp_path))
    assert corpus.layout == "folder"
    assert labels_of(corpus) == {"Angry/deep/b.mp4": "Anger", "happy/a.mp4": "Happy", "top.mp4": None}
    assert "2 classes; 1 without a label; split by hash" in corpus.description
    assert splits_of(corpus) == {clip.path: split_of(clip.content_id, (0.7, 0.1, 0.2)) for clip in corpus.clips}


def test_folders_that_are_not_all_classes_give_no_labels(tmp_path: Path) -> None:
    write_all(tmp_path, "happy/a.mp4", "confused/b.mp4")
    corpus = read_corpus(str(tmp_path))
    assert set(labels_of(corpus).values()) == {None}
    assert "no labels" in corpus.description


# --- manifests -------------------------------------------------------------------------------------------------------


def manifest(root: Path, text: str, name: str = "list.csv") -> str:
    return str(write(root, name, text.encode()))


def test_a_manifest_gives_labels_splits_and_time_ranges(tmp_path: Path) -> None:
    write_all(tmp_path, "sub/a.mp4", "b, c.mp4", "../outside.mkv")
    text = (
        "\ufeffURL,label,split,start_seconds,end_seconds\r\n"
        "sub/a.mp4,angry,val,2.5,4\r\n"
        "sub/a.mp4,Happy,train,,1\r\n"
        '"b, c.mp4",,TEST,,\r\n'
        "\r\n"
        f"{tmp_path}/sub/../../outside.mkv,Sad,train,,\r\n"
    )
    corpus = read_corpus(manifest(tmp_path, text))
    assert corpus.layout == "manifest"
    assert corpus.root == str(tmp_path)
    assert len(corpus.ignored) == 0
    rows = [(clip.path, clip.label, clip.split, clip.start_pts_seconds, clip.end_pts_seconds) for clip in corpus.clips]
    assert rows == [
        ("../outside.mkv", "Sad", "train", None, None),
        ("b, c.mp4", None, "test", None, None),
        ("sub/a.mp4", "Happy", "train", None, 1.0),
        ("sub/a.mp4", "Anger", "validation", 2.5, 4.0),
    ]
    assert len({clip.clip_id for clip in corpus.clips}) == 4
    assert corpus.description == "manifest: 4 clips in train, validation, test; 3 classes; 1 without a label"


def test_parquet_tsv_and_csv_give_the_same_clips(tmp_path: Path) -> None:
    write_all(tmp_path, "a.mp4", "b.mp4")
    frame = pd.DataFrame({"url": ["a.mp4", "b.mp4"], "label": ["Sad", None], "start_seconds": [1.0, float("nan")]})
    frame.to_csv(tmp_path / "m.csv", index=False)
    frame.to_csv(tmp_path / "m.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "m.parquet")
    first, second, third = (read_corpus(str(tmp_path / f"m.{kind}")).clips for kind in ("csv", "tsv", "parquet"))
    assert first == second == third
    assert first[0].start_pts_seconds == 1.0
    assert first[1].start_pts_seconds is None


def test_whole_files_of_a_manifest_have_the_ids_of_the_folder(tmp_path: Path) -> None:
    write_all(tmp_path, "a.mp4", "b/c.mp4")
    listed = read_corpus(manifest(tmp_path, "url\nb/../a.mp4\nb/c.mp4\n"))
    assert listed.clips == read_corpus(str(tmp_path)).clips


def test_a_listed_file_that_is_not_there_stays_a_clip(tmp_path: Path) -> None:
    write_all(tmp_path, "a.mp4", "noted.txt")
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "folder.mp4").mkdir()
    corpus = read_corpus(manifest(tmp_path, "url\na.mp4\ngone.mp4\nfifo.mp4\nfolder.mp4\nnoted.txt\n"))
    contents = {clip.path: clip.content_id for clip in corpus.clips}
    assert contents["gone.mp4"] == "missing"
    assert contents["fifo.mp4"] == contents["folder.mp4"] == "not-a-file"
    assert len(contents["noted.txt"]) == 32


def test_rows_without_a_split_are_split_by_the_whole_file(tmp_path: Path) -> None:
    write_all(tmp_path, *(f"{number}.mp4" for number in range(20)))
    rows = "".join(f"{file}.mp4,{start},{start + 1}\n" for file in range(20) for start in range(5))
    corpus = read_corpus(manifest(tmp_path, f"url,start_seconds,end_seconds\n{rows}"))
    assert len(corpus.clips) == 100
    assert len({(clip.path, clip.split) for clip in corpus.clips}) == 20
    assert {clip.split for clip in corpus.clips} == set(SPLITS)
    part = read_corpus(manifest(tmp_path, "url,split\n1.mp4,test\n2.mp4,\n"))
    assert part.clips[0].split == "test"
    assert part.clips[1].split is not None
    assert "1 split by hash" in part.description


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'url' among none"),
        ("path,label\na.mp4,Sad\n", "no column 'url' among path, label; the columns are url, label, split"),
        ("url,lable\na.mp4,Sad\n", "column 'lable' is unknown; did you mean 'label'"),
        ("url,start_second\na.mp4,1\n", "column 'start_second' is unknown; did you mean 'start_seconds'"),
        ("url,Label,label\na.mp4,Sad,Sad\n", "column 'label' is there twice"),
        ("url,label\n", "has no rows"),
        ("url,label\na.mp4,Sad\nb.mp4,Confused\n", "line 3: label 'Confused' is unknown; use one of Anger, Disgust"),
        ("url,split\na.mp4,dev\n", "line 2: split 'dev' is unknown; use one of train, validation, test"),
        ("url,start_seconds\na.mp4,1:30\n", "line 2: start_seconds '1:30' is not a number of seconds"),
        ("url,start_seconds\na.mp4,inf\n", "line 2: start_seconds 'inf' is not a number of seconds"),
        ("url,start_seconds,end_seconds\na.mp4,3,2\n", "line 2: it ends at 2.0 s, before it starts at 3.0 s"),
        ("url,label\na.mp4\n", "line 2: 1 fields, but the header has 2"),
        ("url,label\n,Sad\n", "line 2: url is ''; give a path or URL"),
        ("url\na.mp4\nb.mp4\n./a.mp4\n", r"line 2 and line 4 both give './a.mp4' as a whole; remove one"),
        ('url\n"a.mp4\n', "is not a readable .csv file"),
        ("url\nfoo://a.mp4\n", "Protocol not known: foo"),
    ],
)
def test_a_wrong_manifest_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read_corpus(manifest(tmp_path, text))


def test_a_manifest_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    for name, content in (("m.parquet", b"PAR1 not really"), ("m.csv", b"url\n\xff\xfe.mp4\n"), ("m.parquet", b"")):
        write(tmp_path, name, content)
        with pytest.raises(CorpusError, match=f"is not a readable .{name[2:]} file"):
            read_corpus(str(tmp_path / name))
    pa.parquet.write_table(pa.table({"url": ["a.mp4", "b.mp4"], "label": [1, 2]}), tmp_path / "m.parquet")
    with pytest.raises(CorpusError, match="row 1: label 1 is unknown"):
        read_corpus(str(tmp_path / "m.parquet"))


def test_columns_that_are_not_read_are_told(tmp_path: Path) -> None:
    write_all(tmp_path, "a.mp4")
    corpus = read_corpus(manifest(tmp_path, "url,show,notes\na.mp4,Friends,x\n"))
    assert "columns not read: show, notes" in corpus.description


def test_clips_read_as_a_tuple_of_them(tmp_path: Path) -> None:
    write_all(tmp_path, *(f"{letter}.mp4" for letter in "abcde"))
    corpus = read_corpus(str(tmp_path))
    clips = tuple(corpus.clips)
    assert corpus.clips == clips == tuple(corpus.clips[index] for index in range(5))
    assert clips == corpus.clips
    assert corpus.clips != clips[:4]
    for part in (slice(1, 3), slice(None, None, 2), slice(None, None, -1), slice(4, 1)):
        assert corpus.clips[part] == clips[part]
    assert corpus.clips[-1] == clips[-1]
    with pytest.raises(IndexError):
        corpus.clips[5]
    assert clip_table(corpus.clips).equals(clip_table(clips))
    assert clip_table(corpus.table).equals(clip_table(clips))
    assert [os.stat(clip.url).st_mtime for clip in clips] == corpus.table["modified_seconds"].to_pylist()


# --- remote stores ---------------------------------------------------------------------------------------------------


@pytest.mark.lengthy
def test_a_corpus_copied_to_s3_keeps_its_ids_and_splits(tmp_path: Path, s3) -> None:
    paths = ("train/Anger/1.avi", "test/Sad/2.avi", "test/Sad/readme.txt", ".hidden/x.avi", "test/Sad/.DS_Store")
    for path in paths:
        s3.put(f"data/CAER/{path}", write(tmp_path, path).read_bytes())
    here, there = read_corpus(str(tmp_path)), read_corpus(s3.url("data/CAER"))
    assert [clip.clip_id for clip in here.clips] == [clip.clip_id for clip in there.clips]
    assert splits_of(here) == splits_of(there)
    assert there.clips[0].url == s3.url("data/CAER/test/Sad/2.avi")
    assert there.root == s3.url("data/CAER")
    assert there.description == "CAER layout: 2 clips in train, test; 2 classes; 3 ignored"
    assert read_corpus(s3.url("data/CAER/")).clips == there.clips
    assert read_corpus(s3.url("data")).clips == there.clips


def test_a_folder_of_s3_is_read_by_one_listing_and_ranges_of_nameless_files(s3) -> None:
    s3.put("clips/nameless", b"\0\0\0\x20ftypisom" + bytes(10_000))
    s3.put("clips/random", b"x" * 10_000)
    s3.put("clips/empty", b"")
    s3.put("clips/empty.mp4", b"")
    s3.put("clips/folder/", b"")  # how consoles make a folder
    for number in range(20):
        s3.put(f"clips/{number}.mp4", b"x")
    requests: list[str] = []
    store = open_filesystem(s3.url())[0]  # the one that read_corpus takes
    store.s3.meta.events.register("before-call.s3", lambda model, **_: requests.append(model.name))
    corpus = read_corpus(s3.url("clips"))
    assert Counter(requests) == {"ListObjectsV2": 1, "GetObject": 2}
    assert len(corpus.clips) == 22
    assert {"nameless", "empty.mp4"} <= set(paths_of(corpus))
    assert set(reasons_of(corpus)) == {"random", "empty"}


@pytest.mark.lengthy
def test_a_listing_comes_page_by_page_and_a_page_that_fails_is_asked_for_again(s3, monkeypatch) -> None:
    bucket = get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"]  # 2,001 requests would take 6 s
    for number in range(2001):
        bucket.put_object(s3.bucket, f"clips/{number:04d}.mp4", b"x", disable_notification=True)
    with FaultProxy(s3.endpoint).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        s3.fs.clear_instance_cache()
        store, place = open_filesystem(s3.url("clips"))
        listing = listed(store, place, what="it cannot be listed")
        assert next(listing)[0] == f"{s3.bucket}/clips/0000.mp4"
        assert len(proxy.log) == 1
        proxy.fail("slow_down", path="continuation-token", times=1)
        assert len(list(listing)) == 2000
        assert [fault for _, _, fault in proxy.log] == [None, "slow_down", None, None]
        assert len(read_corpus(s3.url("clips")).clips) == 2001
        assert len(proxy.log) == 7


def test_odd_keys_of_s3_stay_whole_and_openable(s3) -> None:
    # The test server itself answers 404 to a key with a newline.
    names = [*(name for name in ODD_NAMES if "\n" not in name), "double//slash.mp4"]
    for name in names:
        s3.put(f"odd/{name}", name.encode())
    corpus = read_corpus(s3.url("odd"))
    assert paths_of(corpus) == sorted(names)
    for clip in corpus.clips:
        assert local_path(clip.url) is None
        assert s3.fs.cat_file(clip.url) == clip.path.encode()
        assert clip.content_id == hashlib.md5(clip.path.encode(), usedforsecurity=False).hexdigest()


@pytest.mark.lengthy
def test_files_and_globs_of_s3_are_read(s3) -> None:
    for name in ("a1.mp4", "a2.mkv", "sub/a3.mp4", "b [1].mp4"):
        s3.put(f"clips/{name}", name.encode())
    whole = {clip.path: clip for clip in read_corpus(s3.url("clips")).clips}
    assert read_corpus(s3.url("clips/sub/a3.mp4")).clips[0].path == "a3.mp4"
    assert read_corpus(s3.url("clips/a1.mp4")).clips == (whole["a1.mp4"],)
    assert read_corpus(s3.url("clips/b [1].mp4")).clips == (whole["b [1].mp4"],)
    assert read_corpus(s3.url("clips/a*.mp4")).clips == (whole["a1.mp4"],)
    assert read_corpus(s3.url("clips/**/a*.mp4")).clips == (whole["a1.mp4"], whole["sub/a3.mp4"])


@pytest.mark.lengthy
def test_a_second_reading_sees_what_others_wrote_meanwhile(s3) -> None:
    s3.put("clips/a.mp4", b"a")
    s3.put("clips/list.csv", b"url\na.mp4\n")
    for given in ("clips", "clips/list.csv"):
        first = read_corpus(s3.url(given))
        another_writer = type(s3.fs)(skip_instance_cache=True)
        another_writer.pipe_file(s3.url("clips/a.mp4"), given.encode())
        second = read_corpus(s3.url(given))
        assert second.clips[0].size_bytes == len(given)
        assert second.clips[0].clip_id != first.clips[0].clip_id


def test_a_manifest_on_s3_lists_neighbours_other_buckets_and_missing_objects(tmp_path: Path, s3) -> None:
    s3.put("set/a.mp4", b"a")
    s3.put("set/deep//b.mp4", b"b")
    s3.put("other/c.mp4", b"c")
    local = write(tmp_path, "d.mp4")
    rows = ["a.mp4", "deep/./../deep/gone.mp4", "../other/c.mp4", s3.url("set/gone.mp4"), "deep//b.mp4", str(local)]
    rows += ["nowhere/gone.mp4", "s3://no-such-bucket-x/gone.mp4"]
    s3.put("set/list.csv", ("url\n" + "\n".join(rows)).encode())
    requests: list[str] = []
    store = open_filesystem(s3.url())[0]  # the one that read_corpus takes
    store.s3.meta.events.register("before-call.s3", lambda params, **_: requests.append(params["url_path"]))
    corpus = read_corpus(s3.url("set/list.csv"))
    assert not any(path.endswith(("a.mp4", "c.mp4")) for path in requests)  # found by listing their folders
    assert corpus.root == s3.url("set")
    assert {clip.path: clip.content_id for clip in corpus.clips} == {
        "a.mp4": "0cc175b9c0f1b6a831c399e269772661",
        "deep/gone.mp4": "missing",
        "deep//b.mp4": "92eb5ffee6ae2fec3ad71c777531578f",
        s3.url("other/c.mp4"): "4a8a08f09d37b73795649038408b5f33",
        "gone.mp4": "missing",
        "nowhere/gone.mp4": "missing",
        "s3://no-such-bucket-x/gone.mp4": "missing",
        str(local): hashlib.md5(local.read_bytes(), usedforsecurity=False).hexdigest(),
    }
    here = read_corpus(manifest(tmp_path, f"url,label\n{s3.url('set/a.mp4')},sad\n"))
    assert [(clip.path, clip.url, clip.label) for clip in here.clips] == [(s3.url("set/a.mp4"),) * 2 + ("Sad",)]


@pytest.mark.lengthy
def test_missing_buckets_folders_and_credentials_are_told_in_one_line(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CorpusError, match=r"^input s3://no-such-bucket-x/clips does not exist; check the path$"):
        read_corpus("s3://no-such-bucket-x/clips")
    with pytest.raises(CorpusError, match=r"nothing is there"):
        read_corpus(s3.url("no/such/folder"))
    with pytest.raises(CorpusError, match="name a bucket"):
        read_corpus("s3://")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3.fs.clear_instance_cache()
    with pytest.raises(CorpusError, match="Unable to locate credentials; check the credentials") as caught:
        read_corpus(s3.url("clips"))
    assert "\n" not in str(caught.value)


@pytest.mark.lengthy
def test_a_store_that_does_not_answer_is_told_in_one_line(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    s3.fs.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(CorpusError, match=r"cannot be read: .*; check the address, the network and the store"):
        read_corpus(s3.url("clips"))


def test_any_fsspec_store_is_read() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/corpus-test/train/Sad/a.avi": b"a", "/corpus-test/train/Fear/b.avi": b"bb"})
    try:
        corpus = read_corpus("memory://corpus-test")
        assert labels_of(corpus) == {"train/Fear/b.avi": "Fear", "train/Sad/a.avi": "Sad"}
        assert [clip.size_bytes for clip in corpus.clips] == [2, 1]
        with fsspec.open(corpus.clips[0].url) as stream:
            assert stream.read() == b"bb"
        assert read_corpus("memory://corpus-test").clips == corpus.clips
    finally:
        memory.rm("/corpus-test", recursive=True)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which a web server serves it."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_signed_web_addresses_are_read_but_never_shown(tmp_path: Path, web: tuple[Path, str]) -> None:
    folder, address = web
    write_all(folder, "a.mp4")
    signed = f"{address}/a.mp4?X-Amz-Signature=secret"
    (clip,) = read_corpus(signed).clips
    assert (clip.url, clip.path, clip.size_bytes) == (signed, "a.mp4", 5)
    corpus = read_corpus(
        manifest(tmp_path, f"url\n{signed}\n{address}/gone.mp4?Signature=secret\n"), allow_private_hosts=True
    )
    assert [(clip.path, clip.content_id == "missing") for clip in corpus.clips] == [
        (f"{address}/a.mp4", False),
        (f"{address}/gone.mp4", True),
    ]
    again = read_corpus(manifest(tmp_path, f"url\n{address}/a.mp4?X-Amz-Signature=another\n"), allow_private_hosts=True)
    assert again.clips[0].clip_id == corpus.clips[0].clip_id
    two = read_corpus(
        manifest(tmp_path, f"url\n{address}/gone.mp4?id=1\n{address}/gone.mp4?id=2\n"), allow_private_hosts=True
    )
    assert len({clip.clip_id for clip in two.clips}) == 2
    with pytest.raises(CorpusError, match="cannot be told apart"):
        read_corpus(
            manifest(tmp_path, f"url\n{address}/gone.mp4?sig=1\n{address}/gone.mp4?sig=2\n"),
            allow_private_hosts=True,
        )
    with pytest.raises(CorpusError) as caught:
        read_corpus(f"{address}/gone.mp4?X-Amz-Signature=secret")
    assert "secret" not in str(caught.value)
    with pytest.raises(CorpusError) as caught:
        read_corpus(manifest(tmp_path, f"url\n{signed}\n{signed}\n"), allow_private_hosts=True)
    assert "secret" not in str(caught.value)


def test_text_for_people_holds_no_credentials() -> None:
    text = "GET https://u:hunter2@host/a?X-Amz-Signature=abc&b failed\nfor AKIAIOSFODNN7EXAMPLE at 'http://h/b?sig=1'"
    assert shown_url(text) == "GET https://…@host/a?… failed for AKIA… at 'http://h/b?…'"


# --- real files ------------------------------------------------------------------------------------------------------


def test_all_real_and_broken_files_are_clips_with_lasting_ids(real_clips_dir: Path, nasty_dir: Path) -> None:
    for folder in (real_clips_dir, nasty_dir):
        corpus = read_corpus(str(folder))
        names = sorted(name for name in os.listdir(folder) if name != "MANIFEST.tsv")
        assert paths_of(corpus) == names
        assert reasons_of(corpus) == {"MANIFEST.tsv": "not a video by its name: .tsv"}
        assert len({clip.clip_id for clip in corpus.clips}) == len(names)


@pytest.mark.parametrize("rows_at_once", [1, 3, 8, 1000])
def test_a_listing_that_does_not_fit_into_memory_is_sorted_all_the_same(tmp_path, monkeypatch, rows_at_once):
    """In any number of runs, with neighbours in the same and in other ones, and ranges of one file."""
    numbers = random.Random(0).sample(range(1000), 60)
    lines = [f"{number % 40:02d}.mp4,{number % 7},{number % 7 + 1 + number % 3}" for number in numbers]
    (tmp_path / "m.csv").write_text("\n".join(["url,start_seconds,end_seconds", *dict.fromkeys(lines)]))
    for number in range(40):
        (tmp_path / f"{number:02d}.mp4").write_bytes(bytes([number]))
    whole = read_corpus(str(tmp_path / "m.csv"))
    monkeypatch.setattr("pipeline.corpus.table.ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr("pipeline.corpus.sorting.BATCHES_PER_RUN", 2)
    found = read_corpus(str(tmp_path / "m.csv"))
    assert found.num_clips == whole.num_clips == len({*lines})
    assert found.table.equals(whole.table)
    assert found.description == whole.description
    keys = [(clip.path, clip.start_pts_seconds, clip.end_pts_seconds) for clip in found.clips]
    assert keys == sorted(keys)


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
def test_more_ignored_files_than_fit_into_memory_are_told_all_the_same(tmp_path, monkeypatch, rows_at_once):
    names = [f"{number % 7}/{number:03d}.{('txt', 'json')[number % 2]}" for number in range(100)]
    for name in ("clip.mp4", *names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    whole = read_corpus(str(tmp_path))
    monkeypatch.setattr("pipeline.corpus.types.ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr("pipeline.corpus.sorting.BATCHES_PER_RUN", 2)
    monkeypatch.setattr(BatchSpool.__init__, "__kwdefaults__", {"memory_bytes": 100})
    ignored = read_corpus(str(tmp_path)).ignored
    assert [item.path for item in ignored] == sorted(names)
    assert ignored == whole.ignored
    assert len(ignored) == 100
    assert sorted(ignored.reasons.values()) == [50, 50]


@pytest.mark.parametrize("rows_at_once", [1, 2, 1000])
@pytest.mark.parametrize("names", ["fcabdef", "ffabcde", "abcdeff", "fabcdef"])
def test_files_that_cannot_be_told_apart_are_named_wherever_they_are_listed(monkeypatch, rows_at_once, names):
    monkeypatch.setattr("pipeline.corpus.table.ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr("pipeline.corpus.sorting.BATCHES_PER_RUN", 2)
    files = [ListedFile(path=name, place=f"/in/{name}", size_bytes=1, content_id="x") for name in names]
    with pytest.raises(CorpusError, match=r"'/in/f' and '/in/f' cannot be told apart: same path 'f'"):
        corpus_of("folder", "/in", files=files, ignored=[], rules=SplitRules(split_fractions=None), notes=[])
