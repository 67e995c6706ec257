"""Extraction: faces between key frames, a second look, and frames sent to a detector that actors share."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, astuple
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from sandbox_work import build
from skimage.data import astronaut
from video_zoo import make_clip, remux, with_bytes

from pipeline.corpus.read import read_corpus
from pipeline.faces.between import faces_between, partners
from pipeline.faces.detector import DetectionError
from pipeline.faces.processor import cpu_has_int8
from pipeline.preprocess.config import ExtractConfig, PreprocessConfig, plan_config_of
from pipeline.preprocess.detectors import detect_of, resolve_detector_device, resolved, shared_detection
from pipeline.preprocess.examples import located
from pipeline.preprocess.extractor import ClipExtractor
from pipeline.preprocess.job import PreprocessActor
from pipeline.preprocess.sandboxed import build_work
from pipeline.records.clips import Clip
from pipeline.records.columns import table_of
from pipeline.records.faces import EXAMPLE_SCHEMA, Box, Face, iou
from pipeline.records.outcomes import State
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.cluster import start_ray
from pipeline.runtime.config import PoolConfig
from pipeline.runtime.job import ActorSpec, Job
from pipeline.runtime.run import run as run_job
from pipeline.runtime.shared_detector import DetectorActor, SharedDetectors, start_detectors
from pipeline.sandbox.limits import SandboxError, SandboxLimits
from pipeline.sandbox.supervisor import Sandbox
from pipeline.video.frames import Frame

LIMITS = SandboxLimits(start_seconds=120)
REPOSITORY = Path(__file__).resolve().parents[2]


def face(x_min, y_min, x_max, y_max, score=1.0):
    return Face(Box(x_min, y_min, x_max, y_max), score)


# Between two key frames


def test_corners_and_scores_go_linearly_from_one_key_frame_to_the_next():
    first, second = [face(0, 10, 100, 110, 1.0)], [face(40, 10, 160, 130, 3.0)]
    assert faces_between(first, second, share=0.25) == [face(10, 10, 115, 115, 1.5)]
    assert faces_between(first, second, share=0.0) == first
    assert faces_between(first, second, share=1.0) == second


def test_half_a_pixel_goes_up_also_below_zero():
    assert faces_between([face(-3, 0, 10, 10)], [face(-2, 1, 11, 11)], share=0.5) == [face(-2, 1, 11, 11)]


def test_partners_are_the_pairs_of_highest_iou_and_each_face_has_one():
    a, b = face(0, 0, 10, 10), face(6, 0, 16, 10)
    near_b, near_both = face(7, 0, 17, 10), face(4, 0, 14, 10)
    assert partners([a, b], [near_both, near_b]) == [(b, near_b), (a, near_both)]
    assert partners([a, b], [near_both]) == [(b, near_both)]
    assert iou(a.box, b.box) == 40 / 160


def test_a_face_without_a_partner_is_left_out():
    first = [face(0, 0, 10, 10), face(50, 50, 60, 60)]
    assert faces_between(first, [face(2, 0, 12, 10)], share=0.5) == [face(1, 0, 11, 10)]
    assert faces_between(first, [], share=0.5) == []
    assert faces_between([face(0, 0, 10, 10)], [face(10, 0, 20, 10)], share=0.5) == []


def test_faces_between_come_as_detections_do_the_surest_first():
    first = [face(0, 0, 10, 10, 5.0), face(50, 0, 60, 10, 4.0)]
    second = [face(50, 0, 60, 10, 9.0), face(0, 0, 10, 10, 1.0)]
    assert faces_between(first, second, share=0.5) == [face(50, 0, 60, 10, 6.5), face(0, 0, 10, 10, 3.0)]


# Which frames are searched


def frames_of(count, *, seconds=None, width=4):
    """Frames whose pixels say their number."""
    for number in range(count):
        image = np.full((2, width, 3), number, np.uint8)
        at = seconds[number] if seconds else number / 10
        yield Frame(frame_index=number, pts_seconds=at, seconds=at, image=image)


class Searched:
    """Finds in frame i a face that has moved 10 px a frame, and keeps what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, images):
        numbers = [int(image[0, 0, 0]) for image in images]
        self.calls.append(numbers)
        return [[face(10 * number, 0, 10 * number + 50, 50)] for number in numbers]


