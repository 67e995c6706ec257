"""What a corpus costs at a size: the calculation, the simulation, and the ledger of made-up clips."""

import json

import pytest

from benchmarks.driver import DriverConfig, driver, growth
from benchmarks.ledger import LedgerConfig, ledger, made_clips
from benchmarks.listing import ListingConfig, listing
from benchmarks.scaling import ScalingConfig, Waited, busy_share, driver_ms, scaling
from benchmarks.sizing import PlanConfig, clips_per_second_limits, plan, simulated_seconds
from benchmarks.viewer import QUESTIONS, ViewerConfig, viewer
from pipeline.runtime.pool import units_at_once

SMALL = {"study": "plan", "clips": 3200, "frames": 10, "detect_ms": 50.0, "decode_ms": 1.0, "fps": 25.0}


def test_parts_divide_what_drivers_do_but_not_the_listing():
    whole, parts = (PlanConfig(**SMALL, nodes=4, cpus_per_node=4, parts=count) for count in (1, 4))
    name = "the driver, handing out units"
    limits = [clips_per_second_limits(config, actors=16)[name] for config in (whole, parts)]
    assert limits[1] == 4 * limits[0]
    listing = whole.clips * whole.list_us / 1e6
    assert parts.driver_seconds - listing == pytest.approx((whole.driver_seconds - listing) / 4)
    assert simulated_seconds(parts, actors=16) <= simulated_seconds(whole, actors=16)


def test_hours_are_clips_times_core_seconds_over_the_cores(tmp_path):
    config = PlanConfig(**SMALL, mean_seconds=2.0, other_ms=450.0, nodes=2, cpus_per_node=4, output=str(tmp_path))
    assert config.core_seconds_per_clip == pytest.approx(0.5 + 0.05 + 0.45)
    found = plan(config)
    assert found["bottleneck"] == "the actors' cores"
    least = 15 + 3200 * 1.0 / 8 + found["driver_hours"] * 3600
    assert least < found["hours"] * 3600 < 1.05 * least
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


def test_actors_start_again_for_every_run_of_ray_data():
    sizes = {"clips_per_shard": 1, "clips": 4001}  # 2000 units at once
    one, other = (PlanConfig(**{**SMALL, **sizes}, start_seconds=seconds) for seconds in (1.0, 11.0))
    assert simulated_seconds(other, actors=4) - simulated_seconds(one, actors=4) == pytest.approx(30)
    # 64 for each of 100 actors
    assert simulated_seconds(other, actors=100) - simulated_seconds(one, actors=100) == pytest.approx(10)


def test_units_of_many_clips_are_handed_to_ray_fewer_at_a_time():
    assert units_at_once(2) == units_at_once(2, clips_per_unit=64) == 2000
    assert units_at_once(2, clips_per_unit=1024) == 128
    assert units_at_once(100, clips_per_unit=1024) == 6400


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


@pytest.mark.lengthy
def test_a_listing_of_made_up_keys_asks_once_a_page(tmp_path):
    found = listing(ListingConfig(study="listing", keys=2001, output=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["listing.json"]
    assert {(way["keys"], way["requests"]) for way in found["ways"].values()} == {(2001, 3)}
    assert all(way["server_cpu_seconds"] > 0 for way in found["ways"].values())


def test_actors_are_busy_from_when_all_have_begun_until_the_last_unit_is_handed_out():
    one = [Waited(actor="1", began=0.0, ended=10.0), Waited(actor="1", began=11.0, ended=20.0)]
    other = [Waited(actor="2", began=5.0, ended=10.0), Waited(actor="2", began=15.0, ended=99.0)]
    # From 5 to 15 s: the first worked 5 + 4 s of them, the second 5.
    assert busy_share([*one, *other]) == pytest.approx(14 / 20)
    with pytest.raises(ValueError, match="every actor had one unit"):
        busy_share([one[0], other[0]])


def test_the_drivers_time_for_a_unit_is_what_more_units_cost():
    rows = [{"units": 4, "driver_cpu_seconds": 3.04}, {"units": 8, "driver_cpu_seconds": 3.08}]
    assert driver_ms(rows) == pytest.approx(10.0)
    assert driver_ms(rows[:1]) is None


def test_scaling_refuses_a_run_that_would_show_nothing():
    with pytest.raises(ValueError, match="--units-per-actor is 1; give 2 or more"):
        ScalingConfig(study="scaling", units_per_actor=1)


@pytest.mark.slow
def test_waiting_actors_are_kept_at_work_and_nothing_but_the_figures_stays(tmp_path):
    config = ScalingConfig(study="scaling", actors=(1, 3), unit_seconds=1.0, units_per_actor=3, output=str(tmp_path))
    found = scaling(config)
    assert [path.name for path in tmp_path.iterdir()] == ["scaling.json"]
    assert [(row["actors"], row["units"], row["audit_holds"]) for row in found["rows"]] == [(1, 3, True), (3, 9, True)]
    assert all(0 < row["busy"] <= 1 for row in found["rows"])
    assert found["rows"][0]["times_one"] == 1.0


def test_growth_is_that_between_the_warm_up_and_the_last_clip():
    steady = [(clips, 300 + clips / 1000) for clips in range(200, 1000, 100)]
    assert growth([(0, 100.0), (100, 900.0), *steady, (1000, 5000.0)], num_clips=1000) == pytest.approx(100)
    assert growth(steady[:2], num_clips=1000) is None
    with pytest.raises(ValueError, match="--sample-seconds is 0; give more than 0"):
        DriverConfig(study="driver", sample_seconds=0)


@pytest.mark.slow
def test_a_driver_of_made_up_clips_is_looked_at_from_the_first_to_the_last(tmp_path):
    found = driver(DriverConfig(study="driver", clips=1000, sample_seconds=0.1, output=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["driver.json"]
    assert (found["units"], found["audit_holds"]) == (32, True)
    done = [clips for clips, _ in found["samples"]]
    assert (done[0], done[-1]) == (0, 1000)
    assert done == sorted(done)


@pytest.mark.lengthy
def test_made_labels_open_in_the_viewer_and_are_asked(tmp_path):
    config = ViewerConfig(study="viewer", clips=100, clips_per_shard=8, rounds=1, output=str(tmp_path))
    found = viewer(config)
    assert found["opened_again"]["cpu_seconds"] > 0
    assert found["questions"].keys() == QUESTIONS.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["viewer.json"]
