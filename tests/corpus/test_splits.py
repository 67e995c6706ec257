"""Splits that do not leak: groups, files with the same bytes, renamed folders, CAER-S cut by shots."""

from __future__ import annotations

import csv
import itertools
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.corpus.groups import group_pattern, kin_of
from pipeline.corpus.read import read_corpus
from pipeline.corpus.table import split_of
from pipeline.corpus.types import CORPUS_SCHEMA, Corpus, CorpusError
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.planning import Changes, plan
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.vocabulary import EMOTIONS, SPLITS
from pipeline.storage.spool import MEMORY_BYTES, BatchSpool, spooled

FRACTIONS = (0.6, 0.2, 0.2)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def shows(num_shows: int = 12, num_clips: int = 5) -> dict[str, str]:
    return {f"show{show}/{clip}.mp4": f"{show} {clip}" for show in range(num_shows) for clip in range(num_clips)}


def splits_of(corpus: Corpus) -> dict[str, str | None]:
    return {clip.path: clip.split for clip in corpus.clips}


def test_a_split_follows_from_the_bytes_so_that_a_renamed_folder_moves_none(tmp_path: Path) -> None:
    write(tmp_path / "a", shows())
    write(tmp_path / "b", {f"renamed/{path}": content for path, content in shows().items()})
    before, after = (splits_of(read_corpus(str(tmp_path / name), split_fractions=FRACTIONS)) for name in ("a", "b"))
    assert {f"renamed/{path}": split for path, split in before.items()} == after
    assert set(before.values()) == set(SPLITS)
    corpus = read_corpus(str(tmp_path / "a"), split_fractions=FRACTIONS)
    assert before == {clip.path: split_of(clip.content_id, FRACTIONS) for clip in corpus.clips}


def test_files_with_the_same_bytes_lie_in_one_split(tmp_path: Path) -> None:
    write(tmp_path, {f"{folder}/{number}.mp4": f"clip {number}" for folder in ("x", "y") for number in range(40)})
    splits = splits_of(read_corpus(str(tmp_path), split_fractions=FRACTIONS))
    assert all(splits[f"x/{number}.mp4"] == splits[f"y/{number}.mp4"] for number in range(40))
    assert set(splits.values()) == set(SPLITS)


def test_what_cannot_be_read_is_split_by_its_path(tmp_path: Path) -> None:
    rows = "".join(f"absent-{number}.mp4\n" for number in range(60))
    (tmp_path / "list.csv").write_text(f"url\n{rows}")
    corpus = read_corpus(str(tmp_path / "list.csv"), split_fractions=FRACTIONS)
    assert {clip.content_id for clip in corpus.clips} == {"missing"}
    assert set(splits_of(corpus).values()) == set(SPLITS)


@pytest.mark.parametrize(
    ("pattern", "path", "group"),
    [
        ("{show}/*", "friends/s1/e2.mp4", "friends"),
        ("{show}/*", "top.mp4", None),
        ("*/{show}/*.mp4", "corpus/friends/1.mp4", "friends"),
        ("*/{show}/*.mp4", "corpus/friends/s1/1.mp4", None),
        ("**/{show}-{season}/*", "a/b/friends-2/1.mp4", "friends/2"),
        ("{person}_*", "anna_1.mp4", "anna"),
        ("films.zip!{film}/*", "films.zip!vertigo/1.mp4", "vertigo"),
        ("a.b/{show}/*", "axb/friends/1.mp4", None),
    ],
)
def test_a_pattern_finds_the_group_in_a_path(pattern: str, path: str, group: str | None) -> None:
    assert group_pattern(pattern)(path) == group


@pytest.mark.parametrize("pattern", ["", "*/x", "{}/*", "{show/*", "{show}/{show}", "{a b}/*"])
def test_a_pattern_without_a_group_is_refused(pattern: str) -> None:
    with pytest.raises(CorpusError, match="group pattern"):
        group_pattern(pattern)


def test_a_group_lies_in_one_split_whatever_is_added_or_renamed_above_it(tmp_path: Path) -> None:
    write(tmp_path / "a", shows())
    corpus = read_corpus(str(tmp_path / "a"), split_fractions=FRACTIONS, group_by="{show}/*")
    found = {clip.group_name: clip.split for clip in corpus.clips}
    assert all(clip.split == found[clip.group_name] for clip in corpus.clips)
    assert set(found.values()) == set(SPLITS)
    assert "12 groups" in corpus.description

    write(tmp_path / "b", {f"moved/{path}": content for path, content in shows(20, 9).items()})
    more = read_corpus(str(tmp_path / "b"), split_fractions=FRACTIONS, group_by="*/{show}/*")
    assert {clip.group_name: clip.split for clip in more.clips}.items() >= found.items()


