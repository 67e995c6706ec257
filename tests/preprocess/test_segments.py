"""Long videos in segments: the same examples, one outcome a clip, and nothing lost by what a header claims."""

import csv
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ledgers import audited, joined, pending, planned, sweep

from pipeline.corpus.read import read_corpus
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.retry import chosen, quarantined, retry
from pipeline.models.build import build_model
from pipeline.models.checkpoint import save_checkpoint
from pipeline.preprocess import segments as room
from pipeline.preprocess.config import ExtractConfig, PreprocessConfig
from pipeline.preprocess.extractor import ClipExtractor
from pipeline.preprocess.job import preprocess
from pipeline.records.clips import Clip, clip_table, segment_id, whole_id
from pipeline.records.clips import clip_of as clip_of_row
from pipeline.records.columns import table_of
from pipeline.records.faces import EXAMPLE_SCHEMA, FRAME_SCHEMA
from pipeline.records.outcomes import Outcome, State
from pipeline.records.vocabulary import UsageError
from pipeline.sandbox.limits import SandboxLimits
from pipeline.score.actor import ScoreActor, join_segments
from pipeline.score.config import ScoreConfig
from pipeline.score.job import score
from pipeline.score.night import close_night
from pipeline.video.open import claimed_range

pytestmark = pytest.mark.timeout(300)
NUM_FRAMES, FPS = 203, 10  # 20.3 s


