"""The measurements: their arithmetic exactly, and one tiny run of every part on real clips, detectors and Ray."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import skimage.data
from rich.console import Console

from benchmarks.clips import middle_frames
from benchmarks.config import BenchmarkConfig
from benchmarks.core_hours import core_hours, corpus_core_hours
from benchmarks.decode import is_wrong
from benchmarks.detect import net_macs
from benchmarks.machine import machine
from benchmarks.nights import NightsConfig, nights, print_nights
from benchmarks.parity import compared, matched, seen
from benchmarks.poison import KINDS, link_corpus
from benchmarks.soak import growth
from benchmarks.studies import benchmark, poison, print_tables, soak
from benchmarks.timing import Timing, spread, steady
from pipeline.corpus.read import read_corpus
from pipeline.faces.processor import cpu_has_bf16_convolutions, cpu_has_int8
from pipeline.records.faces import Box, Face
from pipeline.synthetic.corpus import make_corpus

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
JOB = Path(__file__).resolve().parents[2] / "jobs" / "benchmark.py"


def timings_of(worker, ends, *, cpu_per_piece=1.0, num_clips=2):
    return [
        Timing(
            worker=worker, started=end - 1.0, ended=end, num_clips=num_clips, cpu_seconds=5.0 + cpu_per_piece * number
        )
        for number, end in enumerate(ends)
    ]


def test_a_spread_is_median_lowest_and_highest_of_what_was_measured():
    assert spread([3.0, None, 1.0, 2.0, 10.0]) == {
        "median": 2.5,
        "min": 1.0,
        "max": 10.0,
        "values": [3.0, 1.0, 2.0, 10.0],
    }
    assert spread([None]) is None


def test_core_hours_are_seconds_times_count():
    assert core_hours(0.5, 7200) == 1.0


def test_the_first_piece_of_a_worker_is_start_up_and_not_steady_state():
    # 4 s for the first piece, then 2 clips and 1.5 CPU seconds every 2 s.
    found = steady(timings_of(1, [14.0, 16.0, 18.0, 20.0], cpu_per_piece=1.5))
    assert found == {
        "clips_per_second": 1.0,
        "core_seconds_per_clip": 0.75,
        "job_core_seconds_per_clip": 0.75,
        "cores_used": 0.75,
        "cores_idle": None,
        "cores_stolen": None,
        "seconds_between_pieces": 1.0,
        "seconds": 6.0,
    }


def test_two_workers_are_counted_while_both_are_at_work():
    # From 12 (the second has begun) to 18 (the first is about to end): 2 clips every 2 s each.
    found = steady(timings_of(1, [10, 12, 14, 16, 18]) + timings_of(2, [12, 14, 16, 18, 20, 22]))
    assert found is not None
    assert found["seconds"] == 6.0
    assert found["clips_per_second"] == pytest.approx(2.0)
    assert found["core_seconds_per_clip"] == pytest.approx(0.5)


def test_threads_of_one_process_are_counted_each_and_its_cpu_seconds_once():
    one, two = timings_of(1, [10, 12, 14, 16, 18]), timings_of(1, [12, 14, 16, 18, 20, 22])
    found = steady([*one, *(replace(timing, actor=2, cpu_seconds=timing.cpu_seconds + 1) for timing in two)])
    assert found is not None
    assert (found["seconds"], found["clips_per_second"]) == (6.0, pytest.approx(2.0))
    assert found["core_seconds_per_clip"] == pytest.approx(0.25)


def test_within_a_piece_progress_is_even():
    # Both at work from 11 to 13: the first did 4 of 4 clips in 2 s, the second half of its piece of 4.
    found = steady(timings_of(1, [11, 13], num_clips=4) + timings_of(2, [10, 14], num_clips=4))
    assert found is not None
    assert found["clips_per_second"] == pytest.approx((4 + 2) / 2)


def test_the_whole_job_counts_what_ray_uses_beside_the_workers_and_where_the_cores_went():
    one, two = (
        Timing(
            worker=1,
            started=end - 3.5,
            ended=end,
            num_clips=2,
            cpu_seconds=end,
            job_cpu_seconds=1.5 * end,
            idle_seconds=0.5 * end,
            stolen_seconds=0.0,
        )
        for end in (4.0, 8.0)
    )
    found = steady([one, two])
    assert found is not None
    assert (found["core_seconds_per_clip"], found["job_core_seconds_per_clip"]) == (2.0, 3.0)
    assert (found["cores_used"], found["cores_idle"], found["cores_stolen"]) == (1.5, 0.5, 0.0)
    assert found["seconds_between_pieces"] == 0.5


def test_workers_that_never_worked_at_once_have_no_steady_state():
    assert steady(timings_of(1, [10.0])) is None
    assert steady(timings_of(1, [10.0, 12.0]) + timings_of(2, [20.0, 22.0])) is None


def test_the_net_does_3_91_thousand_million_multiplications_for_a_frame_of_caer():
    assert net_macs(height=400, width=712) / 1e9 == pytest.approx(3.91, abs=0.005)


def test_a_frame_is_wrong_if_another_is_nearer():
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (5, 6, 8, 3)).astype(np.uint8)
    nearly = np.clip(reference[2].astype(int) + 1, 0, 255).astype(np.uint8)
    assert not is_wrong(nearly, 2, reference=reference)
    assert is_wrong(nearly, 3, reference=reference)
    assert is_wrong(nearly, 5, reference=reference)
    assert is_wrong(nearly[:4], 2, reference=reference)


def test_a_still_scene_has_no_wrong_frames():
    reference = np.full((4, 6, 8, 3), 90, np.uint8)
    assert not any(is_wrong(reference[0], index, reference=reference) for index in range(4))


def test_core_hours_of_caer_add_detection_and_decoding():
    detectors = {"dlib-cnn fp32": {"cpu_ms": {"median": 100.0}}}
    ways = {"auto": {"cpu_ms_per_frame_of_clip": {"median": 1.0}}, "auto, every frame": {}}
    eight, every = corpus_core_hours({"detect": {"detectors": detectors}, "decode": {"ways": ways}})
    assert eight["detect"] == pytest.approx(13_201 * 8 * 0.1 / 3600)
    assert eight["total"] == pytest.approx(eight["detect"] + 1_107_877 * 0.001 / 3600)
    assert every["detect"] == every["total"] == pytest.approx(1_107_877 * 0.1 / 3600)
    assert every["decode"] is None


def test_the_machine_is_described():
    told = machine()
    assert told["cores"] >= 1
    assert {"python", "torch", "decord", "ray"} <= set(told["versions"])


def test_a_wrong_study_is_one_line_and_exit_code_2():
    ended = subprocess.run([sys.executable, JOB, "everything"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "everything" in ended.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    output = tmp_path_factory.mktemp("benchmark")
    config = BenchmarkConfig(
        study="all",
        output=str(output),
        rounds=1,
        frames_per_clip=1,
        num_clips=4,
        clips_per_shard=1,
        baseline_clips=2,
    )
    found = benchmark(config)
    assert json.loads((output / "benchmark.json").read_text()) == found
    return found


@pytest.mark.slow
def test_detect_tells_time_bound_and_boxes_of_each_detector(results):
    part = results["detect"]
    detectors = {"dlib-cnn fp32", "dlib-cnn-reference", "dlib-hog"}
    detectors |= {"dlib-cnn bf16"} if cpu_has_bf16_convolutions() else set()
    assert set(part["detectors"]) == detectors | ({"dlib-cnn int8"} if cpu_has_int8() else set())
    assert all(gflops > 0 for gflops in part["peak_gflops"].values())
    ours = part["detectors"]["dlib-cnn fp32"]
    assert ours["same_boxes_as_dlib"]
    assert ours["num_faces"] == 1
    assert sum(ours["parts_cpu_ms"].values()) == pytest.approx(ours["cpu_ms"]["median"])
    assert ours["share_of_bound"] == pytest.approx(ours["bound_ms"] / ours["cpu_ms"]["median"])
    assert part["detectors"]["dlib-cnn-reference"]["times_dlib"] == 1.0


@pytest.mark.slow
def test_decode_shows_decords_wrong_frames_and_none_of_ours(results):
    ways = results["decode"]["ways"]
    assert ways["auto"]["num_wrong"] == ways["auto, every frame"]["num_wrong"] == 0
    assert ways["auto"]["clips_failed"] == 0
    assert ways["decord"]["num_wrong"] > 0
    assert ways["auto"]["cpu_ms_per_clip"]["median"] > 0
    clips = results["decode"]["clips"]
    assert all(row["decoders"]["auto"]["decoder_reason"] for row in clips.values())
    assert len(clips) == results["decode"]["num_clips"] == 4 + 9


@pytest.mark.slow
def test_preprocess_has_every_contender_its_ratios_and_the_baselines_boxes(results):
    part = results["preprocess"]
    ours = {"plain loop", "two plain loops", "one actor", "two actors", "two threads"}
    assert set(part["contenders"]) == {*ours, "baseline script"}
    for name, row in part["contenders"].items():
        assert row["worker_peak_memory_bytes"]["median"] > 50 * 2**20, name
        assert 0 <= row["start_seconds"]["median"] < row["total_seconds"]["median"], name
    for name in ("plain loop", "one actor"):
        assert part["contenders"][name]["clips_per_second"]["median"] > 0
    with_ray = part["contenders"]["one actor"]
    assert with_ray["job_core_seconds_per_clip"]["median"] > with_ray["core_seconds_per_clip"]["median"]
    assert part["ratios"]["one actor / plain loop, clips/s"]["median"] > 0
    assert part["ray_init_seconds"]["median"] > 0
    boxes = part["boxes_beside_baseline"]
    assert boxes["baseline"] == boxes["ours_too"] == 2
    assert boxes["mean_iou"] > 0.9


@pytest.mark.slow
def test_everything_is_printed_as_tables(results, capsys):
    print_tables(results)
    shown = capsys.readouterr().out
    for title in ("Detect: 712x400", "Decode: 1 frames", "Preprocess: 4 clips", "Core-hours for CAER"):
        assert title in shown
    assert "two actors / one actor" in shown
    assert results["machine"]["cpu"] in shown


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A still clip of 6 frames that holds a face."""
    image = np.full((400, 712, 3), 90, np.uint8)
    image[:, 100:612] = skimage.data.astronaut()[:400]
    path = tmp_path_factory.mktemp("corpus") / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=20, options={"b": "2000000"})
        stream.width, stream.height, stream.pix_fmt = 712, 400, "yuv420p"
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    (found,) = read_corpus(str(path), split_fractions=None).clips
    return found