def manifest(folder: Path, rows: list[dict[str, str]]) -> str:
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(folder / "list.csv")


def test_a_manifest_names_groups_and_a_given_split_holds_for_their_other_clips(tmp_path: Path) -> None:
    write(tmp_path, {f"{number}.mp4": str(number) for number in range(30)} | {"copy.mp4": "0"})
    rows = [{"url": f"{number}.mp4", "group": f"g{number % 10}", "split": ""} for number in range(30)]
    rows.append({"url": "copy.mp4", "group": "", "split": ""})
    alone = splits_of(read_corpus(manifest(tmp_path, rows), split_fractions=(1.0, 0.0, 0.0)))
    assert set(alone.values()) == {"train"}
    rows[0]["split"] = "test"
    corpus = read_corpus(manifest(tmp_path, rows), split_fractions=(1.0, 0.0, 0.0))
    given = splits_of(corpus)
    # Of its group, and of its bytes.
    assert {path for path, split in given.items() if split == "test"} == {"0.mp4", "10.mp4", "20.mp4", "copy.mp4"}
    assert "10 groups, 1 clips in none" in corpus.description
    with pytest.raises(CorpusError, match="column 'groups' is unknown; did you mean 'group'"):
        read_corpus(manifest(tmp_path, [{"url": "0.mp4", "groups": "a"}]))


def split_of_groups(corpus: Corpus) -> dict[str | None, set[str | None]]:
    found: dict[str | None, set[str | None]] = {}
    for clip in corpus.clips:
        found.setdefault(clip.group_name, set()).add(clip.split)
    return found


def test_groups_that_share_a_file_lie_in_one_split_and_a_copy_without_a_group_with_them(tmp_path: Path) -> None:
    write(tmp_path, shows(24, 3))
    apart = split_of_groups(read_corpus(str(tmp_path), split_fractions=FRACTIONS, group_by="{show}/*"))
    other = next(show for show, splits in apart.items() if splits != apart["show0"])
    # A chain of three groups, of which the last and the first share nothing.
    write(tmp_path, {f"{other}/copy.mp4": "0 0", "between/0.mp4": "0 1", "between/1.mp4": "23 1", "top.mp4": "23 2"})
    corpus = read_corpus(str(tmp_path), split_fractions=FRACTIONS, group_by="{show}/*")
    together = split_of_groups(corpus)
    one_split = together["show0"]
    assert len(one_split) == 1
    assert one_split == together[other] == together["between"] == together["show23"]
    assert {splits_of(corpus)["top.mp4"]} == one_split
    assert set().union(*together.values()) == set(SPLITS)
    del together["between"], together[other], together["show23"], together[None]
    assert together.items() <= apart.items()


