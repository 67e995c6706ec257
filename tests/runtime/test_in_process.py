"""Actors in threads of the job's own process: the same output, the same promises, and no Ray."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from pipeline.ledger.audit import audit
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.planning import plan_clips
from pipeline.preprocess.config import PreprocessConfig
from pipeline.preprocess.job import preprocess
from pipeline.records.clips import Clip, clip_table
from pipeline.records.columns import table_of
from pipeline.records.faces import EXAMPLE_SCHEMA
from pipeline.records.outcomes import Outcome, State, interrupted_outcome
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.config import PoolConfig, num_actors
from pipeline.runtime.in_process import run_in_process
from pipeline.runtime.job import ActorSpec, SystematicFault, go_on
from pipeline.runtime.run import needs_ray_for
from pipeline.storage.retry import StorageError
from pipeline.synthetic.corpus import make_corpus

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


class Stub:
    """An actor of a made kind: `fails` raises for a unit, `ends` gives the state of a clip."""

    def __init__(self, ledger_url, *, fails=lambda: None, ends=lambda _: State.DONE, begins=lambda _: None):
        self._ledger, self._fails, self._ends, self._begins = Ledger(ledger_url), fails, ends, begins
        self.clip_ended = go_on
        self.is_closed = False
        built.append(self)

    def run(self, unit):
        self._begins(unit)
        self._fails()
        outcomes, goes_on = [], True
        for clip in unit.clips:
            if not goes_on:
                outcomes.append(interrupted_outcome(clip))
                continue
            state = self._ends(clip)
            reason = None if state is State.DONE else "exception"
            outcomes.append(Outcome(clip_id=clip.clip_id, path=clip.path, state=state, reason=reason))
            goes_on = self.clip_ended(outcomes[-1])
        return self._ledger.commit(
            unit, tables={"examples": table_of([], EXAMPLE_SCHEMA)}, outcomes=outcomes, facts={"by": "stub"}
        )

    def close(self):
        self.is_closed = True


built = []


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_corpus(folder, clips_per_class=(3, 0, 0), seed=1)
    return folder


def some_of(made, number, folder):
    """The first clips of a corpus in a folder of their own."""
    folder.mkdir()
    for path in sorted(made.glob("train/*/*.avi"))[:number]:
        shutil.copy(path, folder)


@pytest.fixture
def planned(tmp_path):
    """Twelve clips in units of 4, planned; and what of it."""
    clips = [
        Clip(
            clip_id=f"{number:020x}", path=f"{number:02d}.mp4", url=f"/v/{number:02d}.mp4", size_bytes=1, content_id=""
        )
        for number in range(12)
    ]
    built.clear()
    ledger = Ledger(str(tmp_path / "out"))
    options = {"kind": "examples", "config": {}, "versions": {}}
    snapshot, _ = plan_clips(ledger, clip_table(clips), clips_per_shard=4, **options)
    return ledger, snapshot


def spec(**options):
    return ActorSpec(build=lambda *, ledger_url: Stub(ledger_url, **options))


def test_every_unit_is_committed_by_one_actor_which_is_closed(planned):
    ledger, snapshot = planned
    assert run_in_process(ledger, snapshot, spec()) == []
    assert len(ledger.committed_units()) == 3
    assert [each.is_closed for each in built] == [True]
    ledger.store_listing(snapshot)
    found = audit(snapshot)
    assert found.holds
    assert found.num_by_state["done"] == 12


def test_an_actor_that_fails_is_built_anew_and_the_unit_stays_pending_after_three(planned):
    ledger, snapshot = planned
    calls = []

    def fails():
        calls.append(1)
        if len(calls) <= 4:  # The first unit thrice, the second once.
            raise RuntimeError(f"broke {len(calls)}")

    errors = run_in_process(ledger, snapshot, spec(fails=fails))
    assert errors == [f"RuntimeError: broke {number}" for number in (1, 2, 3, 4)]
    assert sorted(ledger.committed_units()) == ["g000-u000001", "g000-u000002"]
    assert snapshot.pending().num_units == 1
    assert len(built) == 5
    assert all(each.is_closed for each in built)
    assert run_in_process(ledger, snapshot, spec()) == []
    assert not snapshot.is_pending


def test_actors_are_at_work_at_once_each_at_a_unit_of_its_own(planned):
    ledger, snapshot = planned
    both, units = threading.Barrier(2, timeout=30), []

    def begins(unit):
        units.append(unit.unit_id)
        if len(units) < 3:
            both.wait()  # Broken, and raised, where one waits for the other's end.

    assert run_in_process(ledger, snapshot, spec(begins=begins), actors=2) == []
    assert sorted(units) == sorted(ledger.committed_units()) == [f"g000-u{number:06d}" for number in range(3)]
    assert [each.is_closed for each in built] == [True, True]


def test_more_actors_than_units_do_no_harm(planned):
    ledger, snapshot = planned
    assert run_in_process(ledger, snapshot, spec(), actors=7) == []
    assert len(ledger.committed_units()) == len(built) == 3


@pytest.mark.parametrize(
    "error", [StorageError("the store is down"), UsageError("no such model"), SystemExit("a library gives up")]
)
@pytest.mark.parametrize("actors", [1, 2])
def test_what_every_unit_would_meet_ends_the_run(planned, error, actors):
    ledger, snapshot = planned

    def fails():
        raise error

    with pytest.raises(type(error), match=str(error)):
        run_in_process(ledger, snapshot, spec(fails=fails), actors=actors)
    assert len(built) <= actors
    assert not ledger.committed_units()


def test_what_ends_the_run_lets_the_other_actor_end_its_clip_and_no_more(planned):
    ledger, snapshot = planned
    at_work, has_failed, done = threading.Event(), threading.Event(), []

    def begins(unit):
        if unit.unit_id == "g000-u000000":
            assert at_work.wait(30)
            has_failed.set()
            raise StorageError("the store is down")

    def ends(clip):
        at_work.set()
        assert has_failed.wait(30)
        time.sleep(0.5)  # The driver hears of it meanwhile.
        done.append(clip.path)
        return State.DONE

    with pytest.raises(StorageError, match="the store is down"):
        run_in_process(ledger, snapshot, spec(begins=begins, ends=ends), actors=2)
    (entry,) = ledger.entries()  # Committed before the run is over: nobody is at work any more.
    assert [row["state"] for row in entry["outcomes"]] == ["done", *["retryable"] * 3]
    assert done == ["04.mp4"]


def test_a_fault_of_our_own_code_in_ten_clips_ends_the_run(planned):
    ledger, snapshot = planned
    with pytest.raises(SystematicFault, match="12 clips met a fault of our own code"):
        run_in_process(ledger, snapshot, spec(ends=lambda _: State.QUARANTINED), actors=2)


@pytest.mark.lengthy
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_the_clip_at_work_end_and_commits_its_unit(planned, number):
    ledger, snapshot = planned
    before = signal.getsignal(number)
    signal.signal(number, signal.default_int_handler)

    def ends(clip):
        if clip.path == "01.mp4":
            os.kill(os.getpid(), number)
            time.sleep(0.5)
        return State.DONE

    try:
        with pytest.raises(KeyboardInterrupt):
            run_in_process(ledger, snapshot, spec(ends=ends))
    finally:
        signal.signal(number, before)
    (entry,) = ledger.entries()
    assert [row["state"] for row in entry["outcomes"]] == ["done", "done", "retryable", "retryable"]
    assert [row["reason"] for row in entry["outcomes"]][2:] == ["interrupted"] * 2


def test_what_the_actor_sets_for_its_process_is_taken_back(planned, monkeypatch):
    ledger, snapshot = planned
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = torch.get_num_threads()

    def sets():
        os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
        torch.set_num_threads(before + 1)

    run_in_process(ledger, snapshot, spec(fails=sets))
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("num_clips", "options", "expected"),
    [
        (1, {}, False),
        (2, {}, True),
        (8, {"actors": 1, "clips_per_shard": 8}, False),
        (9, {"actors": 1, "clips_per_shard": 8}, True),
        (2, {"actors": 2, "clips_per_shard": 8}, True),
        (1000, {"no_ray": True}, False),
        (1000, {"no_ray": True, "actors": 1, "clips_per_shard": 8}, False),
        (1, {"actors": 2}, False),
        (1000, {"no_ray": True, "actors": 8}, False),
    ],
)
def test_ray_is_for_more_than_one_actor(num_clips, options, expected):
    assert needs_ray_for(num_clips, ActorSpec(build=Stub), PoolConfig(**options)) is expected


def test_without_ray_there_is_a_thread_for_each_cpu_unless_it_is_said(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    assert num_actors(PoolConfig(no_ray=True), 1000) == 9
    assert num_actors(PoolConfig(no_ray=True), 4) == 4
    assert num_actors(PoolConfig(no_ray=True, actors=3), 1000) == 3


def test_ray_is_for_a_cluster_that_is_named_and_for_what_actors_share(monkeypatch):
    assert needs_ray_for(1, ActorSpec(build=Stub, num_gpus=0.5), PoolConfig())
    assert needs_ray_for(1, ActorSpec(build=Stub, start_shared=lambda: {"a": 1}), PoolConfig())
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert PoolConfig().joins_cluster
    assert not PoolConfig(no_ray=True).joins_cluster
    assert not needs_ray_for(100, ActorSpec(build=Stub), PoolConfig(no_ray=True))


def test_what_needs_ray_is_refused_where_it_is_forbidden():
    with pytest.raises(UsageError, match="--no-ray: actors share GPUs by Ray; leave it out"):
        needs_ray_for(1, ActorSpec(build=Stub, num_gpus=0.5), PoolConfig(no_ray=True))


@pytest.mark.lengthy
def test_one_clip_starts_no_ray_and_leaves_no_process(made, tmp_path):
    some_of(made, 1, tmp_path / "in")
    code = (
        "import sys, psutil\n"
        "from pipeline.preprocess.config import PreprocessConfig\n"
        "from pipeline.preprocess.job import preprocess\n"
        f"found = preprocess(PreprocessConfig(input={str(tmp_path / 'in')!r}, output={str(tmp_path / 'out')!r},"
        " frames_per_clip=2, detector='dlib-hog'))\n"
        "assert found.exit_code == 0 and found.audit.holds, found\n"
        "assert 'ray' not in sys.modules\n"
        "names = [' '.join(each.cmdline()) for each in psutil.Process().children(recursive=True)]\n"
        "assert not any('ray' in name.lower().split('/')[-1] for name in names), names\n"
        "from multiprocessing import active_children\n"
        "assert not active_children(), active_children()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, check=True, timeout=120)


@pytest.mark.ray
def test_the_output_is_the_one_that_ray_gives(made, tmp_path, ray_cluster, monkeypatch):
    some_of(made, 3, tmp_path / "in")
    options = {"frames_per_clip": 2, "detector": "dlib-hog", "clips_per_shard": 2, "page": False}

    def manifest(name, **changes):
        preprocess(PreprocessConfig(input=str(tmp_path / "in"), output=str(tmp_path / name), **options, **changes))
        return (tmp_path / name / "manifest.json").read_bytes()

    here = manifest("here", no_ray=True, actors=1)
    assert b'"sha256"' in here
    assert manifest("by-two", no_ray=True, actors=2) == here
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    assert manifest("ray", actors=1) == here


@pytest.mark.lengthy
def test_without_ray_no_cluster_is_asked(made, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # Nothing answers there.
    some_of(made, 2, tmp_path / "in")
    values = {"input": str(tmp_path / "in"), "frames_per_clip": 1, "page": False}
    run = preprocess(PreprocessConfig(**values, output=str(tmp_path / "out"), no_ray=True))
    assert run.summary["done"] == 2
    with pytest.raises(UsageError, match=r"RAY_ADDRESS is '127\.0\.0\.1:1': nothing answers there"):
        preprocess(PreprocessConfig(**values, output=str(tmp_path / "other")))