def test_our_boxes_are_compared_with_dlibs(clip):
    (frame,) = middle_frames([clip])
    image = seen(frame, size=(534, 300), is_grey=True)
    assert image.shape == (300, 534)
    found = compared([image, image[:60, :60]], upsample=0)
    assert (found["num_images"], found["num_faces"]) == (2, 1)
    assert found["ours"]["fp32"]["num_equal"] == 1
    assert all(ours["num_matched"] == 1 for ours in found["ours"].values())
    assert found["ours"]["fp32"]["most_score_difference"] < 1e-4


def test_a_face_is_matched_with_the_one_that_it_overlaps_most():
    a, b, c = (Face(Box(x, 0, x + 80, 80), 1.0) for x in (0, 10, 500))
    assert matched([a, b], [b, a]) == [(a, a), (b, b)]
    assert matched([a], [b]) == [(a, b)]
    assert matched([a, b], [a]) == [(a, a)]
    assert matched([a], [c]) == []


def test_poison_lies_evenly_among_the_good_clips(tmp_path):
    good, poison = tmp_path / "good.avi", {kind: tmp_path / f"{kind}.mp4" for kind in KINDS}
    for path in (good, *poison.values()):
        path.write_bytes(b"")
    link_corpus(tmp_path / "corpus", [good], poison, num=40, num_poison=4)
    names = [path.stem for path in sorted((tmp_path / "corpus").iterdir())]
    assert len(names) == 40
    assert [name for name in names if "good" not in name] == ["000009-crash", "000019-hang", "000029-memory",
                                                            "000039-undecodable"]  # fmt: skip


