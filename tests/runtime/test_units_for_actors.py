"""How work is cut: each actor gets several units where there are clips enough, and a user's own size is kept."""

import pytest

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.planning import plan
from pipeline.records.clips import Clip, clip_table
from pipeline.runtime.config import PoolConfig, num_actors


def clip(number, *, split=None):
    path = f"{number:03d}.mp4"
    return Clip(clip_id=f"{number:020x}", path=path, url=f"/videos/{path}", size_bytes=1, content_id="", split=split)


@pytest.mark.parametrize(
    ("num_clips", "actors", "size"),
    [(1, 1, 1), (7, 2, 1), (30, 2, 3), (320, 2, 32), (1_000_000, 2, 32), (1_000_000, 1000, 32), (8000, 1000, 2)],
)
def test_units_for_actors(num_clips, actors, size):
    assert PoolConfig(actors=actors).clips_of_unit(num_clips) == size
    assert PoolConfig(actors=actors, clips_per_shard=5).clips_of_unit(num_clips) == 5


def test_copies_which_no_actor_does_make_large_units_or_those_that_were_asked_for():
    assert PoolConfig(actors=2).clips_of_unit(0) == 32
    assert PoolConfig(actors=2, clips_per_shard=5).clips_of_unit(0) == 5


def test_the_last_units_of_a_run_are_smaller_unless_a_user_says_the_size(tmp_path):
    assert PoolConfig(actors=2, clips_per_shard=5).tail_clips(80) == 0
    assert PoolConfig(actors=2).tail_clips(0) == 0
    config, clips = PoolConfig(actors=2), [clip(number) for number in range(83)]
    snapshot = Ledger(str(tmp_path)).snapshot()
    snapshot.give(clip_table(clips))
    size, tail = config.clips_of_unit(83), config.tail_clips(83)
    assert (size, tail) == (10, 20)
    options = {"kind": "examples", "config": {}, "versions": {}}
    plan(Ledger(str(tmp_path)), snapshot, clips_per_shard=size, tail_clips=tail, **options)
    units = list(snapshot.pending())
    assert [len(unit.clips) for unit in units] == [10] * 6 + [3] + [3] * 6 + [2]
    assert [unit.unit_id for unit in units] == [f"g000-u{number:06d}" for number in range(14)]
    assert sorted(each.path for unit in units for each in unit.clips) == sorted(each.path for each in clips)


@pytest.mark.parametrize("tail", [1, 7, 40, 41, 1000])
def test_smaller_units_at_the_end_keep_splits_apart_and_every_clip_once(tmp_path, tail):
    clips = [clip(number, split=("train", "validation")[number % 8 == 0]) for number in range(41)]
    ledger = Ledger(str(tmp_path))
    snapshot = ledger.snapshot()
    snapshot.give(clip_table(clips))
    plan(ledger, snapshot, kind="examples", config={}, versions={}, clips_per_shard=8, tail_clips=tail)
    units = list(snapshot.pending())
    assert all(len({each.split for each in unit.clips}) == 1 for unit in units)
    assert sorted(each.path for unit in units for each in unit.clips) == sorted(each.path for each in clips)
    assert len({unit.unit_id for unit in units}) == len(units)
    assert sum(len(unit.clips) for unit in units if len(unit.clips) <= 2) >= min(tail, 41) - 1


def test_thirty_videos_keep_every_actor_busy(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = PoolConfig(actors=3)
    num_units = -(-30 // config.clips_of_unit(30))
    assert num_units >= 4 * num_actors(config, num_units)