@pytest.mark.parametrize(
    ("count", "every", "keys"),
    [
        (8, 3, [0, 3, 6, 7]),
        (7, 3, [0, 3, 6]),
        (6, 3, [0, 3, 5]),
        (2, 3, [0, 1]),
        (1, 3, [0]),
        (0, 3, []),
        (3, 1, [0, 1, 2]),
    ],
)
def test_every_kth_frame_and_the_last_are_searched_and_all_have_faces(count, every, keys):
    find = Searched()
    found = list(located(frames_of(count), find, detect_every=every, batch_px=1))
    assert find.calls == [[number] for number in keys]
    assert [frame.frame_index for frame, _ in found] == list(range(count))
    assert [faces for _, faces in found] == [[face(10 * number, 0, 10 * number + 50, 50)] for number in range(count)]


def test_boxes_between_follow_the_frames_times_not_their_numbers():
    found = located(frames_of(3, seconds=[0.0, 0.9, 1.0]), Searched(), detect_every=2, batch_px=1)
    assert [faces[0].box.x_min for _, faces in found] == [0, 18, 20]


def test_frames_at_one_time_take_the_first_key_frames_boxes():
    found = located(frames_of(3, seconds=[1.0, 1.0, 1.0]), Searched(), detect_every=2, batch_px=1)
    assert [faces[0].box.x_min for _, faces in found] == [0, 0, 20]


def test_no_boxes_are_made_up_where_the_frame_changes_its_size():
    frames = [*frames_of(2), *list(frames_of(3, width=6))[2:]]
    found = list(located(frames, Searched(), detect_every=2, batch_px=1))
    assert [len(faces) for _, faces in found] == [1, 0, 1]


def test_key_frames_are_gathered_until_the_batch_is_full():
    find = Searched()
    found = list(located(frames_of(7), find, detect_every=2, batch_px=3 * 8))
    assert find.calls == [[0, 2], [4], [6]]
    assert [faces[0].box.x_min for _, faces in found] == [0, 10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize(("every", "batch_px", "most_held"), [(1, 1, 1), (1, 5 * 8, 5), (4, 1, 6), (4, 5 * 8, 10)])
def test_a_film_is_never_held_whole(every, batch_px, most_held):
    num_read = 0

    def counted():
        nonlocal num_read
        for frame in frames_of(100):
            num_read += 1
            yield frame

    held = [
        num_read - number
        for number, _ in enumerate(located(counted(), Searched(), detect_every=every, batch_px=batch_px))
    ]
    assert len(held) == 100
    assert max(held) <= most_held


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retry_upsample": True, "detector": "dlib-hog"}, "--retry-upsample is for a CNN, and --detector is dlib-hog"),
        ({"retry_upsample": True, "upsample": 1}, "--upsample is 1 already; give --upsample 0"),
        ({"detect_every": 0}, "--detect-every is 0; give one of 1, 2"),
        ({"detect_every": 33}, "--detect-every is 33"),
        ({"whole_every": 0}, "--whole-every is 0; give one of 1, 2"),
        ({"whole_every": 4, "detect_every": 2}, "--whole-every and --detect-every exclude each other"),
        (
            {"whole_every": 4, "detector": "dlib-hog"},
            "--whole-every is 4, and --detector is dlib-hog; give --detector dlib-cnn, or leave --whole-every out",
        ),
        ({"min_decode_integrity": 1.5}, "--min-decode-integrity is 1.5; give a share from 0 to 1"),
    ],
)
def test_options_that_contradict_are_refused_with_a_cure(options, message):
    with pytest.raises(ValueError, match=message):
        ExtractConfig(**options)


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="--detector-device is 'gpu'; give one of auto, cpu, cuda"):
        PoolConfig(detector_device="gpu")