@pytest.mark.slow
def test_poison_costs_no_good_clip_and_each_kind_is_named(clip, tmp_path):
    config = BenchmarkConfig(
        study="poison",
        num_clips=8,
        clips_per_shard=2,
        frames_per_clip=1,
        poison_shares=(0.5,),
        poison_timeout=3.0,
    )
    part = poison.measure([clip], tmp_path, config=config)
    (row,) = part["shares"]
    assert (row["num_poison"], row["num_ended_well"], row["good_lost"]) == (4, 4, [])
    reasons = row["reasons"]
    assert reasons["crash"] == 1, reasons
    # Where frames of 4096x4096 take longer than the timeout, the clip that would blow the memory hangs first.
    assert reasons["hang"] >= 1, reasons
    assert reasons["hang"] + reasons.get("memory", 0) == 2, reasons
    assert sum(reasons.values()) == 4, reasons
    assert row["children_started"] >= 2 + 3  # one an actor, and one after each kill at least
    shown = io.StringIO()
    Console(file=shown, width=160).print(*poison.tables(part))
    assert "50%" in shown.getvalue()


def test_growth_is_the_slope_after_the_warm_up():
    mib = [100 + 0.02 * done if done >= 200 else 50.0 for done in range(0, 1000, 50)]
    samples = [
        {"clips_done": float(done), "mib": {"driver": [each - 1, each + 1], "actor": []}}
        for done, each in zip(range(0, 1000, 50), mib, strict=True)
    ]
    grown = growth(samples, "driver", num_clips=1000)
    assert grown is not None
    assert grown["mib_per_1000_clips"] == pytest.approx(20.0)
    assert grown["mib_at_end"] == pytest.approx(100 + 0.02 * 950)
    assert growth(samples, "actor", num_clips=1000) is None


