"""A corpus worked on in parts: each file is in one, and what reads outputs reads all of them as one."""

import numpy as np
import pytest
from example_shards import drawn_example, write_shards

from pipeline.corpus.read import read_corpus
from pipeline.dataset.dataset import ExampleDataset
from pipeline.dataset.shards import read_manifest
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outputs import names_of, runs_in
from pipeline.ledger.planning import plan_clips
from pipeline.preprocess.config import PreprocessConfig
from pipeline.records.clips import clip_table
from pipeline.records.parts import is_of_part, parse_shard, part_url
from pipeline.records.vocabulary import EMOTIONS, UsageError
from pipeline.score.config import ScoreConfig
from pipeline.storage.parts import is_named, parts_of


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "x/3", "1/0", "-1/3", "1/1000000", ""])
def test_what_is_no_part_is_refused_by_name(text):
    with pytest.raises(ValueError, match=r"--shard is .*give a part"):
        PreprocessConfig(input="in", output="out", shard=text)


def test_a_part_has_an_output_of_its_own_that_a_kept_config_names_again():
    for config in (PreprocessConfig, ScoreConfig):
        more = {"checkpoint": "baseline"} if config is ScoreConfig else {}
        output = config(input="in", output="s3://bucket/out/", shard="3/16", **more).output
        assert output == "s3://bucket/out-03-of-16"
        assert config(input="in", output=output, shard="3/16", **more).output == output
    assert part_url("out", None) == "out"


@pytest.fixture
def videos(tmp_path):
    for number in range(60):
        place = tmp_path / "videos" / f"show{number % 3}" / f"{number:02d}.avi"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"%d" % (number // 2))  # Two of each content.
    (tmp_path / "videos" / "notes.txt").write_text("no video")
    return str(tmp_path / "videos")


def test_each_clip_is_in_one_part_with_the_id_and_the_split_that_it_has_in_the_whole(videos):
    whole = read_corpus(videos)
    parts = [read_corpus(videos, shard=(number, 4)) for number in (1, 2, 3, 4)]
    names = ("clip_id", "path", "split", "content_id")
    rows = [row for part in parts for row in part.table.select(names).to_pylist()]
    assert sorted(rows, key=lambda row: row["path"]) == whole.table.select(names).to_pylist()
    assert sum(len(part.ignored) for part in parts) == len(whole.ignored) == 1
    assert all(5 < part.table.num_rows < 30 for part in parts)
    assert "part 2 of 4" in parts[1].description


def test_the_members_of_an_archive_are_of_one_part():
    archive = "night/upload.zip"
    assert len({is_of_part(f"{archive}!{number}.mp4", (2, 3)) for number in range(50)}) == 1


def test_an_empty_part_is_no_fault(videos):
    number = next(number for number in range(1, 1000) if read_corpus(videos, shard=(number, 1000)).table.num_rows == 0)
    corpus = read_corpus(videos, shard=(number, 1000))
    assert len(corpus.ignored) == is_of_part("notes.txt", (number, 1000))


@pytest.fixture
def made(tmp_path):
    """Outputs data-1-of-2 and data-2-of-2, and data-whole with the same examples."""

    def shards(start):
        return [
            [drawn_example(number, label=EMOTIONS[number % 7], split=split) for number in range(start, start + 14)]
            for split in ("train", "validation")
        ]

    for name, starts in (("data-1-of-2", [0]), ("data-2-of-2", [20]), ("data-whole", [0, 20])):
        write_shards(tmp_path / name, [shard for start in starts for shard in shards(start)])
    return tmp_path


def test_examples_of_all_parts_are_read_as_one_data_set(made):
    for split in ("train", "validation"):
        parts, whole = (
            ExampleDataset(str(made / name), split=split, cache_dir=made / "cache")
            for name in ("data-?-of-2", "data-whole")
        )
        assert len(parts) == len(whole) == 28
        assert [parts[row].clip_id for row in range(28)] == [whole[row].clip_id for row in range(28)]
        assert all(np.array_equal(parts[row].face, whole[row].face) for row in range(28))
    assert read_manifest(str(made / "data-1-of-2")).sha256 != read_manifest(str(made / "data-?-of-2")).sha256


def test_the_parts_of_a_corpus_are_found_on_a_store_too(s3):
    for name in ("data-1-of-2", "data-2-of-2"):
        s3.put(f"all/{name}/manifest.json", b"{}")
    assert parts_of(s3.url("all/data-*")) == [s3.url("all/data-1-of-2"), s3.url("all/data-2-of-2")]
    assert parts_of(s3.url("all/data-1-of-2")) == [s3.url("all/data-1-of-2")]


def test_what_lacks_a_part_or_mixes_wholes_is_refused(made):
    with pytest.raises(UsageError, match=r"of 2 parts of data 1 are not there \(2\)"):
        read_manifest(str(made / "data-1-of-2*"))
    with pytest.raises(UsageError, match="nothing there fits"):
        read_manifest(str(made / "date-*"))
    for number in (1, 2, 3):
        (made / f"data-{number}-of-3").mkdir()
    with pytest.raises(UsageError, match="parts of 2 and 3, which hold the same clips"):
        parts_of(str(made / "data-*-of-*"))


def test_parts_of_other_settings_are_not_one_data_set(made):
    text = (made / "data-2-of-2" / "manifest.json").read_text()
    (made / "data-2-of-2" / "manifest.json").write_text(text.replace('"face_px": 32', '"face_px": 48'))
    with pytest.raises(UsageError, match=r"made otherwise than .*data-1-of-2: face_px 48, not 32"):
        read_manifest(str(made / "data-?-of-2"))


def test_a_folder_whose_name_looks_like_a_pattern_is_itself(tmp_path):
    (tmp_path / "data[1]").mkdir()
    (tmp_path / "data1").mkdir()
    assert parts_of(str(tmp_path / "data[1]")) == [str(tmp_path / "data[1]")]


def test_the_runs_of_all_parts_are_listed_and_told_apart(tmp_path):
    for number in (1, 2):
        ledger = Ledger(str(tmp_path / f"data-{number}-of-2"))
        plan_clips(ledger, clip_table([]), kind="examples", config={}, versions={}, clips_per_shard=1)
    runs = runs_in(str(tmp_path / "data-*"))
    assert names_of(runs) == ["data-1-of-2", "data-2-of-2"]
    assert names_of(runs[:1]) == ["data-1-of-2"]


def test_an_output_is_named_by_a_pattern_beside_it():
    assert is_named("/a/data-1-of-2", by="/a/data-*")
    assert not is_named("/a/data-1-of-2", by="/b/data-*")
    assert not is_named("/a/data-1-of-2", by="/a/date-*")
    assert parse_shard("3/16") == (3, 16)
