"""How work is cut: each actor gets several units where there are clips enough, and a user's own size is kept."""

import pytest

from pipeline.runtime.config import PoolConfig, num_actors


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


def test_thirty_videos_keep_every_actor_busy(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = PoolConfig(actors=3)
    num_units = -(-30 // config.clips_of_unit(30))
    assert num_units >= 4 * num_actors(config, num_units)