def test_a_group_in_two_given_splits_is_told(tmp_path: Path) -> None:
    write(tmp_path, {f"{number}.mp4": str(number) for number in range(4)})
    splits = ("train", "test", "train", "")
    rows = [{"url": f"{number}.mp4", "group": "g", "split": split} for number, split in enumerate(splits)]
    corpus = read_corpus(manifest(tmp_path, rows))
    assert "1 group; " in corpus.description
    assert "1 groups lie in more than one split, as the input says" in corpus.description
    assert splits_of(corpus)["3.mp4"] == "train"  # of its group's first clip


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
def test_splits_of_a_listing_that_does_not_fit_into_memory_are_the_same(tmp_path, monkeypatch, rows_at_once):
    contents = random.Random(0).choices(range(30), k=80)
    write(tmp_path, {f"{number:02d}.mp4": str(content) for number, content in enumerate(contents)})
    rows = [
        {"url": f"{number:02d}.mp4", "label": ["Sad", "", "Happy"][(number + content) % 3], "split": split,
         "group": group}
        for number, content, split, group in zip(
            range(80), contents, itertools.cycle(["", "", "", "", "test", "", "train"]),
            itertools.cycle([*"abcde", "", *"fgh", "", ""]), strict=False)
    ]  # fmt: skip
    read = partial(read_corpus, manifest(tmp_path, rows), split_fractions=FRACTIONS, label_conflicts="leave-out")
    whole = read()
    assert "left out" in whole.description
    monkeypatch.setattr("pipeline.corpus.table.ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr("pipeline.corpus.groups.ROWS_PER_PART", rows_at_once)
    monkeypatch.setattr("pipeline.corpus.groups.MEMORY_BYTES", 100)
    found = read()
    assert found.table.equals(whole.table)
    assert (found.description, found.ignored) == (whole.description, whole.ignored)


def made_rows(num_rows: int) -> BatchSpool:
    """Rows of CORPUS_SCHEMA with a content of their own each, but for the last two."""
    spool, whole = BatchSpool(), num_rows // 2**15
    for number in range(whole):
        digits = np.random.default_rng(number).bytes(16 * 2**15).hex()
        contents = [digits[32 * row : 32 * row + 32] for row in range(2**15)]
        if number == whole - 1:
            contents[-1] = contents[-2]
        columns = {
            "path": [f"train/Sad/{number:04d}{row:06d}.avi" for row in range(2**15)],
            "url": ["s3://made/x"] * 2**15,
            "content_id": contents,
            "size_bytes": [1] * 2**15,
            "split": ["train"] * (2**15 - 1) + ["test"],
            "is_split_given": [True] * 2**15,
        }
        values = [
            pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(2**15, field.type)
            for field in CORPUS_SCHEMA
        ]
        spool.append(pa.record_batch(values, schema=CORPUS_SCHEMA))
    return spool


@pytest.mark.lengthy
def test_the_same_bytes_are_looked_for_in_the_memory_of_a_part_of_the_files() -> None:
    rows = made_rows(2**19)  # All of them at once take 65 MiB, ten million more than 1 GiB.
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        kin = kin_of(rows, finds_conflicts=True, moves_splits=False)
    finally:
        pa.set_memory_pool(before)
    assert kin.num_across == 2
    assert pool.max_memory() < MEMORY_BYTES + 24 * 2**20


def test_the_same_bytes_under_two_labels_are_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, {"Sad/a.mp4": "same", "Happy/b.mp4": "same", "Happy/c.mp4": "other", "Happy/d.mp4": "other"})
    assert len(read_corpus(str(tmp_path)).clips) == 4
    with pytest.raises(CorpusError, match=r"2 clips have the bytes .*'Happy/b.mp4' and 'Sad/a.mp4'.*leave-out"):
        read_corpus(str(tmp_path), label_conflicts="refuse")
    corpus = read_corpus(str(tmp_path), label_conflicts="leave-out")
    assert sorted(splits_of(corpus)) == ["Happy/c.mp4", "Happy/d.mp4"]
    assert {item.path for item in corpus.ignored} == {"Sad/a.mp4", "Happy/b.mp4"}
    assert "2 left out, whose bytes lie under two labels" in corpus.description


def test_two_times_of_one_file_may_have_two_labels(tmp_path: Path) -> None:
    write(tmp_path, {"film.mp4": "film"})
    rows = [
        {"url": "film.mp4", "label": label, "start_seconds": start, "end_seconds": end}
        for label, start, end in (("Sad", "0", "1"), ("Happy", "1", "2"))
    ]
    corpus = read_corpus(manifest(tmp_path, rows), label_conflicts="refuse")
    assert len({clip.split for clip in corpus.clips}) == 1


def test_the_same_bytes_in_two_given_splits_are_told(tmp_path: Path) -> None:
    write(tmp_path, {f"{split}/Sad/{split}.avi": "same" for split in ("train", "test")})
    write(tmp_path, {f"train/{label}/x.avi": label for label in EMOTIONS})
    corpus = read_corpus(str(tmp_path))
    assert "2 files have the same bytes as one of another split" in corpus.description
    assert splits_of(corpus)["test/Sad/test.avi"] == "test"


# --- CAER-S ----------------------------------------------------------------------------------------------------------


def caer_s(folder: Path, *, train: int = 70, test: int = 30) -> None:
    for split, count in (("train", train), ("test", test)):
        write(folder, {f"{split}/{label}/{number:04d}.png": f"{split} {label} {number}" for label in EMOTIONS
                       for number in range(count)})  # fmt: skip