@pytest.mark.slow
def test_soak_sees_driver_actors_and_sandboxed_children_and_draws_them(clip, tmp_path):
    config = BenchmarkConfig(
        study="soak",
        output=str(tmp_path / "out"),
        num_clips=8,
        clips_per_shard=1,
        frames_per_clip=1,
        sample_seconds=0.2,
    )
    part = soak.measure([clip], tmp_path, config=config)
    assert part["num_ended_well"] == part["num_clips"] == 8
    most = {role: max(max(each["mib"][role], default=0) for each in part["samples"]) for role in soak.ROLES}
    assert all(mib > 20 for mib in most.values()), most
    assert any(len(each["mib"]["actor"]) == len(each["mib"]["sandboxed child"]) == 2 for each in part["samples"])
    assert "sandboxed child" in (tmp_path / "out" / "soak.html").read_text()
    shown = io.StringIO()
    Console(file=shown, width=160).print(*soak.tables(part))
    assert "8 of 8 clips" in shown.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nights_score_what_is_new_and_films_end(tmp_path):
    clips = tmp_path / "clips"
    make_corpus(clips, clips_per_class=(3, 0, 0), seed=4)
    values = {"study": "nights", "clips": str(clips), "output": str(tmp_path / "out"), "px": 32}
    results = nights(NightsConfig(**values, film_minutes=(1, 2), sample_fps=0.1, frames_per_clip=2))
    first, second, third = results["nights"]
    assert first["same_content"] == second["same_content"] == 1
    assert second["reasons"]["quarantined: not_a_video"] == 1
    assert [night["changed"] for night in (first, second, third)] == [0, 1, 1]
    assert (third["scored"], third["processed"], third["inputs"]) == (0, 0, second["inputs"])
    assert third["skipped"] == third["inputs"]
    assert [film["frames"] for film in results["films"]] == [6, 12]
    assert all(peak > 0 for film in results["films"] for peak in film["peak_mib"].values())
    print_nights(results)
