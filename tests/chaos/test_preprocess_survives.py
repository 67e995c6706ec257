"""SIGKILL of driver, actor and sandboxed child at random moments; the resumed output equals the undisturbed one."""

from __future__ import annotations

import os
import random
import time

import harness
import pytest

from pipeline.synthetic.corpus import make_corpus

KILLS = harness.num_kills_asked(1)
SEED = int(os.environ.get("CHAOS_SEED", "0"))
# HOG at twice the size keeps an actor about a second at each clip, which leaves moments to be killed in.
FLAGS = (
    "--detector",
    "dlib-hog",
    "--upsample",
    "1",
    "--frames-per-clip",
    "4",
    "--clips-per-shard",
    "2",
    "--page=false",
)

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, clips_per_class=(3, 0, 0), seed=0)
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    code = harness.finish_job(
        "preprocess.py", "--input", str(corpus), "--output", str(output), *FLAGS, log=output.parent / "log"
    )
    assert code == 0, (output.parent / "log").read_text()
    return output


def assert_same(output, undisturbed):
    rows = harness.rows_of(output)
    assert rows == harness.rows_of(undisturbed)
    assert len(rows) == len(set(rows)) == harness.rows_by_glob(output) > 0
    assert harness.outcomes_of(output) == harness.outcomes_of(undisturbed)
    assert (output / "_SUCCESS").exists()


def wait_for_a_moment(job, output, chance, *, num_committed):
    """Wait for a random moment: during the start, or soon after the first unit of this run is committed. Returns the
    processes that the job started."""
    seen = set()
    in_the_start = chance.random() < 0.25
    deadline = time.monotonic() + (chance.uniform(1, 8) if in_the_start else 120)
    while time.monotonic() < deadline and job.poll() is None:
        seen |= harness.workers(job)
        if not in_the_start and len(harness.entries_of(output)) > num_committed:
            in_the_start, deadline = True, time.monotonic() + chance.uniform(0, 3)
        time.sleep(0.1)
    return seen


# With Ray's actors, and with threads of the driver.
BOTH_WAYS = pytest.mark.parametrize("way", [(), ("--no-ray", "--actors", "2")], ids=["ray", "threads"])


@BOTH_WAYS
def test_a_killed_driver_loses_and_repeats_nothing(corpus, undisturbed, tmp_path, way):
    output, log = tmp_path / "out", tmp_path / "log"
    arguments = ("--input", str(corpus), "--output", str(output), *FLAGS, *way)
    chance = random.Random(SEED)
    kills, trial, committed = 0, 0, {}
    while kills < KILLS:
        job = harness.start_job("preprocess.py", *arguments, log=log)
        seen = wait_for_a_moment(job, output, chance, num_committed=len(committed))
        if job.poll() is not None:  # It was done before its moment came: go on with a new output.
            assert job.returncode == 0, log.read_text()
            assert_same(output, undisturbed)
            trial, committed = trial + 1, {}
            output = tmp_path / f"out-{trial}"
            arguments = ("--input", str(corpus), "--output", str(output), *FLAGS, *way)
            continue
        harness.kill_job(job)
        kills += 1
        assert harness.wait_for_orphans(seen) == []
        now = harness.entries_of(output)
        assert committed.items() <= now.items()  # Finished units were not done again.
        committed = now
    assert harness.finish_job("preprocess.py", *arguments, log=log) == 0, log.read_text()
    assert committed.items() <= harness.entries_of(output).items()
    assert_same(output, undisturbed)
    print(f"\ndriver: {kills} kills, 0 lost, 0 double")


@pytest.mark.parametrize(
    "part",
    [
        ("actors", (2.0, 5.0), ()),
        ("sandboxed_children", (2.0, 4.0), ()),
        ("sandboxed_children", (1.0, 3.0), ("--no-ray", "--actors", "2")),
    ],
    ids=["actor", "sandboxed child", "sandboxed child of a thread"],
)
def test_a_killed_part_loses_and_repeats_nothing(corpus, undisturbed, tmp_path, part):
    victims, pause, way = part
    kills = trial = 0
    while kills < KILLS:
        output, log = tmp_path / f"out-{trial}", tmp_path / f"log-{trial}"
        arguments = ("--input", str(corpus), "--output", str(output), *FLAGS, *way)
        job = harness.start_job("preprocess.py", *arguments, log=log)
        find = getattr(harness, victims)
        kills += harness.kill_some(job, find, num_kills=min(3, KILLS - kills), seed=SEED + trial, pause=pause)
        assert job.wait(timeout=600) == 0, log.read_text()
        assert_same(output, undisturbed)
        trial += 1
    print(f"\n{victims}: {kills} kills in {trial} runs, 0 lost, 0 double")