def test_shots_of_caer_s_are_cut_only_where_two_blocks_meet(tmp_path: Path) -> None:
    caer_s(tmp_path)
    corpus = read_corpus(str(tmp_path), split_scheme="shots")
    assert "split by shots" in corpus.description
    for label in EMOTIONS:
        # Pooled by their place in their split, every class is train, then validation, then test.
        placed = sorted(
            ((int(clip.path[-8:-4]) + 0.5) / (70 if clip.path.startswith("train") else 30), clip.path, clip.split)
            for clip in corpus.clips
            if clip.label == label
        )
        order = [SPLITS.index(str(split)) for _, _, split in placed]
        assert Counter(order) == {0: 70, 1: 10, 2: 20}
        assert sum(abs(one - other) for one, other in itertools.pairwise(order)) <= 4
    official = splits_of(read_corpus(str(tmp_path)))
    assert {split for path, split in official.items() if path.startswith("train")} == {"train"}
    again = read_corpus(str(tmp_path), split_scheme="shots")
    assert splits_of(again) == splits_of(corpus)


def test_a_scheme_of_caer_s_is_refused_for_any_other_input(tmp_path: Path) -> None:
    write(tmp_path, shows(2, 2))
    rows = [{"url": "show0/0.mp4"}]
    for source in (str(tmp_path), manifest(tmp_path, rows)):
        with pytest.raises(CorpusError, match="--split-scheme 'shots' is for CAER-S"):
            read_corpus(source, split_scheme="shots")


# --- The plan keeps what it decided ----------------------------------------------------------------------------------


def planned(output: Path, corpus: Corpus) -> tuple[Snapshot, Changes]:
    ledger = Ledger(str(output))
    snapshot = ledger.snapshot()
    snapshot.give(corpus.table)
    snapshot.recognise()
    changes = plan(ledger, snapshot, kind="examples", config={}, versions={}, clips_per_shard=4)
    return ledger.snapshot(), changes


def splits_planned(snapshot: Snapshot) -> dict[str, str | None]:
    return {clip.path: clip.split for unit in snapshot.units() for clip in unit.clips}


def test_the_plan_keeps_splits_of_another_rule_and_new_copies_and_groups_follow_it(tmp_path: Path) -> None:
    write(tmp_path / "in", shows(6, 4))
    found = read_corpus(str(tmp_path / "in"), split_fractions=FRACTIONS, group_by="{show}/*")
    place = found.table.schema.get_field_index("split")
    by_an_older_rule = ["test"] * found.table.num_rows
    table = found.table.set_column(place, found.table.schema.field("split"), [by_an_older_rule])
    planned(tmp_path / "out", replace(found, rows=spooled(table)))
    write(tmp_path / "in", {"show0/new.mp4": "a new clip of a planned show", "copied/0.mp4": "1 2"})
    write(tmp_path / "in", {"show3/1.mp4": "other bytes than were planned"})
    today = read_corpus(str(tmp_path / "in"), split_fractions=(1.0, 0.0, 0.0), group_by="{show}/*")
    assert set(splits_of(today).values()) == {"train"}
    snapshot, changes = planned(tmp_path / "out", today)
    assert changes.num_new == 3
    assert not changes.relabelled  # no false alarm of splits that a hash gave
    assert set(splits_planned(snapshot).values()) == {"test"}


def test_a_given_split_that_changed_is_still_told(tmp_path: Path) -> None:
    write(tmp_path, {f"{number}.mp4": str(number) for number in range(3)})
    rows = [{"url": f"{number}.mp4", "split": "train"} for number in range(3)]
    planned(tmp_path / "out", read_corpus(manifest(tmp_path, rows)))
    rows[1]["split"] = "test"
    snapshot, changes = planned(tmp_path / "out", read_corpus(manifest(tmp_path, rows)))
    assert changes.relabelled.examples == ("1.mp4",)
    assert set(splits_planned(snapshot).values()) == {"train"}


def test_a_file_that_takes_the_bytes_of_a_planned_one_follows_it_and_its_new_group_too(tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    write(folder, shows(12, 2))
    read = partial(read_corpus, str(folder), split_fractions=FRACTIONS, group_by="{show}/*")
    first = read()
    planned(output, first)
    before = splits_of(first)
    here, there = next(
        (one, other) for one, other in itertools.pairwise(sorted(before)) if before[one] != before[other]
    )
    # Other bytes at a path of no group: it keeps its split, but for bytes that another split has.
    write(folder, {here: (folder / there).read_text(), "a new show/0.mp4": "new", "a new show/1.mp4": "7 1"})
    snapshot, changes = planned(output, read())
    assert changes.num_new == 3
    found = splits_planned(snapshot)
    assert found["a new show/0.mp4"] == found["a new show/1.mp4"] == before["show7/1.mp4"]
    now = {clip.path: clip for unit in snapshot.units() for clip in unit.clips}
    assert now[here].content_id == now[there].content_id
    assert now[here].split == before[there]
