"""Inputs as people have them: spreadsheets, archives of other systems, transfers in progress, stray files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from pipeline.corpus.read import read_corpus
from pipeline.corpus.types import CorpusError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "b c.mp4", "sub/x.mp4"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypmp42" + name.encode())
    return tmp_path


def rows_of(folder: Path, text: str, *, name: str = "m.csv") -> list[tuple]:
    (folder / name).write_bytes(text.encode())
    clips = read_corpus(str(folder / name)).clips
    assert all(clip.content_id != "missing" for clip in clips)
    return [(clip.path, clip.label, clip.start_pts_seconds, clip.end_pts_seconds) for clip in clips]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "url,label,start_seconds,end_seconds\na.mp4,Happy,0.5,1\n"),
        ("m.csv", "label, url, start_seconds, end_seconds\nHappy , a.mp4 , 0.5, 1\n"),
        ("m.csv", 'label, url, start_seconds, end_seconds\nHappy, "a.mp4", 0.5, 1\n'),
        ("m.csv", "\ufeffurl;label;start_seconds;end_seconds\r\na.mp4;Happy;0,5;1\r\n"),
        ("m.csv", "url\tlabel\tstart_seconds\tend_seconds\na.mp4\tHappy\t0.5\t1\n"),
        ("m.csv", '"url"|"label"|"start_seconds"|"end_seconds"\na.mp4|Happy|0.5|1\n'),
        ("m.tsv", "url,label,start_seconds,end_seconds\na.mp4,Happy,0.5,1\n"),
        ("m.csv", "url,label,start_seconds,end_seconds,,\na.mp4,Happy,0.5,1,,\n,,,,,\n"),
        ("m.csv", "url,label,start_seconds,end_seconds\na.mp4,Happy,0.5,1,,\n\n,,,\n"),
        ("m.csv", ",url,label,start_seconds,end_seconds\n0,a.mp4,Happy,0.5,1\n"),
        ("m.csv", "URL,Emotion,Start_Seconds,end_seconds\na.mp4,happy,0.5,1\n"),
        ("m.csv", "sep=;\r\nurl;label;start_seconds;end_seconds\r\na.mp4;Happy;0,5;1\r\n"),
        ("m.csv", "url,label,start_seconds,end_seconds\r\na.mp4,Happy,0.5,1\r\n\x1a"),
        ("m.csv", '\n,,,\nurl,label,start_seconds,end_seconds\na.mp4,Happy,"0,5",1\n'),
        ("m.csv", "url;label;start_seconds;end_seconds\na.mp4;Happy;0,500;1,000\n"),
        ("m.csv", "url,label,Start (s),End [sec]\na.mp4,Happy,0.5,1\n"),
        ("m.csv", "url,label,clip_start_s,stop time in seconds\na.mp4,Happy,0.5,1\n"),
        ("m.csv", "url,label,start_seconds,end_seconds\r\u00a0a.mp4\u200b, Happy\t,0.5,1\r"),
    ],
)
def test_a_manifest_is_read_as_spreadsheets_and_scripts_write_it(folder: Path, name: str, text: str):
    assert rows_of(folder, text, name=name) == [("a.mp4", "Happy", 0.5, 1.0)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_an_encoding_that_a_mark_names_is_read(folder: Path, encoding: str, separator: str):
    (folder / "é.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    text = f"url{separator}label\r\né.mp4{separator}Happy\r\n"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (folder / "m.csv").write_bytes(mark + text.encode(encoding))
    assert [(clip.path, clip.label) for clip in read_corpus(str(folder / "m.csv")).clips] == [("é.mp4", "Happy")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "cp1252", "shift-jis"])
def test_an_encoding_that_nothing_names_is_one_line(folder: Path, encoding: str):
    name = "é.mp4" if encoding == "cp1252" else "表.mp4"
    (folder / "m.csv").write_bytes(f"url,label\n{name},Happy\n".encode(encoding))
    with pytest.raises(CorpusError, match=r"(is not UTF-8|UTF-16 without its mark).*; write it again as UTF-8 CSV"):
        read_corpus(str(folder / "m.csv"))


def test_a_quoted_break_of_a_line_is_part_of_a_cell_and_lines_are_counted_as_an_editor_does(folder: Path):
    (folder / "new\nline.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    text = '\n"a\nnote";url;label;start_seconds\n1;"new\nline.mp4";Happy;12,345\n'
    assert rows_of(folder, text) == [("new\nline.mp4", "Happy", 12.345, None)]
    with pytest.raises(CorpusError, match="line 6: label 'Hapy'"):
        rows_of(folder, text + "2;a.mp4;Hapy;1\n")


def test_rows_whose_files_are_not_there_are_told_at_once(folder: Path):
    (folder / "m.csv").write_text("url\na.mp4\ngone/b.mp4\ngone/c.mp4\n")
    found = read_corpus(str(folder / "m.csv"))
    assert found.description.endswith("; 2 of 3 are not there, the first 'gone/b.mp4': paths count from its folder")


@pytest.mark.parametrize("name", ["m.txt", "m.json", "m.jsonl", "m.xlsx", "m.csv.gz", "m.tab"])
def test_a_list_in_another_kind_of_file_is_told_what_a_manifest_is(folder: Path, name: str):
    (folder / name).write_bytes(b"url,label\na.mp4,Happy\n")
    with pytest.raises(
        CorpusError, match=r"holds no video .*; a manifest is a \.csv, \.tsv or \.parquet with a column"
    ):
        read_corpus(str(folder / name))


@pytest.mark.parametrize("name", ["gender", "weekend", "start_date", "tone", "duration", "classroom", "intention"])
def test_a_column_that_is_none_of_ours_is_named_and_does_no_harm(folder: Path, name: str):
    (folder / "m.csv").write_text(f"url,label,{name}\na.mp4,Happy,1\n")
    corpus = read_corpus(str(folder / "m.csv"))
    assert corpus.clips[0].label == "Happy"
    assert f"columns not read: {name}" in corpus.description


def test_paths_written_on_windows_are_found(folder: Path):
    assert rows_of(folder, "url,label\nsub\\x.mp4,Happy\nb c.mp4,Sad\n") == [
        ("b c.mp4", "Sad", None, None),
        ("sub/x.mp4", "Happy", None, None),
    ]
    (folder / "sub\\x.mp4").write_bytes(b"one of this very name")
    assert rows_of(folder, "url\nsub\\x.mp4\n") == [("sub\\x.mp4", None, None, None)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("url,label\na.mp4\0,Happy\n", r"line 2: url is 'a.mp4\\x00'"),
        ("url\ns3://\n", "line 2: url is 's3://'"),
        ("url\nhttps:\n", "line 2: url is 'https:'"),
        ("url\nhttps:///a.mp4\n", "line 2: url is 'https:///a.mp4'"),
        ("url\ns3://bucket\n", "line 2: url is 's3://bucket'"),
        ("url\ns3://bucket/\n", "line 2: url is 's3://bucket/'"),
        ("url\ns3:///a.mp4\n", "line 2: url is 's3:///a.mp4'"),
        ("url\ngs://bucket\n", "line 2: url is 'gs://bucket'"),
        ("url\n   \n,\n", "has no rows|line 3"),
        ("url,start,end\na.mp4,1,2\n", "column 'start' does not say its unit; call it 'start_seconds'"),
        ("url,start_seconds,stop\na.mp4,1,2\n", "column 'stop' does not say its unit; call it 'end_seconds'"),
        ("url,label,emotion\na.mp4,Happy,Sad\n", "column 'label' is there twice"),
        ('url,end_seconds\na.mp4,"1,234"\n', "end_seconds '1,234' is not a number of seconds"),
        ("url,end_seconds\na.mp4,1:02:03.5\n", "end_seconds '1:02:03.5' is not a number of seconds; write it like"),
        ("url,end_seconds\na.mp4,1_0\n", "end_seconds '1_0' is not a number of seconds"),
        ("url,emotion\na.mp4,Hapy\n", "label 'Hapy' is unknown"),
        ("url,start_seconds,end_seconds\na.mp4,-2,-1\n", "line 2: it ends at -1.0 s, before it starts at 0.0 s"),
        ("url,end_seconds\na.mp4,0\n", "line 2: it ends at 0.0 s, before it starts at 0.0 s"),
        ("url,start_ms,end_ms\na.mp4,1,2\n", "column 'start_ms' does not say its unit"),
        ("url,start_seconds,end frame\na.mp4,1,2\n", "column 'end frame' does not say its unit; call it 'end_seconds'"),
        ("url,Start Time\na.mp4,1\n", "column 'start time' does not say its unit"),
        ("url,time_start\na.mp4,1\n", "column 'time_start' does not say its unit"),
        ("url,start_sec\na.mp4,1\n", "column 'start_sec' is unknown; did you mean 'start_seconds'"),
        ("url,emotions\na.mp4,Happy\n", "column 'emotions' may be a label"),
        ("url,expression\na.mp4,Happy\n", "column 'expression' may be a label"),
        ("url,class\na.mp4,Happy\n", "column 'class' may be a label"),
        ("url,emotion_label\na.mp4,Happy\n", "column 'emotion_label' may be a label"),
        (
            "path,label\na.mp4,Happy\n",
            "no column 'url' among path, label; .*; if 'path' has paths or URLs, call it 'url'",
        ),
        ("path;label\na.mp4;Happy\n", "no column 'url' among path;label"),
        ("url,label\na.mp4,Happy,Sad\n", "3 fields, but the header has 2"),
    ],
)
def test_what_a_manifest_may_not_say_is_one_line(folder: Path, text: str, words: str):
    (folder / "m.csv").write_text(text)
    with pytest.raises(CorpusError, match=words) as caught:
        read_corpus(str(folder / "m.csv"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "a.mp4.part",
        "a.mp4.crdownload",
        "a.tmp",
        "a.mp4.filepart",
        "A.MP4.PART",
        "a.part-Frag3",
        "a.mp4.aria2",
        "a.mp4.6eF4aBcD",
        "a.mp4_.gstmp",
        "a.mp4.Kd3.partial",
        "a.mp4.uploading",
        "a.mp4.xltd",
        "a.mp4.in_progress",
        "a.temp.mp4",
    ],
)
def test_transfers_in_progress_are_ignored_with_the_reason(folder: Path, name: str):
    (folder / name).write_bytes(b"\0\0\0\x18ftypmp42")
    (folder / ".b.mp4.Xa81Qz").write_bytes(b"\0\0\0\x18ftypmp42")  # rsync's
    corpus = read_corpus(str(folder))
    assert len(corpus.clips) == 3
    reasons = {each.path: each.reason for each in corpus.ignored}
    assert reasons[name].startswith("a transfer in progress")
    assert ".b.mp4.Xa81Qz" in reasons


@pytest.mark.parametrize(
    "name", ["a.zip.001", "a.z01", "a.7z.002", "a.r00", "a.part2.rar", "a.zip.partab", "a.tar.gz.aa", "a.tar.part-ab"]
)
def test_parts_of_split_archives_are_named_as_such(folder: Path, name: str):
    (folder / name).write_bytes(b"PK\x03\x04")
    (ignored,) = read_corpus(str(folder)).ignored
    assert ignored.reason.startswith("a part of a split archive")


def make_zip(path: Path, names: list[str], *, system: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, system
            archive.writestr(info, b"\0\0\0\x18ftypmp42" + name.encode())
    return path


@pytest.mark.lengthy
def test_an_archive_of_windows_has_its_folders(tmp_path: Path):
    path = make_zip(tmp_path / "a.zip", ["train\\Happy\\1.mp4", "train\\Sad\\2.mp4"])
    assert [(clip.path, clip.label) for clip in read_corpus(str(path)).clips] == [
        ("a.zip!train/Happy/1.mp4", "Happy"),
        ("a.zip!train/Sad/2.mp4", "Sad"),
    ]
    unix = make_zip(tmp_path / "unix.zip", ["odd\\name.mp4"], system=3)
    (clip,) = read_corpus(str(unix)).clips
    assert "unsafe_name" in clip.url
    leads_upwards = make_zip(tmp_path / "up.zip", ["..\\..\\1.mp4", "C:\\1.mp4", "\\1.mp4"])
    assert all("unsafe_name" in clip.url for clip in read_corpus(str(leads_upwards)).clips)


class _RawName(zipfile.ZipInfo):
    """A member whose name is written as bytes that say no encoding, as old packers do."""

    raw = b""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.raw, self.flag_bits & ~0x800


def test_japanese_names_without_their_encoding_are_read(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("表情/ソフト.mp4", "笑顔.mp4", "plain.mp4"):
            info = _RawName(name)
            info.raw, info.create_system = name.encode("cp932"), 0
            archive.writestr(info, b"\0\0\0\x18ftypmp42" + name.encode())
    assert [clip.path for clip in read_corpus(str(tmp_path)).clips] == [
        "a.zip!plain.mp4",
        "a.zip!笑顔.mp4",
        "a.zip!表情/ソフト.mp4",
    ]


def test_a_zip_behind_a_program_is_read(tmp_path: Path):
    plain = make_zip(tmp_path / "plain.zip", ["1.mp4"])
    (tmp_path / "sfx.zip").write_bytes(b"MZ" + bytes(998) + plain.read_bytes())
    plain.unlink()
    (clip,) = read_corpus(str(tmp_path)).clips
    assert (clip.path, "reason" in clip.url) == ("sfx.zip!1.mp4", False)


def test_the_last_part_of_a_split_zip_is_named_as_such(tmp_path: Path):
    data = bytearray(make_zip(tmp_path / "a.zip", ["1.mp4"]).read_bytes())
    at = data.rindex(b"PK\x05\x06")
    data[at + 4 : at + 8] = b"\3\0\3\0"
    (tmp_path / "a.zip").write_bytes(data)
    (clip,) = read_corpus(str(tmp_path)).clips
    assert "reason=split_archive" in clip.url
    assert "4+parts" in clip.url


@pytest.mark.parametrize("num_images", [2, 6])
def test_a_stray_video_does_not_hide_a_tree_of_images(tmp_path: Path, num_images: int):
    for split in ("train", "test"):
        (tmp_path / split / "Happy").mkdir(parents=True)
        for number in range(num_images):
            (tmp_path / split / "Happy" / f"{number}.png").write_bytes(b"\x89PNG")
    (tmp_path / "train" / "Happy" / "stray.gif").write_bytes(b"GIF89a")
    with pytest.raises(CorpusError, match=r"holds 1 videos and .* images .* set the layout to caer-s"):
        read_corpus(str(tmp_path))
    corpus = read_corpus(str(tmp_path), layout="caer-s")
    assert len(corpus.clips) == 2 * num_images
    assert [each.reason for each in corpus.ignored] == ["a video among the images of CAER-S"]
    assert len(read_corpus(str(tmp_path), layout="caer").clips) == 1


def test_a_few_pictures_among_videos_are_left_out_as_before(tmp_path: Path):
    (tmp_path / "train" / "Happy").mkdir(parents=True)
    for name in ("1.mp4", "2.mp4", "poster.png"):
        (tmp_path / "train" / "Happy" / name).write_bytes(b"\0\0\0\x18ftypmp42")
    assert len(read_corpus(str(tmp_path)).clips) == 2


def test_a_stray_video_does_not_hide_folders_of_images_named_after_classes(tmp_path: Path):
    for name in ("Happy/1.png", "Happy/2.jpg", "Sad/1.png", "Sad/stray.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"GIF89a" if name.endswith("gif") else b"\x89PNG\r\n\x1a\n")
    with pytest.raises(CorpusError, match=r"1 videos and 3 images in folders named after classes.*put the folders"):
        read_corpus(str(tmp_path))
    assert [clip.path for clip in read_corpus(str(tmp_path), layout="folder").clips] == ["Sad/stray.gif"]
    (tmp_path / "train").mkdir()
    for name in ("Happy", "Sad"):
        (tmp_path / name).rename(tmp_path / "train" / name)
    assert len(read_corpus(str(tmp_path), layout="caer-s").clips) == 3
