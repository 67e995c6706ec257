"""Persons are followed over cuts by embeddings of their faces, which are dropped when the clip is done."""

from dataclasses import replace

import av
import numpy as np
import pyarrow as pa
import pytest
from ledgers import audited, finish, pending, planned, sweep
from made_labels import DAY, FPS, SHA256, MadeClip, predicted

from pipeline import report
from pipeline.faces.persons import linked
from pipeline.ledger.config import ForgetConfig
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outputs import runs_in
from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.extractor import ClipExtractor
from pipeline.records.clips import Clip, segment_id
from pipeline.records.evolution import read_shard
from pipeline.records.faces import (
    EMBEDDING_SCHEMA,
    EXAMPLE_SCHEMA,
    FRAME_SCHEMA,
    TRACK_SCHEMA,
    Box,
    FaceEmbedding,
    Prediction,
    TrackLabel,
)
from pipeline.records.outcomes import Outcome, State
from pipeline.report.people import clip_view
from pipeline.sandbox.limits import SandboxLimits
from pipeline.score.actor import join_segments
from pipeline.score.config import ScoreConfig
from pipeline.score.forget_job import forget_in
from pipeline.score.labels import UnitLabels, predictions_of
from pipeline.score.linking import FOLDER, PersonEmbedder, keep_for_join, key_of, rows_of
from pipeline.storage.store import Storage
from pipeline.video.frames import Cuts

pytestmark = pytest.mark.lengthy

FILM = Clip(clip_id="0" * 20, path="film.mp4", url="/film.mp4", size_bytes=1, content_id="x")
TWO = MadeClip("film.mp4", emotions=(("Happy", "Happy"), ("Sad", "Sad")), every=2)
CUTS = Cuts(start_frame=0, start_seconds=0.0, end_seconds=2.0, frames=(20, 36), times=(0.8, 1.44))


def faces_of(*persons, frames=range(0, 50, 2)):
    """Faces of made persons; in each shot of CUTS they are tracks of their own."""
    faces, _ = predicted(TWO, FILM.clip_id, np.arange(50) / FPS)
    return [face for face in faces if face.frame_index in frames and face.face_index in persons]


def embedded(faces):
    """An embedding of every face: the first person's, or the second's."""
    return {key_of(face): np.eye(2, 128, dtype=np.float32)[face.face_index] for face in faces}


def alike(count):
    return np.full((count, 7), 1 / 7, np.float32)


def labelled(faces, embeddings, **options):
    labels = UnitLabels(SHA256, abstain_below=0.0, day=DAY, **options)
    outcome = Outcome(clip_id=FILM.clip_id, path=FILM.path, state=State.DONE, num_frames=25)
    labels.add(FILM, outcome, faces, alike(len(faces)), cuts=CUTS, embeddings=embeddings)
    return labels.tables()


