"""Clips of two splits that look alike are found, counted and listed."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from example_shards import drawn_example
from PIL import Image, ImageEnhance, ImageFilter

from pipeline.faces.crops import encode_image
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.planning import plan_clips
from pipeline.preprocess import look_alikes as module
from pipeline.preprocess.job import list_look_alikes
from pipeline.preprocess.look_alikes import COLUMNS, NAME, frame_hash, look_alikes
from pipeline.records.clips import Clip, clip_table
from pipeline.records.faces import Example
from pipeline.records.outcomes import Outcome, State


def picture(seed: int) -> Image.Image:
    """Blurred noise: shapes such as a scene has."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((224, 224), Image.Resampling.BICUBIC)


def example(image: Image.Image) -> Example:
    drawn = drawn_example(0, label="Sad", split="train")
    values = {name: getattr(drawn, name) for name in type(drawn).__dataclass_fields__}
    return Example(**values | {"context_jpeg": encode_image(np.asarray(image))})


def bits_apart(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_a_hash_is_near_for_frames_of_one_shot_and_far_for_others():
    image = picture(0)
    found = frame_hash(example(image))
    assert len(found) == 16
    moved = image.transform(image.size, Image.Transform.AFFINE, (1, 0, 2, 0, 1, 1))
    for other in (image.filter(ImageFilter.GaussianBlur(1)), ImageEnhance.Brightness(image).enhance(0.8), moved):
        assert bits_apart(found, frame_hash(example(other))) <= module.MAX_BITS_APART
    assert all(bits_apart(found, frame_hash(example(picture(seed)))) > 12 for seed in range(1, 20))


def finished(folder: Path, clips: dict[str, tuple[str | None, str | None]]) -> Ledger:
    """A ledger of clips that are done: of each its split and hash."""
    ledger = Ledger(str(folder))
    planned = [
        Clip(
            clip_id=f"id-{path.partition('.')[0]}",
            path=path,
            url=path,
            size_bytes=1,
            content_id=path,
            label="Sad",
            split=split,
        )
        for path, (split, _) in clips.items()
    ]
    options = {"kind": "examples", "config": {}, "versions": {}, "clips_per_shard": 100}
    snapshot, _ = plan_clips(ledger, clip_table(planned), **options)
    for unit in snapshot.pending().of("compute"):
        outcomes = [
            Outcome(clip_id=each.clip_id, path=each.path, state=State.DONE, num_examples=1,
                    frame_hash=clips[each.path][1])
            for each in unit.clips
        ]  # fmt: skip
        ledger.commit(unit, tables={}, outcomes=outcomes, facts={})
    return ledger


@pytest.mark.parametrize("flipped", [(), (0,), (15, 16), (3, 40, 63), (17, 18, 19)])
def test_clips_that_look_alike_are_found_wherever_their_bits_differ(tmp_path: Path, flipped: tuple[int, ...]):
    one = 0x0123456789ABCDEF
    other = one
    for bit in flipped:
        other ^= 1 << bit
    clips = {"a.png": ("train", f"{one:016x}"), "b.png": ("test", f"{other:016x}")}
    clips |= {"far.png": ("test", f"{one ^ 0xF:016x}"), "same split.png": ("train", f"{one:016x}")}
    clips |= {"none.png": ("test", None), "unsplit.png": (None, f"{one:016x}")}
    found = look_alikes(finished(tmp_path, clips).snapshot())
    assert found.num_clips == 1
    assert list(found.rows[0]) == [
        *("id-b", "b.png", "test", "Sad"), *("id-a", "a.png", "train", "Sad"), len(flipped),
    ]  # fmt: skip


def test_pictures_without_a_pattern_are_like_no_other(tmp_path: Path):
    clips = {"a.png": ("train", f"{0:016x}"), "b.png": ("test", f"{1:016x}"), "c.png": ("test", "f" * 16)}
    clips["d.png"] = ("train", "f" * 16)
    assert look_alikes(finished(tmp_path, clips).snapshot()).rows == []


def test_what_looks_alike_is_listed_and_told_and_goes_when_it_is_no_more(tmp_path: Path, capsys, monkeypatch):
    look = "0f1e2d3c4b5a6978"
    ledger = finished(tmp_path, {"ä,b.png": ("train", look), "c.png": ("validation", look), "d.png": ("test", look)})
    assert list_look_alikes(ledger, ledger.snapshot()) == {"look_alikes": 2}
    told = capsys.readouterr()
    said = "2 clips of validation and test look like one of another split, which flatters what is measured on them"
    assert f"{said}: {tmp_path}/{NAME}" in told.out + told.err
    rows = list(csv.DictReader(io.StringIO(ledger.storage.read(NAME).decode())))
    assert list(rows[0]) == list(COLUMNS)
    assert {(row["path"], row["like_path"]) for row in rows} == {
        *(("c.png", "ä,b.png"), ("c.png", "d.png"), ("d.png", "ä,b.png"), ("d.png", "c.png")),
    }
    monkeypatch.setattr(module, "MAX_CLIPS", 2)
    assert list_look_alikes(ledger, ledger.snapshot()) == {"look_alikes": None}
    assert not ledger.storage.exists(NAME)