def test_the_plan_tells_what_was_computed_and_not_where():
    config = PreprocessConfig(input="a", output="b", retry_upsample=True, detect_every=3, detector_device="cpu")
    plan = plan_config_of(resolved(ExtractConfig(retry_upsample=True, detect_every=3)))
    assert (plan["retry_upsample"], plan["detect_every"]) == (True, 3)
    assert config.detector_device not in plan
    assert "detector_device" not in plan


def test_auto_precision_is_that_of_the_device_that_detects():
    assert resolved(ExtractConfig(), device="cuda").detector_precision == "bf16"
    assert resolved(ExtractConfig(detector_precision="fp32"), device="cuda").detector_precision == "fp32"
    assert resolved(ExtractConfig(detector="dlib-hog"), device="cpu").detector_precision == "auto"


def test_the_device_is_cuda_only_where_the_detector_runs_there(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "boxes.csv").write_text("")
    assert resolve_detector_device("cpu", ExtractConfig()) == "cpu"
    assert resolve_detector_device("auto", ExtractConfig(detector="dlib-hog")) == "cpu"
    assert resolve_detector_device("cuda", ExtractConfig(boxes=str(tmp_path / "boxes.csv"))) == "cpu"
    with pytest.raises(UsageError, match="dlib-hog runs on CPU alone; give --detector dlib-cnn"):
        resolve_detector_device("cuda", ExtractConfig(detector="dlib-hog"))
    assert resolve_detector_device("auto", ExtractConfig(detector_precision="int8")) == "cpu"
    assert resolve_detector_device("auto", ExtractConfig(whole_every=4)) == "cpu"
    with pytest.raises(UsageError, match="--whole-every 4 runs on CPU alone; leave it out, or --detector-device cpu"):
        resolve_detector_device("cuda", ExtractConfig(whole_every=4))
    with pytest.raises(UsageError, match="--detector-precision int8 runs on CPU alone"):
        resolve_detector_device("cuda", ExtractConfig(detector_precision="int8"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_detector_device("auto", ExtractConfig()) == "cpu"
    with pytest.raises(UsageError, match="device cuda: PyTorch sees no CUDA device here"):
        resolve_detector_device("cuda", ExtractConfig())


def test_on_cpu_nothing_is_shared():
    assert shared_detection(ExtractConfig(), device="cpu") is None


# Clips


def portrait(face_px):
    """A photograph whose face is about that large, on grey, (220, 240, 3)."""
    photo = Image.fromarray(astronaut()[20:220, 120:320])  # its face is 100 px
    side = round(200 * face_px / 100)
    image = Image.new("RGB", (240, 220), (90, 90, 90))
    image.paste(photo.resize((side, side), Image.Resampling.BILINEAR), (10, 10))
    return np.asarray(image)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    still = portrait(105)
    moving = [np.roll(still, 3 * number, axis=1) for number in range(12)]
    images = {
        "a.mp4": moving,
        "b.avi": moving[::-1],
        "empty.mp4": [np.full((220, 240, 3), 90, np.uint8)] * 5,
        "small.mp4": [portrait(52)] * 5,
    }
    for name, each in images.items():
        codec = "mpeg4" if name.endswith("avi") else "libx264"
        make_clip(folder / name, codec=codec, images=each, num_frames=len(each), width=240, height=220)
    (folder / "broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 8)
    return folder


def clip_at(path):
    return Clip(clip_id="0" * 20, path=path.name, url=str(path), size_bytes=1, content_id="x")


def extracted(folder, names, config, **options):
    """What each clip gives, without its time."""
    extractor = ClipExtractor(config, limits=LIMITS, **options)
    try:
        found = [extractor.extract(clip_at(folder / name)) for name in names]
    finally:
        extractor.sandbox.close()
    return [(examples, {**asdict(outcome), "seconds": 0}) for examples, outcome in found]


@pytest.mark.lengthy
def test_a_second_look_finds_small_faces_and_only_where_none_was_found(clips):
    config = ExtractConfig(detector_precision="fp32", frames_per_clip=2)
    names = ("a.mp4", "small.mp4", "empty.mp4")
    once = extracted(clips, names, config)
    assert [outcome["state"] for _, outcome in once] == [State.DONE, State.NO_FACE, State.NO_FACE]
    size, cure = re.fullmatch(
        r"no face in 2 sampled frames, largest candidate (\d+) px; dlib-cnn looked for faces of .*: (--\S+) finds .*",
        once[1][1]["detail"],
    ).groups()
    assert (35 < int(size) < 70, cure) == (True, "--retry-upsample")
    assert "no smaller candidate in one of them; " in once[2][1]["detail"]
    again = extracted(clips, names, ExtractConfig(**{**asdict(config), "retry_upsample": True}))
    assert again[0] == once[0]
    examples, outcome = again[1]
    assert (outcome["state"], outcome["detail"]) == (State.DONE, "looked at again with upsample 1")
    assert (len(examples), outcome["num_examples"], outcome["num_frames"]) == (2, 2, 2)
    assert 35 < examples[0].box.width < 70
    straight = extracted(clips, names[1:2], ExtractConfig(**{**asdict(config), "upsample": 1}))
    assert straight[0][0] == examples
    assert again[2][1]["state"] is State.NO_FACE
    assert again[2][1]["detail"] == "no face in 2 sampled frames, looked at again with upsample 1"


@pytest.mark.lengthy
def test_interpolated_boxes_are_near_the_detected_ones(clips):
    config = {"detector_precision": "fp32", "every_frame": True}
    (full, _), (part, outcome) = (
        extracted(clips, ["a.mp4"], ExtractConfig(**config, **more))[0] for more in ({}, {"detect_every": 4})
    )
    assert outcome["num_frames"] == len(full) == len(part) == 12
    for index in (0, 4, 8, 11):
        assert part[index] == full[index]
    overlaps = [iou(a.box, b.box) for a, b in zip(full, part, strict=True)]
    assert min(overlaps) > 0.7
    assert overlaps != [1.0] * 12


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "precision", ["fp32", pytest.param("int8", marks=pytest.mark.skipif(not cpu_has_int8(), reason="no int8"))]
)
def test_faces_that_are_followed_are_those_of_whole_frames(clips, precision):
    config = {"detector_precision": precision, "every_frame": True, "faces": "all"}
    names = ("a.mp4", "small.mp4", "broken.mp4", "b.avi")  # One work for all: nothing of a clip is left for the next.
    whole, followed = (extracted(clips, names, ExtractConfig(**config, **more)) for more in ({}, {"whole_every": 5}))
    assert [len(examples) for examples, _ in whole] == [len(examples) for examples, _ in followed]
    assert len(whole[0][0]) == 12
    for (examples, _), (others, _) in zip(whole, followed, strict=True):
        for one, other in zip(examples, others, strict=True):
            assert one.box == other.box
            assert one.face_jpeg == other.face_jpeg
            assert one.face_score == pytest.approx(other.face_score, abs=0.005)


THREADS = """
import sys
from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.sandboxed import build_work
from pipeline.sandbox.supervisor import Sandbox

def build(config):
    build_work(config)

    def work(task, stage):
        yield sys.modules["torch"].get_num_threads()

    return work

if __name__ == "__main__":
    import threads
    with Sandbox(threads.build, {"config": ExtractConfig()}, preload=("torch",)) as sandbox:
        print(sandbox.run(None)[0])
"""


@pytest.mark.lengthy
def test_a_worker_computes_on_one_thread_whatever_the_fork_server_was_told(tmp_path):
    (tmp_path / "threads.py").write_text(THREADS)
    environment = {**os.environ, "OMP_NUM_THREADS": "3", "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}"}
    told = subprocess.run(
        [sys.executable, tmp_path / "threads.py"],
        check=True,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert told.stdout == "[1]\n"


def test_given_boxes_are_not_searched_for_whatever_the_way(clips, tmp_path):
    (tmp_path / "boxes.csv").write_text("a.mp4,Happy,10,10,90,90\n")
    config = ExtractConfig(boxes=str(tmp_path / "boxes.csv"), frames_per_clip=2, whole_every=4)
    ((examples, outcome),) = extracted(clips, ["a.mp4"], config)
    assert (outcome["num_examples"], {tuple(astuple(each.box)) for each in examples}) == (2, {(10, 10, 90, 90)})


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "options", [{"retry_upsample": True}, {"detect_every": 3, "every_frame": True, "faces": "all"}], ids=str
)
def test_a_shared_detector_gives_what_each_workers_own_gives(clips, options):
    config = ExtractConfig(detector_precision="fp32", **{"frames_per_clip": 3, **options})
    names = ("a.mp4", "broken.mp4", "small.mp4", "b.avi", "empty.mp4")
    own = extracted(clips, names, config)
    shared = extracted(clips, names, config, shared_detect=detect_of(config, device="cpu"))
    assert shared == own
    assert own[1][1]["state"] is State.QUARANTINED


@pytest.mark.lengthy
def test_a_clip_whose_frames_found_no_detector_is_retryable_and_the_next_is_done(clips):
    config = ExtractConfig(detector="dlib-hog", every_frame=True)
    detect = detect_of(config, device="cpu")
    answers = iter([DetectionError("the detector is gone"), None])

    def first_fails(images, *, upsample):
        if error := next(answers, None):
            raise error
        return detect(images, upsample=upsample)

    (none, lost), (examples, done) = extracted(clips, ["a.mp4", "b.avi"], config, shared_detect=first_fails)
    assert (none, lost["state"], lost["reason"], lost["stage"]) == ([], State.RETRYABLE, "detector_failed", "detect")
    assert lost["detail"] == "the detector is gone"
    assert done["state"] is State.DONE
    assert [example.frame_index for example in examples] == list(range(12))


@pytest.mark.lengthy
def test_what_is_unforeseen_after_decoding_costs_one_clip_as_in_the_sandbox(clips):
    config = ExtractConfig(detector="dlib-hog", frames_per_clip=2)

    def wrong(images, **_):
        return [[Face(Box(0, 0, 10, 10), "no number"), Face(Box(0, 0, 10, 10), 1.0)] for _ in images]

    ((examples, outcome),) = extracted(clips, ["a.mp4"], config, shared_detect=wrong)
    assert (examples, outcome["state"], outcome["reason"]) == ([], State.QUARANTINED, "exception")
    assert (outcome["stage"], outcome["attempts"]) == ("crop", 2)
    assert outcome["detail"].startswith("TypeError")


# Damage


@pytest.fixture
def damaged(tmp_path):
    """A clip of 24 frames whose 13th packet does not decode, so that 4 frames up to the next key frame are missing."""
    source = make_clip(tmp_path / "whole.mp4", num_frames=24, options={"bf": "0", "g": "8"})

    def spoil(number, packet):
        return [with_bytes(packet, b"\x00" * 40) if number == 12 else packet]

    remux(source, tmp_path / "damaged.mp4", spoil)
    (tmp_path / "boxes.csv").write_text("damaged.mp4,Happy,10,10,60,60\nwhole.mp4,Happy,10,10,60,60\n")
    return tmp_path


def test_a_clip_that_decodes_badly_is_quarantined_with_its_numbers_and_without_its_examples(damaged):
    config = ExtractConfig(boxes=str(damaged / "boxes.csv"), every_frame=True, min_decode_integrity=0.9)
    (none, low), (examples, whole) = extracted(damaged, ["damaged.mp4", "whole.mp4"], config)
    assert (none, low["state"], low["reason"], low["stage"]) == ([], State.QUARANTINED, "low_integrity", "decode")
    assert (low["num_examples"], low["num_examples_dropped"], low["decoder"]) == (0, 20, "pyav")
    assert low["decode_integrity"] == pytest.approx(20 / 24)
    assert low["detail"].startswith(
        "decode_integrity 0.833 is below --min-decode-integrity 0.9: of 24 frames 4 missing, 0 corrupt, 0 repeated; "
        "packet 12 does not decode"
    )
    assert low["detail"].endswith("; 20 examples dropped")
    assert (len(examples), whole["state"], whole["detail"], whole["num_examples_dropped"]) == (24, State.DONE, None, 0)


def test_without_a_least_integrity_a_damaged_clip_is_done_and_says_what_it_lacks(damaged):
    config = ExtractConfig(boxes=str(damaged / "boxes.csv"), every_frame=True)
    ((examples, outcome),) = extracted(damaged, ["damaged.mp4"], config)
    assert (len(examples), outcome["state"]) == (20, State.DONE)
    assert outcome["detail"].startswith("of 24 frames 4 missing, 0 corrupt, 0 repeated; packet 12 does not decode")


# The sandbox


def test_what_the_sandbox_did_is_told_as_facts(damaged):
    extractor = ClipExtractor(ExtractConfig(boxes=str(damaged / "boxes.csv")), limits=LIMITS)
    extractor.extract(clip_at(damaged / "whole.mp4"))
    facts = extractor.facts()
    extractor.sandbox.close()
    assert (facts["children_started"], facts["children_recycled"]) == (1, 0)
    assert {facts["network"], facts["file_writes"]} <= {"none", "allowed"}


@pytest.mark.lengthy
def test_a_clip_that_wants_too_much_memory_is_quarantined_as_such_and_the_next_is_done(damaged, monkeypatch):
    monkeypatch.setattr("pipeline.preprocess.extractor.build_work", hungry_work)
    extractor = ClipExtractor(ExtractConfig(boxes=str(damaged / "boxes.csv")), limits=LIMITS)
    outcomes = [extractor.extract(clip_at(damaged / name))[1] for name in ("damaged.mp4", "whole.mp4")]
    extractor.sandbox.close()
    hungry, fed = outcomes
    assert (hungry.state, hungry.reason, hungry.stage, hungry.attempts) == (State.QUARANTINED, "memory", "decode", 2)
    assert "asked for more than 4096 MiB: MemoryError" in hungry.detail
    assert fed.state is State.DONE


def hungry_work(config):
    work = build_work(config)

    def eat(task, stage):
        if task["clip"].path == "damaged.mp4":
            stage("decode")
            np.ones(2**40, np.uint8)
        return (yield from work(task, stage))

    return eat


def test_a_task_left_half_way_says_nothing_to_the_next():
    with Sandbox(build, {"greeting": "hi"}, limits=LIMITS) as sandbox:
        running = sandbox.stream({"kind": "echo", "count": 1000})
        assert [next(running), next(running)] == ["hi 0", "hi 1"]
        running.close()
        assert sandbox.run({"kind": "echo", "count": 2})[0] == ["hi 0", "hi 1"]
        assert sandbox.num_starts == 2


def test_the_peak_memory_of_a_child_is_known_after_one_quick_task():
    with Sandbox(build, {}, limits=LIMITS) as sandbox:
        sandbox.run({"kind": "echo"})
        assert 5 * 2**20 < sandbox.peak_memory_bytes < 2**30


def test_a_child_that_never_pauses_is_watched_too():
    limits = SandboxLimits(memory_bytes=5 * 2**20, start_seconds=60)
    with Sandbox(build, {}, limits=SandboxLimits(start_seconds=60)) as sandbox:
        sandbox.start()
        sandbox.limits = limits
        with pytest.raises(SandboxError, match="more than 5 MiB"):
            sandbox.run({"kind": "echo", "count": 10_000_000})


# The detector that actors share


@pytest.mark.lengthy
def test_frames_of_many_senders_are_searched_together_and_a_wrong_one_costs_its_sender():
    image = portrait(105)
    config = ExtractConfig(detector="dlib-hog")

    calls = []

    def build():
        detect = detect_of(config, device="cpu")

        def noted(images, *, upsample):
            calls.append(len(images))
            return detect(images, upsample=upsample)

        return noted

    async def send():
        actor = DetectorActor(build)
        senders = [actor.detect([image] * 2, 0), actor.detect([image[:, ::-1]], 0), actor.detect([image], 0)]
        together = await asyncio.gather(*senders)
        num_together = list(calls)
        mixed = await asyncio.gather(
            actor.detect([image], 0), actor.detect([image.astype(np.float32)], 0), return_exceptions=True
        )
        both_sizes = await asyncio.gather(actor.detect([image], 0), actor.detect([image], 1))
        return together, num_together, mixed, both_sizes

    together, num_together, mixed, both_sizes = asyncio.run(send())
    alone = detect_of(config, device="cpu")
    expected = alone([image], upsample=0)
    assert len(expected[0]) == 1
    assert together == [expected * 2, alone([image[:, ::-1]], upsample=0), expected]
    assert num_together == [4]
    assert mixed[0] == expected
    assert isinstance(mixed[1], ValueError)
    assert both_sizes == [expected, alone([image], upsample=1)]


@pytest.mark.lengthy
@pytest.mark.timeout(240)
def test_a_run_with_shared_detectors_gives_the_rows_that_workers_of_their_own_give(clips, tmp_path):
    """Real Ray: the way of frames on GPUs, with the detector on CPU."""
    config = resolved(ExtractConfig(detector_precision="fp32", frames_per_clip=3, retry_upsample=True))
    corpus = read_corpus(str(clips), layout="auto", split_fractions=None)
    build = partial(detect_of, config, device="cpu")
    spec = ActorSpec(
        build=partial(PreprocessActor, config=config, limits=LIMITS),
        start_shared=lambda: {"shared_detect": start_detectors(build, device="cpu", num_detectors=1)},
    )
    job = Job(
        kind="examples",
        plan_config=plan_config_of(config),
        plan_defaults={},
        versions={},
        build_actor=lambda _: spec,
    )
    run = run_job(job, lambda: corpus, str(tmp_path / "out"), config=PoolConfig(actors=2, clips_per_shard=1))
    assert run.audit.holds
    assert not run.summary["errors"]
    assert 30 < run.summary["peak_worker_memory_mib"] < 1000
    extractor = ClipExtractor(config, limits=LIMITS)
    own = [extractor.extract(clip)[0] for clip in corpus.clips]
    assert extractor.facts()["peak_child_memory_bytes"] > run.summary["peak_worker_memory_mib"] * 2**20
    extractor.sandbox.close()
    expected = table_of([example for examples in own for example in examples], EXAMPLE_SCHEMA).to_pylist()
    assert len(expected) == 9
    found = [
        row
        for shard in run.ledger.shards("examples")
        for row in pq.read_table(pa.BufferReader(run.ledger.storage.read(shard["path"]))).to_pylist()
    ]
    assert sorted(found, key=place_of) == sorted(expected, key=place_of)


def place_of(row):
    return row["clip_id"], row["frame_index"], row["face_index"]


@pytest.mark.timeout(240)
@pytest.mark.ray
def test_a_detector_that_dies_is_started_again_and_one_that_is_gone_is_told(clips):
    config = ExtractConfig(detector="dlib-hog", frames_per_clip=2)
    image = portrait(105)
    start_ray()
    try:
        shared = start_detectors(partial(detect_of, config, device="cpu"), device="cpu", num_detectors=1)
        expected = detect_of(config, device="cpu")([image] * 3, upsample=0)
        assert shared([image] * 3, upsample=0) == expected
        (actor,) = shared.actors
        os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
        assert shared([image] * 3, upsample=0) == expected
        with pytest.raises(DetectionError, match=r"for 1 frames: .*float32"):
            shared([image.astype(np.float32)], upsample=0)
        ray.kill(actor)
        ((_, outcome),) = extracted(clips, ["a.mp4"], config, shared_detect=SharedDetectors([actor]))
        assert (outcome["state"], outcome["reason"]) == (State.RETRYABLE, "detector_failed")
        with pytest.raises(UsageError, match="2 detectors on cpu did not start"):
            start_detectors(
                partial(detect_of, ExtractConfig(detector_weights="nowhere.dat"), device="cpu"),
                device="cpu",
                num_detectors=2,
            )
    finally:
        ray.shutdown()