def test_without_it_nobody_is_linked():
    tables = labelled(faces_of(0, 1), None)
    assert tables["tracks"]["track_index"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert set(tables["tracks"]["person_index"].to_pylist()) == {None}
    assert tables["clips"]["num_persons"].to_pylist() == [None]
    assert "embeddings" not in tables


def test_persons_have_one_number_over_all_shots():
    faces = faces_of(0, 1)
    tables = labelled(faces, embedded(faces))
    assert tables["tracks"]["person_index"].to_pylist() == [0, 1, 0, 1, 0, 1]
    assert tables["clips"].select(["num_tracks", "num_persons"]).to_pylist() == [{"num_tracks": 6, "num_persons": 2}]
    frames = tables["frames"].to_pylist()
    assert {(row["face_index"], row["person_index"]) for row in frames} == {(0, 0), (1, 1)}
    assert "embeddings" not in tables


def test_the_page_says_who_is_seen_in_several_shots():
    faces = faces_of(0, 1)
    tables = labelled(faces, embedded(faces))
    label = report.labels_of(tables["clips"]).to_pylist()[0]
    view = clip_view(report.shown_clip(label, tables["frames"], tables["tracks"], []), most_points=10, blur_faces=False)
    assert view["found"].endswith("frames of 3 shots, who are 2 persons over all shots")
    assert view["persons"][0]["times"].endswith("; the same person as 3, 5 in other shots")
    plain = labelled(faces, None)
    label = report.labels_of(plain["clips"]).to_pylist()[0]
    view = clip_view(report.shown_clip(label, plain["frames"], plain["tracks"], []), most_points=10, blur_faces=False)
    assert view["found"].endswith("frames of 3 shots")
    assert "same person" not in view["persons"][0]["times"]


def test_a_stray_is_no_person():
    away = Box(200, 10, 240, 50)
    faces = [*faces_of(0), replace(faces_of(0)[-1], face_index=1, box=away)]
    found = predictions_of(faces, alike(len(faces)), abstain_below=0, num_frames=25, embeddings=embedded(faces))
    assert [face.person_index for face in found] == [0] * (len(faces) - 1) + [None]


def test_embeddings_are_kept_where_that_is_asked_for():
    faces = faces_of(0, 1)
    chosen = {key: value for key, value in embedded(faces).items() if key[0] % 10 == 0}
    table = labelled(faces, chosen, keep_embeddings=True)["embeddings"]
    assert table.schema.names == EMBEDDING_SCHEMA.names
    assert [(row["frame_index"], row["face_index"]) for row in table.to_pylist()] == sorted(chosen)
    assert all(row["person_index"] == row["face_index"] for row in table.to_pylist())
    found = [np.frombuffer(value, "<f4") for value in table["embedding"].to_pylist()]
    np.testing.assert_array_equal(np.stack(found), np.stack(list(chosen.values())))


def test_no_stored_table_but_that_one_has_an_upright_face_or_an_embedding():
    for schema in (EXAMPLE_SCHEMA, FRAME_SCHEMA, TRACK_SCHEMA):
        assert not [name for name in schema.names if "chip" in name or "embedding" in name]


def cuts_within(frames):
    """Each segment but the first begins with a cut."""
    start, end = frames[0] / FPS, (frames[-1] + 1) / FPS
    own = (frames[0],) if frames[0] else ()
    return Cuts(start_frame=frames[0], start_seconds=start, end_seconds=end, frames=own, times=(start,) * len(own))


def joined_film(folder, *, link, keep=False, persons=((0, 1), (1,), (0, 1))):
    """A film of three segments, one of which is joined in a later run; its ledger."""
    parts = [replace(FILM, clip_id=segment_id(FILM.clip_id, number)) for number in range(3)]
    ledger = Ledger(str(folder / f"model={SHA256[:12]}"))
    planned(ledger, [*parts, replace(FILM, same_as=FILM.clip_id)], kind="labels", config={}, versions={},
            clips_per_shard=32)  # fmt: skip
    spans = (range(20), range(20, 36), range(36, 50))
    units = pending(ledger, kinds=("compute",))
    options = {"checkpoint_sha256": SHA256, "abstain_below": 0.0, "day": DAY}

    def join():
        snapshot = ledger.snapshot()
        join_segments(ledger, snapshot, link_persons=link, keep_embeddings=keep, **options)
        sweep(ledger)

    for number, (unit, who, frames) in enumerate(zip(units, persons, spans, strict=True)):
        if number == 2:
            join()
            assert len(list(ledger.storage.sizes(FOLDER))) == 2  # They wait for the last segment.
        faces = faces_of(*who, frames=frames)
        keep_for_join(ledger.storage, unit.unit_id, list(rows_of(faces, embedded(faces), path="film.mp4", model=None)))
        labels = UnitLabels(SHA256, abstain_below=0.0, day=DAY)
        part = unit.clips[0]
        counts = {"num_frames": len(frames) // 2, "num_examples": len(faces)}
        outcome = Outcome(clip_id=part.clip_id, path=part.path, state=State.DONE, **counts)
        labels.add(part, outcome, faces, alike(len(faces)), cuts=cuts_within(frames))
        tables = {"segments": labels.tables()["frames"], "segment_shots": labels.tables()["shots"]}
        ledger.commit(unit, tables=tables, outcomes=[outcome], facts={}, partition=f"day={DAY}")
    join()
    finish(ledger)
    return ledger


def rows_in(ledger, table, record, schema):
    names = [name for name in ledger.storage.sizes(table) if name.endswith(".parquet")]
    return pa.concat_tables([read_shard(ledger.storage.read(name), record, schema) for name in names]).to_pylist()


@pytest.mark.parametrize(("link", "keep"), [(True, False), (True, True), (False, False)])
def test_a_film_in_segments_is_linked_over_the_whole(tmp_path, link, keep):
    ledger = joined_film(tmp_path, link=link, keep=keep)
    rows = rows_in(ledger, "frames", Prediction, FRAME_SCHEMA)
    assert {(row["face_index"], row["person_index"]) for row in rows} == (
        {(0, 0), (1, 1)} if link else {(0, None), (1, None)}
    )
    tracks = rows_in(ledger, "tracks", TrackLabel, TRACK_SCHEMA)
    assert len(tracks) == 5
    assert len({row["person_index"] for row in tracks}) == (2 if link else 1)
    assert not list(ledger.storage.sizes(FOLDER))
    assert bool(list(ledger.storage.sizes("embeddings"))) is keep
    assert audited(ledger).holds


def test_who_is_forgotten_is_forgotten_in_all_shots_with_what_tells_who_it_is(tmp_path):
    ledger = joined_film(tmp_path, link=True, keep=True)
    persons = {row["track_index"]: row["person_index"] for row in rows_in(ledger, "tracks", TrackLabel, TRACK_SCHEMA)}
    track = next(track for track, person in persons.items() if person == 1)
    before = rows_in(ledger, "embeddings", FaceEmbedding, EMBEDDING_SCHEMA)
    assert {row["person_index"] for row in before} == {0, 1}
    lines = list(
        forget_in(runs_in(str(tmp_path)), ForgetConfig(output=str(tmp_path), person=(f"film.mp4:{track + 1}",)))
    )
    assert all(left == () for _, left in lines)
    for table, record, schema in (
        ("frames", Prediction, FRAME_SCHEMA),
        ("tracks", TrackLabel, TRACK_SCHEMA),
        ("embeddings", FaceEmbedding, EMBEDDING_SCHEMA),
    ):
        assert {row["person_index"] for row in rows_in(ledger, table, record, schema)} == {0}, table
    assert audited(ledger).holds


def test_embeddings_without_linking_are_refused():
    values = {"input": "a", "output": "b", "checkpoint": "baseline"}
    with pytest.raises(ValueError, match="--keep-embeddings keeps those of --link-persons; give that too"):
        ScoreConfig(**values, keep_embeddings=True)
    assert not ScoreConfig(**values).link_persons


def test_what_is_in_the_way_of_the_join_is_swept(tmp_path):
    """Embeddings whose film was joined by a run that was killed before it deleted them."""
    ledger = joined_film(tmp_path, link=True)
    faces = faces_of(0)
    keep_for_join(ledger.storage, "u", list(rows_of(faces, embedded(faces), path="film.mp4", model=None)))
    join_segments(ledger, ledger.snapshot(), checkpoint_sha256=SHA256, abstain_below=0.0, day=DAY)
    assert not list(Storage(ledger.storage.url).sizes(FOLDER))


@pytest.mark.lengthy
def test_persons_of_real_clips_are_followed_over_cuts(real_clips_dir, tmp_path):
    """Three persons, by eye: book, learn and walk show one, brother and help another, night the third."""
    shots, wanted = ("book", "brother", "night", "walk", "help", "learn"), [0, 1, 2, 0, 1, 0]
    with av.open(str(tmp_path / "film.mp4"), "w") as writer:
        stream = writer.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for name in shots:
            with av.open(str(real_clips_dir / f"asl_{name}.mkv")) as reader:
                for number, frame in enumerate(reader.decode(video=0)):
                    if number % 2 == 0 and number < 40:
                        image = frame.to_ndarray(format="rgb24")
                        writer.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        writer.mux(stream.encode())
    config = ExtractConfig(sample_fps=6, upsample=1, faces="largest", detector="dlib-hog", face_px=48, context_px=16)
    clip = replace(FILM, url=str(tmp_path / "film.mp4"))
    extractor = ClipExtractor(config, limits=SandboxLimits(), finds_cuts=True, chips=True)
    try:
        examples, outcome = extractor.extract(clip)
        cuts = extractor.cuts
    finally:
        extractor.sandbox.close()
    assert cuts is not None
    assert len(cuts.frames) == 5
    embeddings = PersonEmbedder(device="cpu").embeddings(examples, cuts=cuts.frames)
    found = predictions_of(
        examples,
        alike(len(examples)),
        abstain_below=0,
        num_frames=outcome.num_frames,
        cuts=cuts.frames,
        embeddings=embeddings,
    )
    shown = {}
    for face in found:
        if not face.stray:
            shown.setdefault(sum(face.frame_index >= cut for cut in cuts.frames), set()).add(face.person_index)
    assert shown == {shot: {person} for shot, person in enumerate(wanted)}
    assert len(set(linked(examples, cuts=cuts.frames))) >= 6
