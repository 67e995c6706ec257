"""What a corpus costs at a size: the calculation, the simulation, and the ledger of made-up clips."""

import json

import pytest

from pipeline.benchmark.ledger import LedgerConfig, ledger, made_clips
from pipeline.benchmark.listing import ListingConfig, listing
from pipeline.benchmark.sizing import PlanConfig, clips_per_second_limits, plan, simulated_seconds

SMALL = {"study": "plan", "clips": 3200, "frames": 10, "detect_ms": 50.0, "decode_ms": 1.0, "fps": 25.0}


def test_hours_are_clips_times_core_seconds_over_the_cores(tmp_path):
    config = PlanConfig(**SMALL, mean_seconds=2.0, other_ms=450.0, nodes=2, cpus_per_node=4, output=str(tmp_path))
    assert config.core_seconds_per_clip == pytest.approx(0.5 + 0.05 + 0.45)
    found = plan(config)
    assert found["bottleneck"] == "the actors' cores"
    assert found["hours"] * 3600 == pytest.approx(15 + 3200 * 1.0 / 8 + found["driver_hours"] * 3600)
    assert found["driver_hours"] * 3600 == pytest.approx(3200 * (config.plan_us + config.list_us) / 1e6)
    assert found["dollars"] == pytest.approx(found["hours"] * 2 * 0.36)
    assert json.loads((tmp_path / "plan.json").read_text()) == found


def test_the_driver_binds_where_units_are_short_and_actors_many():
    config = PlanConfig(**SMALL, clips_per_shard=1)
    limits = clips_per_second_limits(config, actors=1000)
    assert min(limits, key=lambda name: limits[name]) == "the driver, handing out units"
    assert limits["the driver, handing out units"] == pytest.approx(50)


def test_the_simulation_agrees_with_the_sum_for_one_actor_and_never_beats_the_cores():
    config = PlanConfig(**SMALL)
    work = config.clips * config.core_seconds_per_clip
    assert simulated_seconds(config, actors=1) == pytest.approx(work + 15, rel=0.05)
    for actors in (2, 8, 64):
        assert simulated_seconds(config, actors=actors) > 0.95 * work / actors
    assert simulated_seconds(config, actors=10_000) == simulated_seconds(config, actors=100)  # 100 units


def test_a_size_of_nothing_is_refused():
    with pytest.raises(ValueError, match="--nodes is 0; give more than 0"):
        PlanConfig(study="plan", nodes=0)


def test_a_ledger_of_made_up_clips_holds_and_leaves_only_its_figures(tmp_path):
    found = ledger(LedgerConfig(study="ledger", clips=100, clips_per_shard=8, output=str(tmp_path)))
    assert found["audit_holds"]
    assert "100 inputs = 100 done" in found["audit"]
    assert found["units"] == 13
    assert all(step["peak_memory_mib"] > 0 for step in found["steps"])
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]
    assert len(set(made_clips(250)["clip_id"].to_pylist())) == 250


def test_a_listing_of_made_up_keys_asks_once_a_page(tmp_path):
    found = listing(ListingConfig(study="listing", keys=2001, output=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["listing.json"]
    assert {(way["keys"], way["requests"]) for way in found["ways"].values()} == {(2001, 3)}
    assert all(way["server_cpu_seconds"] > 0 for way in found["ways"].values())
