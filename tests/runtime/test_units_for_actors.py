"""How work is cut: each actor gets several units where there are clips enough, and a user's own size is kept."""

import pytest

from pipeline.runtime.config import PoolConfig, num_actors


@pytest.mark.parametrize(
    ("num_clips", "actors", "size"),
    [(1, 1, 1), (7, 2, 1), (30, 2, 3), (320, 2, 32), (1_000_000, 2, 32), (1_000_000, 1000, 32), (8000, 1000, 2)],
)
def test_units_for_actors(num_clips, actors, size):
    assert PoolConfig().clips_of_unit(num_clips, num_actors=actors) == size
    assert PoolConfig(clips_per_shard=5).clips_of_unit(num_clips, num_actors=actors) == 5


def test_thirty_videos_keep_every_actor_busy(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = PoolConfig(actors=3)
    num_units = -(-30 // config.clips_of_unit(30, num_actors=num_actors(config, 30)))
    assert num_units >= 4 * num_actors(config, num_units)