def write_video(path: Path, num_frames: int = NUM_FRAMES, *, shots: tuple[int, ...] | None = None) -> Path:
    """Another picture in every frame, or only where a shot begins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    pixels = np.zeros((48, 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.thread_count = 1
        if shots is not None:
            stream.bit_rate = 4_000_000  # Coarser, its key frames would look like shots.
        for number in range(num_frames):
            if shots is None or number in shots:
                pixels = np.kron(rng.integers(0, 255, (6, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for name in ("film.mp4", "film.avi", "film.mkv"):
        write_video(folder / "in" / name)
    write_video(folder / "in/short.mp4", 20)
    with open(folder / "boxes.csv", "w", newline="") as file:
        rows = [(name.name, "Happy", 10, 10, 30, 30) for name in (folder / "in").iterdir()]
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture
def any_size(monkeypatch):
    monkeypatch.setattr(room, "MIN_BYTES", 0)


def cut(clip, start, end, **options):
    return room.cut(clip, room.edges_of(start, end, **options))


def segmented(clips, *, known=(), **options):
    """The clips as a plan would have them."""
    options = {"limits": SandboxLimits(), **options}
    return list(
        map(clip_of_row, room.segmented(clip_table(clips), pa.array(known, pa.string()), **options).to_pylist())
    )


def config_of(films, **changes):
    return {"boxes": str(films / "boxes.csv"), "face_px": 16, "context_px": 16, "image_format": "png", **changes}


def extracted(clips, config):
    extractor = ClipExtractor(config, limits=SandboxLimits())
    try:
        found = [extractor.extract(clip) for clip in clips]
    finally:
        extractor.sandbox.close()
    return [example for examples, _ in found for example in examples], joined([outcome for _, outcome in found])


def keys(examples):
    return [(e.clip_id, e.frame_index, e.pts_seconds, e.face_jpeg, e.context_jpeg) for e in examples]


@pytest.mark.lengthy
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("sampling", [{"sample_fps": 2.0}, {"sample_fps": 3.0}, {"every_frame": True}])
def test_segments_give_the_examples_of_the_whole_clip(films, sampling):
    clips = read_corpus(str(films / "in")).clips
    config = ExtractConfig(**config_of(films, **sampling))
    parts = segmented(clips, segment_seconds=4.7, sample_fps=config.sample_fps)
    assert [len([p for p in parts if whole_id(p.clip_id) == clip.clip_id]) for clip in clips] == [5, 5, 5, 1]
    whole, whole_outcomes = extracted(clips, config)
    found, outcomes = extracted(parts, config)
    assert keys(found) == keys(whole)
    for one, other in zip(outcomes, whole_outcomes, strict=True):
        assert replace(one, seconds=0, detail=None) == replace(other, seconds=0, detail=None)


@pytest.mark.usefixtures("any_size")
def test_only_long_clips_without_a_range_of_their_own_are_cut(films):
    clips = read_corpus(str(films / "in")).clips
    ranged = [replace(clip, start_pts_seconds=1.0) for clip in clips]
    assert segmented(ranged, segment_seconds=4, sample_fps=2.0) == ranged
    assert segmented(clips, segment_seconds=60, sample_fps=2.0) == list(clips)


@pytest.mark.usefixtures("any_size")
def test_a_film_on_s3_is_cut_by_its_ends_alone(films, s3, monkeypatch):
    monkeypatch.setattr(room, "END_BYTES", 12_000)
    s3.put("in/film.avi", (films / "in/film.avi").read_bytes())
    clips = read_corpus(s3.url("in")).clips
    assert clips[0].size_bytes > 40_000
    assert len(segmented(clips, segment_seconds=4.0, sample_fps=2.0)) == 6


@pytest.mark.usefixtures("any_size")
def test_a_clip_that_is_planned_is_not_opened_again(films, monkeypatch):
    clips, opened = read_corpus(str(films / "in")).clips, []
    monkeypatch.setattr(room, "_ask_child", lambda clip, *_: opened.append(clip.path))
    assert segmented(clips, known=[clip.clip_id for clip in clips], segment_seconds=4.0, sample_fps=2.0) == list(clips)
    assert opened == []
    segmented(clips, known=[clip.clip_id for clip in clips[1:]], segment_seconds=4.0, sample_fps=2.0)
    assert opened == [clips[0].path]


@pytest.mark.lengthy
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize(
    ("sampling", "edges"),
    [({"every_frame": True}, [3.3, 9.5, 14.0, 20.0]), ({"sample_fps": 2.0}, [3.5, 9.5, 14.0, 20.0])],
)
def test_cuts_move_to_the_shot_before_them_and_the_examples_stay(sampling, edges, tmp_path):
    """Cuts at 5, 10, 15 and 20 s; none moves further than half a segment, and shots in between are left alone."""
    write_video(tmp_path / "in/film.mp4", shots=(0, 33, 61, 95, 140, 171))
    (tmp_path / "boxes.csv").write_text("film.mp4,Happy,10,10,30,30\n")
    clips, config = read_corpus(str(tmp_path / "in")).clips, ExtractConfig(**config_of(tmp_path, **sampling))
    parts = segmented(clips, segment_seconds=5.0, sample_fps=config.sample_fps, at_shots=True)
    assert [part.start_pts_seconds for part in parts[1:]] == pytest.approx(edges, abs=1e-9)
    whole, outcomes = extracted(clips, config)
    found, joined_outcomes = extracted(parts, config)
    assert keys(found) == keys(whole)
    assert joined_outcomes[0].num_examples == outcomes[0].num_examples == len(whole)


@pytest.mark.usefixtures("any_size")
def test_a_film_whose_shots_cannot_be_told_is_cut_by_time(films, monkeypatch):
    told = room._ask_child
    monkeypatch.setattr(room, "_ask_child", lambda *arguments: None if arguments[3] else told(*arguments))
    clips = read_corpus(str(films / "in")).clips[:1]
    options = {"segment_seconds": 4.0, "sample_fps": 2.0}
    assert segmented(clips, at_shots=True, **options) == segmented(clips, **options)


def test_cuts_at_shots_without_segments_are_refused():
    with pytest.raises(ValueError, match="--segment-at-shots moves the cuts of --segment-seconds"):
        PreprocessConfig(input="i", output="o", every_frame=True, segment_at_shots=True)


def clip_of(**changes):
    values = {"clip_id": "a" * 20, "path": "a.mp4", "url": "/a.mp4", "size_bytes": 1, "content_id": "x"}
    return Clip(**{**values, **changes})


@pytest.mark.lengthy
@pytest.mark.parametrize("claimed", [(0.0, 8.0), (0.0, 400.0), (3.0, 31.0)])
def test_a_header_that_lies_loses_nothing(films, claimed):
    (clip,) = (clip for clip in read_corpus(str(films / "in")).clips if clip.path == "film.mkv")
    config = ExtractConfig(**config_of(films, every_frame=True))
    parts = cut(clip, *claimed, segment_seconds=4.0, sample_fps=None)
    whole, whole_outcome = extracted([clip], config)
    found, outcome = extracted(parts, config)
    assert keys(found) == keys(whole)
    assert outcome[0].state is State.DONE
    assert outcome[0].num_examples == whole_outcome[0].num_examples == NUM_FRAMES


def test_segments_cover_all_time_and_begin_where_the_clip_is_sampled():
    parts = cut(clip_of(), 0.5, 200.0, segment_seconds=60.0, sample_fps=0.7)
    assert parts[0].start_pts_seconds is None
    assert parts[-1].end_pts_seconds is None
    assert [part.start_pts_seconds for part in parts[1:]] == [part.end_pts_seconds for part in parts[:-1]]
    assert all(abs((part.start_pts_seconds - 0.5) * 0.7 % 1) < 1e-9 for part in parts[1:] if part.start_pts_seconds)
    assert cut(clip_of(), 0.0, 60.0, segment_seconds=60.0, sample_fps=None) == [clip_of()]
    assert len(cut(clip_of(), 0.0, 1e12, segment_seconds=1.0, sample_fps=None)) == room.MAX_SEGMENTS


def test_the_length_is_what_the_header_says(films):
    for name in ("film.mp4", "film.avi", "film.mkv"):
        claimed = claimed_range(films / "in" / name)
        assert claimed is not None
        assert claimed == pytest.approx((0.0, 20.3), abs=0.11)


def outcome_of(number, state, **facts):
    return Outcome(clip_id=segment_id("a" * 20, number), path="a.mp4", state=state, **facts)


@pytest.mark.lengthy
def test_one_outcome_tells_of_all_segments():
    done = outcome_of(0, State.DONE, num_frames=10, num_examples=8, decode_integrity=1.0)
    no_face = outcome_of(1, State.NO_FACE, reason="no_face_found", num_frames=30, decode_integrity=0.5)
    bad = outcome_of(2, State.QUARANTINED, reason="crash", detail="SIGSEGV")
    past = outcome_of(3, State.QUARANTINED, reason="range_past_end")
    unfinished = outcome_of(4, State.RETRYABLE, reason="not_finished")
    (one,) = joined([done, no_face, past])
    assert (one.state, one.reason, one.num_frames, one.num_examples, one.detail) == (State.DONE, None, 40, 8, None)
    assert one.clip_id == "a" * 20
    assert one.decode_integrity == 0.625
    (one,) = joined([done, bad, past])
    assert one.state is State.DONE
    assert one.detail == "1 of 2 segments are quarantined, the first: crash: SIGSEGV"
    assert [joined(parts)[0].state for parts in ([no_face, bad], [no_face, past], [past], [done, bad, unfinished])] == [
        State.QUARANTINED,
        State.NO_FACE,
        State.QUARANTINED,
        State.RETRYABLE,
    ]


@pytest.mark.lengthy
def test_the_ledger_counts_whole_clips_and_keeps_the_cut_it_planned(tmp_path):
    ledger = Ledger(str(tmp_path))
    parts = cut(clip_of(), 0.0, 100.0, segment_seconds=30.0, sample_fps=None)

    def plan(clips):
        return planned(ledger, clips, kind="examples", config={}, versions={}, clips_per_shard=32)[0]

    plan(parts)
    assert [len(unit.clips) for unit in list(ledger.snapshot().units())] == [1, 1, 1, 1]
    assert audited(ledger).num_by_state["retryable"] == audited(ledger).num_inputs == 1
    for unit in list(ledger.snapshot().units())[:3]:
        outcome = Outcome(clip_id=unit.clips[0].clip_id, path="a.mp4", state=State.NO_FACE, reason="no_face_found")
        ledger.commit(unit, tables={"examples": table_of([], EXAMPLE_SCHEMA)}, outcomes=[outcome], facts={})
    for again in (parts, [clip_of()], cut(clip_of(), 0.0, 100.0, segment_seconds=10.0, sample_fps=None)):
        assert plan(again) == []
        assert len(pending(ledger, again)) == 1
    assert audited(ledger).holds


@pytest.mark.usefixtures("any_size")
@pytest.mark.lengthy
def test_preprocess_in_segments_writes_the_same_rows(films, tmp_path, monkeypatch):
    values = {"input": str(films / "in"), "page": False, "no_ray": True, **config_of(films, sample_fps=2.0)}
    run = preprocess(PreprocessConfig(output=str(tmp_path / "out"), segment_seconds=5.0, **values))
    assert run.audit.holds
    assert (run.summary["inputs"], run.summary["done"], run.summary["processed"]) == (4, 4, 4)
    assert len(list(run.ledger.snapshot().units())) > 12
    whole, outcomes = extracted(read_corpus(str(films / "in")).clips, ExtractConfig(**config_of(films, sample_fps=2.0)))
    rows = [row for shard in run.ledger.shards() for row in
            pq.ParquetFile(run.ledger.storage.path(shard["path"])).read().to_pylist()]  # fmt: skip
    assert sorted(
        (r["clip_id"], r["frame_index"], r["pts_seconds"], r["face_jpeg"], r["context_jpeg"]) for r in rows
    ) == (sorted(keys(whole)))
    assert {o.path: o.num_examples for o in run.ledger.snapshot().outcomes()} == {
        o.path: o.num_examples for o in outcomes
    }
    monkeypatch.setattr(room, "_ask_child", lambda *_: pytest.fail("a planned clip was opened"))
    for seconds in (5.0, 0.0):
        again = preprocess(PreprocessConfig(output=str(tmp_path / "out"), segment_seconds=seconds, **values))
        assert again.summary["processed"] == 0


DAY = "2026-11-22"


@pytest.fixture(scope="module")
def checkpoint(films, tmp_path_factory):
    """An untrained network whose examples were made at 2 frames a second, and its sha256."""
    folder = str(tmp_path_factory.mktemp("model"))
    return folder, save_model(folder, {**config_of(films), "detector": "dlib-hog", "sample_fps": 2.0})


def save_model(folder, preprocessing):
    torch.manual_seed(0)
    options = {"attention_gain": "area", "recalibration_scale": "sqrt", "dropout": 0.5}
    return save_checkpoint(
        folder,
        epoch=1,
        step=1,
        model=build_model("caer-net-s"),
        optimizer_state={},
        config={
            "model": {"name": "caer-net-s", "options": options, "face_px": 32, "context_px": 32},
            "training": {},
            "preprocessing": preprocessing,
        },
        info={"metrics": {}, "manifest_sha256": "ab" * 32},
    )


@pytest.fixture(scope="module")
def actor_of(films, checkpoint):
    """Builds what scores units into a ledger; its children are ended with the module."""
    actors = []

    def build(ledger):
        config = ExtractConfig(**config_of(films, detector="dlib-hog", sample_fps=2.0, faces="all"))
        limits, values = SandboxLimits(), {"which": "last", "device": "cpu", "batch_size": 1, "abstain_below": 0.0}
        where = {"ledger_url": ledger.storage.url, "checkpoint": checkpoint[0]}
        actors.append(ScoreActor(config=config, limits=limits, day=DAY, **where, **values))
        return actors[-1]

    yield build
    for actor in actors:
        actor._extractor.sandbox.close()


def labels_of(folder, clips):
    ledger = Ledger(str(folder))
    planned(ledger, clips, kind="labels", config={}, versions={}, clips_per_shard=32)
    return ledger


def rows_of(ledger, table):
    rows = []
    for shard in ledger.shards(table):
        rows += pq.ParquetFile(ledger.storage.path(shard["path"])).read().to_pylist()
    return sorted(rows, key=lambda row: (row["clip_id"], row.get("frame_index", 0), row.get("track_index", 0)))


@pytest.fixture(scope="module")
def whole(films, actor_of, tmp_path_factory):
    """The labels of the films, each read in one go."""
    ledger = labels_of(tmp_path_factory.mktemp("whole"), read_corpus(str(films / "in"), split_fractions=None).clips)
    actor = actor_of(ledger)
    for unit in list(ledger.snapshot().units()):
        actor.run(unit)
    return ledger


@pytest.mark.lengthy
def test_a_clip_that_was_cut_is_labelled_when_its_last_segment_has_ended(films, checkpoint, actor_of, whole, tmp_path):
    film, *_ = (clip for clip in read_corpus(str(films / "in"), split_fractions=None).clips if clip.path == "film.mp4")
    parts = cut(film, 0.0, 20.3, segment_seconds=7.0, sample_fps=2.0)
    copy = replace(film, clip_id="c" * 20, path="again.mp4", same_as=film.clip_id)
    ledger = labels_of(tmp_path, [*parts, replace(film, same_as=film.clip_id), copy])
    actor, options = actor_of(ledger), {"checkpoint_sha256": checkpoint[1], "abstain_below": 0.0, "day": DAY}
    units = pending(ledger, kinds=("compute",))
    for unit in units[:-1]:
        actor.run(unit)
    snapshot = ledger.snapshot()
    snapshot.pending()
    join_segments(ledger, snapshot, **options)
    assert len(pending(ledger, kinds=("joins",))) == 1
    assert audited(ledger).num_by_state["retryable"] == audited(ledger).num_inputs == 2
    actor.run(units[-1])
    now = ledger.snapshot()
    join_segments(ledger, now, **options)
    assert pending(ledger, kinds=("joins",)) == []
    assert list(now.database.rows("select * from outcomes order by all")) == list(
        ledger.snapshot().database.rows("select * from outcomes order by all")
    )
    night = close_night(ledger, now, day=DAY)
    assert night["same_content"] == 1
    assert (night["night"]["clips"], night["night"]["faces"]) == (1, 41)
    for table in ("frames", "tracks", "shots"):
        assert rows_of(ledger, table) == [row for row in rows_of(whole, table) if row["clip_id"] == film.clip_id]
    labels = {row["path"]: row for row in rows_of(ledger, "clips")}
    (expected,) = (row for row in rows_of(whole, "clips") if row["clip_id"] == film.clip_id)
    assert labels["film.mp4"] == expected
    assert labels["again.mp4"] == {**expected, "clip_id": "c" * 20, "path": "again.mp4", "same_as": film.clip_id}
    assert audited(ledger).num_by_state["done"] == audited(ledger).num_inputs == 2
    assert audited(ledger).holds
    assert planned(ledger, [film, copy], kind="labels", config={}, versions={}, clips_per_shard=32)[0] == []
    assert not pending(ledger)


@pytest.mark.lengthy
def test_only_the_segments_that_failed_are_tried_again(tmp_path):
    """Of examples: one segment of a film that is done, and all that failed of one that gave nothing."""
    ledger = Ledger(str(tmp_path))
    films = [clip_of(), clip_of(clip_id="b" * 20, path="b.mp4", url="/b.mp4")]
    parts = [part for film in films for part in cut(film, 0.0, 100.0, segment_seconds=30.0, sample_fps=None)]
    planned(ledger, parts, kind="examples", config={}, versions={}, clips_per_shard=32)

    def run(failed):
        """Every pending segment ends as done, or quarantined for a reason."""
        done = []
        for unit in pending(ledger):
            (clip,) = unit.clips
            state = State.QUARANTINED if clip.clip_id in failed else State.DONE
            outcome = Outcome(clip_id=clip.clip_id, path=clip.path, state=state, reason=failed.get(clip.clip_id))
            ledger.commit(unit, tables={"examples": table_of([], EXAMPLE_SCHEMA)}, outcomes=[outcome], facts={})
            done.append(clip.clip_id)
        return done

    a, b = ([segment_id(film.clip_id, number) for number in range(4)] for film in films)
    assert run({a[1]: "crash", a[3]: "range_past_end", **dict.fromkeys(b, "hang")}) == a + b
    assert audited(ledger).counted == {"done": 1, "no_face": 0, "quarantined": 1, "retryable": 0}
    listed = quarantined(ledger)
    assert [outcome.clip_id for outcome in listed] == [a[1], "b" * 20]
    assert retry(ledger, chosen(listed, ["a.mp4"])) == 1
    assert run({}) == [a[1]]
    assert retry(ledger, quarantined(ledger)) == 1
    assert run({b[2]: "hang"}) == b
    assert retry(ledger, chosen(quarantined(ledger), [b[2]])) == 1
    assert run({}) == [b[2]]
    assert quarantined(ledger) == []
    assert audited(ledger).num_by_state["done"] == audited(ledger).num_inputs == 2
    assert audited(ledger).holds
    assert {outcome.detail for outcome in ledger.snapshot().outcomes()} == {None}


@pytest.mark.lengthy
def test_a_film_that_lost_a_segment_is_labelled_anew_when_that_is_tried_again(
    films, checkpoint, actor_of, whole, tmp_path
):
    film, *_ = (clip for clip in read_corpus(str(films / "in"), split_fractions=None).clips if clip.path == "film.mp4")
    parts = cut(film, 0.0, 20.3, segment_seconds=7.0, sample_fps=2.0)
    copy = replace(film, clip_id="c" * 20, path="again.mp4", same_as=film.clip_id)
    ledger = labels_of(tmp_path, [*parts, replace(film, same_as=film.clip_id), copy])
    actor, options = actor_of(ledger), {"checkpoint_sha256": checkpoint[1], "abstain_below": 0.0, "day": DAY}

    def close():
        snapshot = ledger.snapshot()
        join_segments(ledger, snapshot, **options)
        close_night(ledger, snapshot, day=DAY)
        sweep(ledger)
        return audited(ledger)

    one, lost, other = pending(ledger, kinds=("compute",))
    for unit in (one, other):
        actor.run(unit)
    empty, clip_id = {"segments": FRAME_SCHEMA.empty_table()}, lost.clips[0].clip_id
    crashed = Outcome(clip_id=clip_id, path="film.mp4", state=State.QUARANTINED, reason="crash")
    ledger.commit(lost, tables=empty, outcomes=[crashed], facts={})
    assert close().num_by_state["done"] == 2
    before = rows_of(ledger, "frames")
    assert 0 < len(before) < 41

    (listed,) = quarantined(ledger)
    assert listed.clip_id == clip_id
    assert retry(ledger, [listed]) == 2  # The film, and its copy.
    assert not ledger.storage.exists("_SUCCESS")
    (again,) = pending(ledger, kinds=("compute",))
    assert again.clips == lost.clips
    assert close().num_by_state["retryable"] == 2
    actor.run(again)
    audit = close()
    assert audit.num_by_state["done"] == 2
    assert audit.holds
    for table in ("frames", "tracks"):
        expected = [row for row in rows_of(whole, table) if row["clip_id"] == film.clip_id]
        assert rows_of(ledger, table) == expected
        files = [pq.ParquetFile(ledger.storage.path(name)) for name in ledger.storage.sizes(table)]
        assert sum(file.metadata.num_rows for file in files) == len(expected)
    assert {row["num_faces"] for row in rows_of(ledger, "clips")} == {41}
    assert quarantined(ledger) == []


@pytest.mark.usefixtures("any_size")
@pytest.mark.lengthy
def test_scoring_in_segments_writes_the_labels_of_the_whole_clips(films, checkpoint, whole, tmp_path, monkeypatch):
    values = {
        "input": str(films / "in"),
        "checkpoint": checkpoint[0],
        "which": "last",
        "boxes": config_of(films)["boxes"],
        "abstain_below": 0.0,
        "no_ray": True,
    }
    config = ScoreConfig(
        output=str(tmp_path), segment_seconds=7.0, batch_size=1, device="cpu", day=DAY, page=False, **values
    )
    run = score(config)
    assert run.exit_code == 0
    assert (run.summary["inputs"], run.summary["done"], run.summary["processed"]) == (4, 4, 4)
    assert len(run.ledger.shards("segments")) == 9
    for table in ("frames", "tracks", "clips"):
        assert rows_of(run.ledger, table) == rows_of(whole, table)
    monkeypatch.setattr(room, "_ask_child", lambda *_: pytest.fail("a planned clip was opened"))
    run.ledger.reopen()  # As if the driver had been killed at the end: else there is nothing to plan.
    assert score(config).summary["processed"] == 0


@pytest.mark.lengthy
def test_a_model_of_frames_spread_over_whole_clips_scores_no_segments(films, tmp_path):
    save_model(str(tmp_path / "model"), {**config_of(films), "detector": "dlib-hog", "frames_per_clip": 8})
    config = ScoreConfig(
        input=str(films / "in"),
        checkpoint=str(tmp_path / "model"),
        which="last",
        output=str(tmp_path / "out"),
        segment_seconds=7.0,
    )
    with pytest.raises(UsageError, match="--segment-seconds is for --sample-fps or --every-frame"):
        score(config)
