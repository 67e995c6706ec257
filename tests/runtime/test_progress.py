"""Progress moves clip by clip, the time left is right, and an interrupt loses the clips at work alone."""

import io
import os
import signal
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
import ray
from rich.console import Console

from benchmarks.scaling import WaitingActor
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.planning import plan_clips
from pipeline.ledger.units import Unit
from pipeline.records.clips import Clip, clip_table
from pipeline.records.outcomes import Outcome, State
from pipeline.runtime import console, counting, pool
from pipeline.runtime.cluster import started_ray
from pipeline.runtime.config import PoolConfig
from pipeline.runtime.job import ActorSpec
from pipeline.runtime.progress import ProgressDisplay, TimeLeft, in_words


def quiet_display(num_clips=8):
    return ProgressDisplay(num_clips, terminal=Console(file=io.StringIO(), width=80, force_terminal=True))


def counts(**states):
    return {"states": states, "num_examples": 2 * sum(states.values()), "seconds": 1.0 * sum(states.values())}


def entry(unit, **states):
    rows = [{"state": state, "num_examples": 2} for state, count in states.items() for _ in range(count)]
    return {"unit": unit, "outcomes": rows, "facts": {}}


def shown(display):
    return display._bar.tasks[0].completed


def test_clips_of_units_at_work_count_once_also_where_their_counts_come_late():
    display, waiting = quiet_display(), {"a", "b"}
    display.note({"a": counts(done=1), "b": counts(no_face=1)}, waiting)
    assert shown(display) == 2
    display.note({"a": counts(done=3)}, waiting)
    assert shown(display) == 4
    waiting.discard("a")
    display.add(entry("a", done=3, quarantined=1))
    assert shown(display) == 5
    display.note({"a": counts(done=3)}, waiting)  # Told before the unit ended, and taken after its entry.
    assert shown(display) == 5
    assert display._words.startswith("3 done, 1 no_face, 1 quarantined, 10 examples, ")


def test_a_unit_that_begins_again_after_its_actor_died_counts_anew():
    display = quiet_display()
    display.note({"a": counts(done=3)}, {"a"})
    display.note({"a": counts()}, {"a"})
    assert shown(display) == 0


