"""Hostile and odd files through the real job and the real sandbox: each ends in a state with a reason, and costs
itself.

So does a decoder that was taken over and answers what it likes. `make fuzz N=2000` tries more mutants than the suite
does, and prints how they ended.
"""

import json
import os
import struct
import tempfile
from collections import Counter
from pathlib import Path

import av
import harness
import numpy as np
import pytest
from ledgers import audited
from sandbox_work import answer_raw
from video_zoo import claim_avi_frames, cut, flip_bits, make_clip, remux

from pipeline.faces.crops import decode_image, encode_image
from pipeline.ledger.ledger import Ledger
from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.extractor import ClipExtractor
from pipeline.preprocess.sandboxed import build_work, example_of, facts_of, frame_of, report_of
from pipeline.records.clips import Clip
from pipeline.records.outcomes import State
from pipeline.sandbox.limits import SandboxLimits

pytestmark = pytest.mark.timeout(1800)

IN_ORDER = {"options": {"bf": "0", "g": "12"}}
QUIET_HEVC = {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12"}}
FIVE = {
    "mp4": {"options": {"g": "12"}},
    "mkv": IN_ORDER,
    "avi": {"codec": "mpeg4", "options": {"g": "12"}},
    "webm": {"codec": "libvpx"},
    "ts": {"options": {"g": "12"}},
}
# What a person reads of a file that is damaged, whatever is left of it.
DAMAGED = {"no_face_found", "undecodable", "no_frames", "no_video_stream", "not_a_video", "too_many_pixels"}
SEEN = "no_face_found"  # decoded, searched, and no face in it
NUM_MUTANTS = int(os.environ.get("FUZZ_MUTANTS", "500"))


# The zoo in one folder


def flat(*, width, height, num_frames=3):
    return {
        "num_frames": num_frames,
        "width": width,
        "height": height,
        "images": [np.full((height, width, 3), 90, np.uint8)] * num_frames,
    }


def sound_only(path):
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def patched(source, path, *, after, offset, layout, values):
    """A file with numbers written over what lies `offset` bytes behind the first `after`."""
    data = bytearray(source.read_bytes())
    struct.pack_into(layout, data, data.index(after) + len(after) + offset, *values)
    path.write_bytes(data)


def make_zoo(folder):
    """Writes the zoo; name -> the reason or the set of reasons that it may end with."""
    rng = np.random.default_rng(7)
    expected = {}

    def made(name, reasons, how):
        make_clip(folder / name, **{"num_frames": 24, **how})
        expected[name] = reasons

    def written(name, reasons, data):
        (folder / name).write_bytes(data)
        expected[name] = reasons

    written("empty.mp4", "empty_file", b"")
    written("text.mp4", "not_a_video", b"this is a letter and no film\n" * 200)
    written("playlist.mp4", "playlist", b"#EXTM3U\n#EXTINF:1,\nplain.mp4\n")
    for suffix, how in FIVE.items():
        written(f"random.{suffix}", "not_a_video", rng.bytes(5000))
        made(f"plain.{suffix}", SEEN, how)
        plain = folder / f"plain.{suffix}"
        for tenth in range(1, 10):
            cut(plain, folder / f"cut_{tenth}0.{suffix}", share=tenth / 10)
            expected[f"cut_{tenth}0.{suffix}"] = DAMAGED
        for part, begin, end in (("header", 0.0, 0.02), ("body", 0.1, 0.9)):
            flip_bits(plain, folder / f"flipped_{part}.{suffix}", seed=3, num_flips=12, begin=begin, end=end)
            expected[f"flipped_{part}.{suffix}"] = DAMAGED

    mp4, avi = folder / "plain.mp4", folder / "plain.avi"
    claim_avi_frames(avi, folder / "claims_frames.avi", num_frames=10**9)
    patched(mp4, folder / "claims_frames.mp4", after=b"stsz", offset=8, layout=">I", values=[10**9])
    patched(avi, folder / "claims_size.avi", after=b"strf", offset=8, layout="<ii", values=[65535, 65535])
    patched(mp4, folder / "claims_size.mp4", after=b"avc1", offset=24, layout=">HH", values=[65535, 65535])
    expected |= {"claims_frames.avi": SEEN, "claims_frames.mp4": "undecodable", "claims_size.avi": SEEN}
    expected["claims_size.mp4"] = DAMAGED

    sound_only(folder / "sound_only.mp4")
    expected["sound_only.mp4"] = "no_video_stream"
    made("one_frame.mp4", SEEN, {"num_frames": 1})
    for width, height in ((1, 1), (2, 2), (3, 7)):
        size = flat(width=width, height=height)
        made(f"{width}x{height}.mov", SEEN, {"codec": "png", "pixel_format": "rgb24", **size})
    large = flat(width=7680, height=4320, num_frames=1)
    made("7680x4320.mp4", "too_many_pixels", {"options": {"preset": "ultrafast"}, **large})
    made("7680x4320.avi", "undecodable", {"codec": "mjpeg", "pixel_format": "yuvj420p", **large})
    made("ten_bits.mp4", SEEN, {"pixel_format": "yuv420p10le", **QUIET_HEVC})
    made("interlaced.mp4", SEEN, {"options": {"flags": "+ildct+ilme", "x264-params": "tff=1"}})
    made("alpha.mov", SEEN, {"codec": "qtrle", "pixel_format": "argb"})
    for angle in (0, 90, 180, 270):
        made(f"rotated_{angle}.mp4", SEEN, {"rotation": angle})
        made(f"mirrored_{angle}.mp4", SEEN, {"rotation": angle, "mirror": True})
    ticks = [33 * number + 7 * (number % 3) + (500 if number > 10 else 0) for number in range(24)]
    made("variable_rate.mp4", SEEN, {"ticks": ticks})

    def earlier(_, packet):
        packet.pts, packet.dts = packet.pts - 5120, packet.dts - 5120  # 10 frames at 1/15360 s
        return [packet]

    def shuffled(number, packet):
        packet.pts += 70 if number % 3 == 1 else 0  # ms, past the two frames behind it
        return [packet]

    matroska = folder / "plain.mkv"
    remux(mp4, folder / "negative_pts.mp4", earlier)
    remux(matroska, folder / "shuffled_pts.mkv", shuffled)
    remux(matroska, folder / "no_key_at_start.mkv", lambda number, packet: [packet] if number >= 5 else [])
    remux(matroska, folder / "no_key_at_all.mkv", lambda number, packet: [packet] if 5 <= number < 12 else [])
    expected |= {"negative_pts.mp4": SEEN, "shuffled_pts.mkv": SEEN, "no_key_at_start.mkv": SEEN}
    expected["no_key_at_all.mkv"] = "undecodable"

    names = ("with space.mp4", "a'b\"c`$(touch x);&.mp4", "new\nline.mp4", "é 漢字.mp4", "-dash.mp4", "%03d.mp4")
    for name in (*names, "x" * 251 + ".mp4"):
        written(name, SEEN, mp4.read_bytes())

    (folder / "link.mp4").symlink_to("plain.mp4")
    (folder / "link_to_elsewhere.mp4").symlink_to(folder.parent / "elsewhere.mp4")
    make_clip(folder.parent / "elsewhere.mp4", num_frames=3)
    expected |= {"link.mp4": SEEN, "link_to_elsewhere.mp4": SEEN}
    written("locked.mp4", SEEN, mp4.read_bytes())
    (folder / "locked.mp4").chmod(0)
    if not os.access(folder / "locked.mp4", os.R_OK):
        expected["locked.mp4"] = "unreadable"
    return expected


def add_what_is_no_file(folder):
    """Adds what must never be opened; the names."""
    os.mkfifo(folder / "fifo.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "nowhere.mp4").symlink_to("nowhere at all.mp4")
    (folder / "up").symlink_to("..")
    return {"fifo.mp4", "device.mp4", "loop.mp4", "nowhere.mp4", "up/"}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """The zoo after the real job: its folders, what was expected of each file, and what was there before."""
    top = tmp_path_factory.mktemp("zoo")
    (top / "in").mkdir()
    (top / "temporary").mkdir()
    expected, no_files = make_zoo(top / "in"), add_what_is_no_file(top / "in")
    before, short = contents_of(top), tempfile.gettempdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(top / "temporary"))
        patch.setenv("RAY_TMPDIR", short)  # Ray's sockets need a path of at most 107 bytes.
        arguments = ("--input", top / "in", "--output", top / "out", "--detector", "dlib-hog")
        options = ("--frames-per-clip", "2", "--clips-per-shard", "30", "--actors", "2", "--follow-links")
        code = harness.finish_job("preprocess.py", *map(str, arguments), *options, log=top.parent / "zoo.log")
    assert code == 0, (top.parent / "zoo.log").read_text()
    return top, expected, no_files, before


def contents_of(top):
    """path -> (bytes, time of the last change) of all below a folder, links not followed, but what lies in out."""
    return {
        path.relative_to(top): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in top.rglob("*")
        if path != top and path.relative_to(top).parts[0] != "out"
    }


@pytest.mark.ray
def test_every_file_of_the_zoo_ends_in_a_state_with_a_reason_that_a_person_understands(zoo):
    top, expected, no_files, _ = zoo
    outcomes = {outcome["path"]: outcome for outcome in harness.outcomes_of(top / "out")}
    ignored = {each["path"]: each["reason"] for each in json.loads((top / "out" / "ignored.json").read_text())}
    assert set(outcomes) == set(expected)
    wrong = {
        name: (outcome["state"], outcome["reason"], outcome["detail"])
        for name, outcome in outcomes.items()
        if outcome["reason"] not in (reasons if isinstance(reasons := expected[name], set) else {reasons})
    }
    assert not wrong
    assert no_files <= set(ignored)
    assert all(len(outcome["detail"]) > 20 for outcome in outcomes.values())
    assert all(len(reason) > 10 for reason in ignored.values())


@pytest.mark.ray
def test_the_zoo_costs_no_actor_and_the_audit_holds(zoo):
    top, expected, _, _ = zoo
    summary = json.loads((top / "out" / "summary.json").read_text())
    assert (summary["inputs"], summary["retryable"], summary["errors"]) == (len(expected), 0, [])
    assert audited(Ledger(str(top / "out"))).holds
    facts = [entry["facts"] for entry in Ledger(str(top / "out")).entries()]
    # The second is for the link that leads out of the input, whose folder the first may not read.
    assert max(fact["children_started"] for fact in facts) <= 2


@pytest.mark.ray
def test_the_zoo_writes_nothing_outside_the_output(zoo):
    top, _, _, before = zoo
    after = contents_of(top)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {Path("temporary")}  # its own time of change


# Mutants


def mutant_of(sources, rng):
    """(what was done, bytes): one of the sources with flipped bits, cut, spliced, zeroed or doubled in part."""
    data = bytearray(sources[rng.integers(len(sources))])
    kind = ("header bits", "body bits", "both bits", "cut", "splice", "zeros", "double")[rng.integers(7)]
    low, high = sorted(int(at) for at in rng.integers(1, len(data), 2))
    if kind.endswith("bits"):
        head = max(64, len(data) // 50)
        begin, end = {"header bits": (0, head), "body bits": (head, len(data)), "both bits": (0, len(data))}[kind]
        for at in rng.integers(begin, end, rng.integers(1, 30)):
            data[at] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[high:]
    elif kind == "splice":
        data[low:] = sources[rng.integers(len(sources))][low:]
    elif kind == "zeros":
        data[low:high] = bytes(high - low)
    else:
        data[low:low] = data[low:high]
    return kind, bytes(data)


@pytest.mark.lengthy
def test_mutants_of_five_containers_cost_themselves_alone(tmp_path):
    sources = [
        make_clip(tmp_path / f"a.{suffix}", num_frames=20, width=96, height=64, **how).read_bytes()
        for suffix, how in FIVE.items()
    ]
    (tmp_path / "boxes.csv").write_text("mutant.mp4,Happy,10,10,50,50\n")
    path = tmp_path / "mutant.mp4"
    clip = Clip(clip_id="0" * 20, path=path.name, url=str(path), size_bytes=1, content_id="x")
    config = ExtractConfig(boxes=str(tmp_path / "boxes.csv"), frames_per_clip=4, face_px=16, context_px=16)
    rng = np.random.default_rng(11)
    ends, unforeseen = Counter(), []
    for decoder in ("auto", "decord"):  # the second wherever a mutant still looks as if decord were exact on it
        extractor = ClipExtractor(ExtractConfig(**{**vars(config), "decoder": decoder}), limits=SandboxLimits())
        for _ in range(NUM_MUTANTS // 2):
            kind, data = mutant_of(sources, rng)
            path.write_bytes(data)
            examples, outcome = extractor.extract(clip)
            assert outcome.state in State
            assert len(examples) == outcome.num_examples
            assert outcome.state is State.DONE or (outcome.reason and len(outcome.detail or "") > 20)
            ends[decoder, str(outcome.state), outcome.reason or f"by {outcome.decoder}"] += 1
            if outcome.reason in ("crash", "hang", "memory", "exception", "killed"):
                unforeseen.append((kind, outcome.reason, outcome.stage, outcome.detail))
        assert extractor.sandbox.num_starts <= 1 + 2 * len(unforeseen)
        extractor.sandbox.close()
    print(f"\n{ends.total()} mutants")
    for end, count in sorted(ends.items()):
        print(f"{count:6d}  {' '.join(end)}")
    assert not unforeseen
    assert sum(count for (_, state, _), count in ends.items() if state == State.DONE) > ends.total() / 4


# A decoder that was taken over

TOLD = {
    "frame_index": 3, "pts_seconds": 0.5, "face_index": 0, "face_score": 1.5, "frame_width": 64, "frame_height": 48,
    "box": [0, 0, 20, 20], "face_jpeg": np.full((16, 16, 3), 90, np.uint8),
    "context_jpeg": np.zeros((24, 24, 3), np.uint8),
}  # fmt: skip
SMALL = ExtractConfig(face_px=16, context_px=24, image_format="png")
FACTS = {
    "num_frames": 4, "num_faceless_frames": 1, "num_boxes_clamped": 0, "num_examples": 3, "decoder": "pyav",
    "decoder_reason": "b_frames", "decode_integrity": 0.75, "detail": None,
}  # fmt: skip
REPORT = {
    "decoder": "pyav", "decoder_reason": "b_frames", "container": "mov", "codec": "h264", "num_frames": 4,
    "num_decoded": 4, "num_corrupt": 0, "num_repeated": 0, "num_missing": 0, "decode_integrity": 1.0, "notes": ["a"],
}  # fmt: skip
FRAME = {"frame_index": 0, "pts_seconds": -1.0, "seconds": 0.0, "image": np.zeros((2, 3, 3), np.uint8)}
CLIP = Clip(clip_id="0" * 20, path="a.mp4", url="/a.mp4", label="Sad", split="train", size_bytes=1, content_id="x")


def test_what_a_child_tells_is_taken_and_the_clip_and_its_label_are_not_its_to_tell():
    example = example_of(TOLD, CLIP, SMALL)
    assert (example.clip_id, example.label, example.split) == (CLIP.clip_id, "Sad", "train")
    assert (example.box.x_max, example.pts_seconds) == (20, 0.5)
    assert example.face_jpeg == encode_image(TOLD["face_jpeg"], image_format="png")
    np.testing.assert_array_equal(decode_image(example.context_jpeg), TOLD["context_jpeg"])
    assert facts_of({**FACTS, "detail": "2 of\x1b[2J\n4"}, num_examples=3)["detail"] == "2 of [2J 4"
    assert report_of(REPORT).notes == ("a",)
    assert frame_of(FRAME).image.shape == (2, 3, 3)


@pytest.mark.parametrize(
    "lie",
    [
        {"clip_id": "another's"},
        {"frame_index": -1},
        {"frame_index": 2**31},
        {"frame_index": True},
        {"pts_seconds": float("nan")},
        {"pts_seconds": 1},
        {"face_score": float("inf")},
        {"box": [0, 0, 65, 20]},
        {"box": [20, 0, 0, 20]},
        {"box": [0, 0, 20]},
        {"box": [0, 0, 20, 20.5]},
        {"frame_width": 2**20, "frame_height": 2**20},
        {"face_jpeg": b"\xff\xd8\xff and another clip behind it"},
        {"face_jpeg": "text"},
        {"face_jpeg": np.zeros((16, 17, 3), np.uint8)},
        {"face_jpeg": np.zeros((16, 16, 3), np.float32)},
        {"face_jpeg": np.zeros((4096, 4096, 3), np.uint8)},
        {"context_jpeg": np.zeros((24, 24), np.uint8)},
        {"context_jpeg": None},
    ],
)
def test_an_example_that_is_none_is_refused(lie):
    with pytest.raises(ValueError):
        example_of({**TOLD, **lie}, CLIP, SMALL)


def test_texts_of_a_child_are_short():
    facts = facts_of({**FACTS, "detail": "x" * 5000, "decoder_reason": "y" * 5000}, num_examples=3)
    assert {len(facts[name]) for name in ("detail", "decoder_reason")} == {200}
    report = report_of({**REPORT, "notes": ["z" * 5000] * 100})
    assert (len(report.notes), len(report.notes[0])) == (8, 200)


def test_facts_reports_and_frames_that_are_none_are_refused():
    lies = ({"num_examples": 2}, {"decode_integrity": 1.5}, {"decoder": b"pyav"}, {"num_frames": -1}, {"more": 1})
    for lie in lies:
        with pytest.raises(ValueError):
            facts_of({**FACTS, **lie}, num_examples=3)
    for lie in ({"notes": [b"a"]}, {"notes": "a"}, {"decode_integrity": float("nan")}, {"num_missing": 1.0}):
        with pytest.raises(ValueError):
            report_of({**REPORT, **lie})
    for image in (np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 3), np.float32), np.zeros((0, 3, 3), np.uint8), b""):
        with pytest.raises(ValueError):
            frame_of({**FRAME, "image": image})
    for told in (None, [], {}, "text"):
        with pytest.raises(ValueError):
            frame_of(told)


def taken_over(config):
    """The work of a child that a clip has taken over: it lies, and then sends a pickle that makes a file."""
    work = build_work(config)

    def hostile(task, stage):
        path = task["clip"].path
        running = work(task, stage)
        while True:
            try:
                item = next(running)
            except StopIteration as end:
                return end.value
            if path == "bomb.mp4":
                answer_raw({"name": "pickle", "path": str(task["path"].parent.parent / "made")})
            yield {**item, "clip_id": "another's"} if path == "forged.mp4" else item

    return hostile


@pytest.mark.lengthy
def test_a_decoder_that_was_taken_over_costs_its_clip_and_runs_nothing_in_its_actor(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.preprocess.extractor.build_work", taken_over)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ("forged.mp4", "bomb.mp4", "good.mp4")
    for name in names:
        make_clip(tmp_path / name, num_frames=12, width=96, height=64)
    (tmp_path / "boxes.csv").write_text("".join(f"{name},Happy,10,10,50,50\n" for name in names))
    config = ExtractConfig(boxes=str(tmp_path / "boxes.csv"), frames_per_clip=2, face_px=16, context_px=16)
    extractor = ClipExtractor(config, limits=SandboxLimits())
    outcomes = []
    for name in names:
        clip = Clip(clip_id="0" * 20, path=name, url=str(tmp_path / name), size_bytes=1, content_id="x")
        outcomes.append(extractor.extract(clip)[1])
    extractor.sandbox.close()
    assert [(each.state, each.reason, each.attempts) for each in outcomes] == [
        (State.QUARANTINED, "bad_answer", 2),
        (State.QUARANTINED, "bad_answer", 2),
        (State.DONE, None, 1),
    ]
    assert "its fields are others" in outcomes[0].detail
    assert not (tmp_path / "made").exists()


# A budget for each clip


def black_clip(folder, **limits):
    """What 24 frames of 96 x 64 pixels end as, every frame of them, under a budget."""
    make_clip(folder / "a.mp4", num_frames=24, width=96, height=64, options={"g": "12", "bf": "0"})
    (folder / "boxes.csv").write_text("a.mp4,Happy,10,10,50,50\n")
    config = {"boxes": str(folder / "boxes.csv"), "every_frame": True, "face_px": 16, "context_px": 16}
    config |= {name: limits.pop(name) for name in ("min_decode_integrity",) if name in limits}
    extractor = ClipExtractor(ExtractConfig(**config), limits=SandboxLimits(**limits))
    clip = Clip(clip_id="0" * 20, path="a.mp4", url=str(folder / "a.mp4"), size_bytes=1, content_id="x")
    found = extractor.extract(clip)
    extractor.sandbox.close()
    return found


@pytest.mark.lengthy
def test_what_was_decoded_within_the_budget_is_kept_with_a_reason(tmp_path):
    examples, outcome = black_clip(tmp_path, clip_pixels=96 * 64 * 10)
    assert [example.frame_index for example in examples] == list(range(10))
    assert (outcome.state, outcome.reason) == (State.DONE, "over_budget")
    assert (outcome.num_frames, outcome.num_frames_over_budget) == (10, 14)
    assert outcome.decode_integrity == pytest.approx(10 / 24)
    assert "the budget of pixels for a clip was used up, 10 of 24 frames were taken" in outcome.detail


def test_what_was_decoded_within_the_budget_is_dropped_below_the_least_integrity(tmp_path):
    examples, outcome = black_clip(tmp_path, clip_pixels=96 * 64 * 10, min_decode_integrity=0.5)
    assert (examples, outcome.state, outcome.reason) == ([], State.QUARANTINED, "over_budget")
    assert (outcome.num_examples_dropped, outcome.num_frames_over_budget) == (10, 14)


@pytest.mark.lengthy
def test_a_clip_whose_time_is_over_before_its_first_frame_is_quarantined_and_not_tried_again(tmp_path):
    examples, outcome = black_clip(tmp_path, clip_seconds=1e-6)
    assert (examples, outcome.state, outcome.reason) == ([], State.QUARANTINED, "over_budget")
    assert (outcome.attempts, outcome.stage) == (1, "decode")
    assert "the budget of time for a clip was used up" in outcome.detail


def test_a_clip_within_its_budget_is_whole(tmp_path):
    examples, outcome = black_clip(tmp_path, clip_pixels=96 * 64 * 24)
    assert (len(examples), outcome.reason, outcome.num_frames_over_budget, outcome.decode_integrity) == (24, None, 0, 1)


def deaf(config):
    """The work of a child that knows no budget and says that it makes progress."""
    del config

    def work(task, stage):
        yield from ()
        while task:
            stage("decode")

    return work


@pytest.mark.lengthy
def test_a_child_that_does_not_stop_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.preprocess.extractor.build_work", deaf)
    examples, outcome = black_clip(tmp_path, clip_seconds=0.5, timeout_seconds=0.5)
    assert (examples, outcome.state, outcome.reason) == ([], State.QUARANTINED, "over_budget")
    assert (outcome.attempts, outcome.stage) == (1, "decode")