@pytest.mark.parametrize("actors", [1, 2, 16])
def test_the_time_left_is_within_a_third_from_a_quarter_on_and_there_after_the_first_clip(actors):
    load_seconds, clip_seconds, num_clips = 9.0, 1.3, 120
    left = TimeLeft(num_clips, actors=actors)
    assert left.seconds(5.0) is None
    ends = sorted(load_seconds + clip_seconds * (1 + n // actors) + 0.05 * (n % actors) for n in range(num_clips))
    for done, now in enumerate(ends, 1):
        left.update(done, now=now, seconds_of_clips=done * clip_seconds)
        real = ends[-1] - now
        if done >= num_clips / 4 and real > 2:
            assert left.seconds(now) == pytest.approx(real, rel=1 / 3)
        assert left.seconds(now) is not None
    assert left.seconds(ends[-1] + 5) == 0


def test_the_time_left_follows_a_machine_that_is_free_again():
    left, now = TimeLeft(100, actors=2), 0.0
    for done in range(1, 81):
        now += 10.0 if done <= 30 else 1.0
        left.update(done, now=now, seconds_of_clips=now)
    assert left.seconds(now) == pytest.approx(20, rel=1 / 3)


def test_a_last_clip_that_takes_longer_than_the_others_is_never_about_to_end():
    left = TimeLeft(30, actors=2)
    for done in range(1, 30):
        left.update(done, now=float(done), seconds_of_clips=2.0 * done)
    assert left.seconds(29.0) == pytest.approx(1, rel=1 / 3)
    assert left.seconds(49.0) >= 5
    left.update(30, now=49.0, seconds_of_clips=80.0)
    assert left.seconds(50.0) == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (45, "45 s"),
        (99.7, "2 min"),
        (3000, "50 min"),
        (7200, "2 h 0 min"),
        (12000, "3 h 20 min"),
        (1e6, "12 days"),
    ],
)
def test_times_are_said_as_a_person_says_them(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.parametrize("num_clips", [30, 123_456_789])
def test_at_80_columns_the_bar_is_one_line_and_no_word_is_broken(num_clips):
    said = io.StringIO()
    terminal = Console(file=said, force_terminal=True, width=80, color_system=None)
    display = ProgressDisplay(num_clips, what="clips and segments", terminal=terminal)
    display.note({"a": counts(done=num_clips // 2, no_face=3)}, {"a"})
    terminal.print(display._picture())
    lines = said.getvalue().splitlines()
    assert len(lines[0]) <= 80
    assert " left" in lines[0]
    assert f"/{num_clips} clips and segments" in lines[0]
    words = " ".join(lines[1:]).split()
    assert words == display._words.split()


@pytest.mark.parametrize(
    ("values", "has_told", "said"),
    [
        (("s3://bucket/videos", 3, None, "out"), False, ["waiting for an answer of s3://bucket/videos"]),
        (("s3://key:secret@a/b", "gs://c"), False, ["waiting for an answer of s3://…@a/b and of gs://c"]),
        (("s3://bucket/videos",), True, []),
        (("videos", "out"), False, []),
    ],
)
def test_a_store_that_has_not_answered_is_named_unless_something_was_told(values, has_told, said, monkeypatch, capsys):
    monkeypatch.setitem(console._output, "has_told", has_told)
    with console.told_while_silent(values, after_seconds=0.0):
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()
    assert capsys.readouterr().err.splitlines() == said


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "line",
    [
        "checked: the output is writable, the first of two writers wins, 9 GiB free; decoders h264, hevc, mpeg4, av1",
        "page: /a/very/long/path/" + "x" * 90 + "/report.html is there",
        "    indented by four and then so long that it has to go on in the line below, which is indented further",
        "short",
        "",
    ],
)
def test_lines_break_between_words_on_a_terminal_and_nowhere_else(line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for stream, is_broken in ((Terminal(), len(line) > 80), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        console.log_status(line)
        lines = stream.getvalue()[:-1].split("\n")
        assert (len(lines) > 1) == is_broken
        assert " ".join(lines).split() == line.split()
        assert all(len(each) <= 80 or " " not in each.strip() for each in lines) or not is_broken
        assert lines[0].startswith(line[:4])


def unit(name, num=4):
    clips = tuple(
        Clip(clip_id=f"{n:020x}", path=f"{n}.mp4", url=f"/{n}.mp4", size_bytes=1, content_id="") for n in range(num)
    )
    return Unit(unit_id=name, clips=clips)


def ended(state=State.DONE):
    reason = None if state is State.DONE else "no_face_found"
    return Outcome(clip_id="0" * 20, path="0.mp4", state=state, reason=reason, num_examples=2, seconds=0.5)


def until(holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def joined(shared_ray):  # noqa: ARG001 - its cluster is joined
    with started_ray():
        yield


def ray_test(test):
    return pytest.mark.ray(pytest.mark.usefixtures("joined")(test))


@ray_test
def test_what_an_actor_tells_of_a_unit_is_shown_before_it_ends():
    display = quiet_display()
    at_work = counting.UnitsAtWork(display, actors=1)
    at_work.show_of({"a", "b"})
    with at_work.watched():
        teller = at_work.teller()
        assert teller.began(unit("a"))
        time.sleep(counting.TELL_SECONDS)
        assert teller.clip_ended(ended())
        until(lambda: shown(display) == 1)
        time.sleep(counting.TELL_SECONDS)
        assert teller.clip_ended(ended(State.NO_FACE))
        until(lambda: shown(display) == 2)


@ray_test
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_clip_at_work_and_no_other(number, capsys):
    before = signal.getsignal(number)
    signal.signal(number, signal.default_int_handler)
    at_work = counting.UnitsAtWork(quiet_display(), actors=1)
    at_work.show_of({"a"})
    seen = SimpleNamespace(goes_on=[], committed=False)
    teller = at_work.teller()

    def work():
        assert teller.began(unit("a"))
        for _ in range(50):
            time.sleep(0.3)
            seen.goes_on.append(teller.clip_ended(ended()))
            if len(seen.goes_on) == 1:
                os.kill(os.getpid(), number)
            if not seen.goes_on[-1]:
                break
        seen.committed = True
        teller.ended()
        seen.takes_next = teller.began(unit("b"))
        teller.ended()

    thread = threading.Thread(target=work)

    def run():
        with at_work.watched():
            thread.start()
            time.sleep(20)

    try:
        with pytest.raises(KeyboardInterrupt):
            run()
        thread.join()
    finally:
        signal.signal(number, before)
    assert seen.committed
    assert len(seen.goes_on) <= 3
    assert not seen.takes_next
    assert "interrupted: up to 10 s for the clips at work" in capsys.readouterr().err


@ray_test
def test_a_counter_that_is_gone_stops_nothing():
    at_work = counting.UnitsAtWork(quiet_display(), actors=1)
    teller = at_work.teller()
    assert teller.began(unit("a"))
    ray.kill(at_work._counter._actor)
    for _ in range(3):
        time.sleep(counting.TELL_SECONDS)
        assert teller.clip_ended(ended())
    teller.ended()


@ray_test
def test_no_thread_of_ray_data_outlives_a_run_that_was_broken_off(tmp_path):
    """One that asks Ray after its end ends the process, with code 1 and without a word."""
    clips = [
        Clip(clip_id=f"{number:020x}", path=f"{number}.mp4", url=f"/v/{number}.mp4", size_bytes=1, content_id="")
        for number in range(8)
    ]
    ledger = Ledger(str(tmp_path / "out"))
    options = {"kind": "examples", "config": {}, "versions": {}}
    snapshot, _ = plan_clips(ledger, clip_table(clips), clips_per_shard=1, **options)
    spec = ActorSpec(build=partial(WaitingActor, unit_seconds=0.4))
    options = {"config": PoolConfig(actors=2), "at_work": counting.UnitsAtWork(quiet_display(), actors=2)}
    stream = pool._stream(list(snapshot.pending()), spec, arguments={"ledger_url": ledger.storage.url}, **options)
    assert next(stream)["unit"] == "g000-u000000"
    assert [each for each in threading.enumerate() if each.name.startswith(pool.RAY_DATA_THREADS)]
    stream.close()
    assert not [each for each in threading.enumerate() if each.name.startswith(pool.RAY_DATA_THREADS)]
