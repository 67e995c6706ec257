"""The made corpus: its labels need both streams, its files have CAER's form, its faces are found."""

from collections import Counter

import av
import numpy as np
import pytest

from pipeline.faces.crops import crop_face, mask_face
from pipeline.faces.detector import build_detector
from pipeline.records.faces import iou
from pipeline.records.vocabulary import EMOTIONS, SPLITS
from pipeline.synthetic.corpus import (
    BROKEN_PATH,
    EXPRESSIONS,
    FACELESS_PATH,
    FPS,
    NUM_FRAMES,
    draw_frame,
    draw_frames,
    label_of,
    make_corpus,
    plan_corpus,
    single_stream_bounds,
)
from pipeline.synthetic.cues import CORNERS, SIGNS, Cues, cue_bounds, draw_cues
from pipeline.synthetic.scenes import SCENES

pytest.importorskip("skimage", reason="the face comes from scikit-image")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, make_corpus(folder, clips_per_class=(3, 0, 0), seed=1)


def frames_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_the_pair_decides_the_class_and_either_alone_is_bounded():
    clips = plan_corpus(clips_per_class=(6, 3, 3))
    for split in SPLITS:
        chosen = [clip for clip in clips if clip.split == split]
        assert set(Counter(clip.label for clip in chosen).values()) == {len(chosen) // len(EMOTIONS)}
        for stream, bound in zip(("expression", "scene"), single_stream_bounds(), strict=True):
            counts = Counter((getattr(clip, stream), clip.label) for clip in chosen)
            values = {value for value, _ in counts}
            best = sum(max(n for (v, _), n in counts.items() if v == value) for value in values)
            assert best / len(chosen) == pytest.approx(bound)
        assert len({(clip.expression, clip.scene) for clip in chosen}) == len(EXPRESSIONS) * len(SCENES)
    assert single_stream_bounds() == pytest.approx((1 / 7, 1 / 3))


def test_no_two_expressions_agree_on_a_scene():
    for scene in SCENES:
        assert len({label_of(expression, scene) for expression in EXPRESSIONS}) == len(EXPRESSIONS)


def test_counts_that_would_tilt_the_classes_are_refused():
    with pytest.raises(ValueError, match="train: 4 clips a class are no multiple of 3"):
        plan_corpus(clips_per_class=(4, 3, 3))


@pytest.mark.lengthy
def test_every_planned_file_is_written_in_caers_layout(corpus):
    folder, clips = corpus
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert written == sorted(clip.path for clip in clips)
    assert {clip.path for clip in clips if clip.expression is None} == {BROKEN_PATH, FACELESS_PATH}
    assert all(clip.path.split("/")[:2] == [clip.split, clip.label] for clip in clips)


def test_files_have_caers_form(corpus):
    folder, _ = corpus
    for name, codec, tag in (("0001.avi", "mpeg4", "XVID"), ("0002.mp4", "h264", "avc1")):
        with av.open(str(folder / "train" / "Anger" / name)) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height) == (712, 400)
            assert (stream.codec_context.name, stream.codec_context.codec_tag) == (codec, tag)
            assert stream.average_rate == FPS
            assert sum(1 for _ in container.decode(stream)) == NUM_FRAMES


def test_the_broken_file_does_not_open(corpus):
    with pytest.raises(av.FFmpegError):
        frames_of(corpus[0] / BROKEN_PATH)


@pytest.mark.lengthy
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(corpus, tmp_path):
    folder, clips = corpus
    make_corpus(tmp_path / "again", clips_per_class=(3, 0, 0), seed=1)
    assert all((tmp_path / "again" / clip.path).read_bytes() == (folder / clip.path).read_bytes() for clip in clips)
    make_corpus(tmp_path / "other", clips_per_class=(3, 0, 0), seed=2)
    path = clips[0].path
    assert not np.array_equal(frames_of(folder / path)[0], frames_of(tmp_path / "other" / path)[0])


def test_the_face_moves_between_frames(corpus):
    first, *_, last = frames_of(corpus[0] / corpus[1][0].path)
    assert np.abs(first.astype(int) - last).mean() > 5


@pytest.mark.lengthy
def test_dlibs_cnn_finds_every_expression_as_one_face_of_80_px_or_more(corpus):
    folder, clips = corpus
    detector = build_detector("dlib-cnn", precision="fp32")
    chosen = [clip for clip in clips if clip.expression][::4]
    assert {clip.expression for clip in chosen} == set(EXPRESSIONS)
    for clip in chosen:
        (faces,) = detector.detect_faces([frames_of(folder / clip.path)[NUM_FRAMES // 2]])
        assert len(faces) == 1, clip.path
        assert min(faces[0].box.width, faces[0].box.height) >= 80


@pytest.mark.lengthy
def test_dlibs_hog_finds_a_face_in_every_clip_with_one(corpus):
    folder, clips = corpus
    detector = build_detector("dlib-hog")
    for clip in clips:
        if clip.expression:
            assert any(detector.detect_faces(frames_of(folder / clip.path)[::5])), clip.path


@pytest.mark.lengthy
def test_no_face_is_found_in_the_clip_without_one(corpus):
    frames = frames_of(corpus[0] / FACELESS_PATH)
    assert build_detector("dlib-cnn", precision="fp32").detect_faces(frames[::10]) == [[], []]
    assert build_detector("dlib-hog").detect_faces(frames[::5]) == [[]] * 4


DRAWN = {"num_people": 5, "places_per_scene": 2}


@pytest.mark.parametrize("number", range(6))
def test_a_drawn_face_tells_nothing_of_its_scene_and_a_context_nothing_of_its_expression(number):
    def drawn(expression, scene):
        return draw_frame(number, (expression, scene), split="train", **DRAWN)

    first, *others = [drawn(expression, "city") for expression in EXPRESSIONS]
    for other in others:
        assert other.box == first.box
        assert not np.array_equal(other.image, first.image)
        np.testing.assert_array_equal(mask_face(other.image, other.box), mask_face(first.image, first.box))
    elsewhere = drawn(first.expression, "beach")
    box = first.box
    inside = np.s_[box.y_min : box.y_max, box.x_min : box.x_max]
    np.testing.assert_array_equal(elsewhere.image[inside], first.image[inside])
    assert not np.array_equal(elsewhere.image, first.image)


@pytest.mark.lengthy
def test_drawn_splits_share_no_person_and_no_place():
    splits = {split: list(draw_frames(split, frames_per_pair=1, **DRAWN)) for split in ("train", "test")}
    for frames in splits.values():
        assert set(Counter(frame.label for frame in frames).values()) == {len(EXPRESSIONS)}
        assert len({(frame.expression, frame.scene) for frame in frames}) == len(EXPRESSIONS) * len(SCENES)
    train, test = splits.values()
    assert not {frame.person for frame in train} & {frame.person for frame in test}
    assert not {frame.place for frame in train} & {frame.place for frame in test}
    # Names alone would not show it: the same person's number, pose and expression is another face in another split.
    pair = ("smile", "city")
    one, other = (draw_frame(0, pair, split=split, num_people=1, places_per_scene=1) for split in ("train", "test"))
    assert not np.array_equal(one.image, other.image)


def test_dlibs_cnn_finds_a_drawn_persons_face_where_it_is_said_to_be():
    frame = draw_frame(3, ("smile", "city"), split="train", **DRAWN)
    (faces,) = build_detector("dlib-cnn", precision="fp32").detect_faces([frame.image])
    assert len(faces) == 1
    assert iou(faces[0].box, frame.box) > 0.5


def cued(number, cues):
    return draw_frame(number, ("smile", "city"), split="train", cues=cues, **DRAWN)


@pytest.mark.parametrize("number", range(4))
def test_a_lit_face_tells_nothing_of_the_signs_and_the_signs_nothing_of_the_light(number):
    first = cued(number, Cues(lit=0, kinds=(2, None, 5, 6)))
    assert first.label == EMOTIONS[2]
    box = first.box
    inside = np.s_[box.y_min : box.y_max, box.x_min : box.x_max]
    for lit, label in ((2, EMOTIONS[5]), (3, EMOTIONS[6])):
        other = cued(number, Cues(lit=lit, kinds=(2, None, 5, 6)))
        assert (other.label, other.box) == (label, box)
        assert np.abs(other.image[inside].astype(int) - first.image[inside]).mean() > 1
        np.testing.assert_array_equal(mask_face(other.image, box), mask_face(first.image, box))
    elsewhere = cued(number, Cues(lit=0, kinds=(3, 1, None, 0)))
    np.testing.assert_array_equal(elsewhere.image[inside], first.image[inside])
    # Every corner differs, and no sign of one corner depends on those of the others.
    for (x, y), kinds in zip(CORNERS, zip(elsewhere.cues.kinds, first.cues.kinds, strict=True), strict=True):
        corner = np.s_[max(y - 30, 0) : y + 30, max(x - 30, 0) : x + 30]
        assert kinds[0] != kinds[1]
        assert not np.array_equal(elsewhere.image[corner], first.image[corner])
    alone = cued(number, Cues(lit=0, kinds=(2, None, None, None)))
    np.testing.assert_array_equal(alone.image[:120, :150], first.image[:120, :150])


def test_light_falls_on_the_quarter_of_the_face_that_is_said():
    box = cued(0, Cues(lit=0, kinds=(1,) * 4)).box
    lit = np.stack([crop_face(cued(0, Cues(lit=corner, kinds=(1,) * 4)).image, box, face_px=32) for corner in range(4)])
    quarters = lit.mean(-1).reshape(4, 2, 16, 2, 16).mean((2, 4)).reshape(4, 4)  # (light from, quarter)
    np.testing.assert_array_equal((quarters - quarters.mean(0)).argmax(1), range(4))


def test_cues_decide_the_class_together_and_either_stream_alone_is_bounded():
    repeats = 400
    drawn = [draw_cues(index, np.random.default_rng(index)) for index in range(21 * repeats)]
    assert set(Counter(cues.label for cues in drawn).values()) == {3 * repeats}
    assert set(Counter((cues.lit, cues.label) for cues in drawn).values()) == {3 * repeats / 4}
    # The context shows the signs; whichever of them is named, it is right once in their number.
    hung = [[EMOTIONS[kind] for kind in cues.kinds if kind is not None] for cues in drawn]
    assert Counter(map(len, hung)) == dict.fromkeys(SIGNS, 7 * repeats)
    assert all(len(set(signs)) == len(signs) for signs in hung)
    for place in (0, -1):
        right = np.mean([signs[place] == cues.label for signs, cues in zip(hung, drawn, strict=True)])
        assert right == pytest.approx(cue_bounds()[1], abs=0.015)
    assert cue_bounds() == pytest.approx((1 / 7, (1 + 1 / 2 + 1 / 3) / 3))


def test_frames_of_cues_follow_from_their_seed():
    first, again, other = (
        list(draw_frames("train", frames_per_pair=1, corpus="cues", seed=seed, **DRAWN)) for seed in (1, 1, 2)
    )
    assert Counter(frame.label for frame in first) == dict.fromkeys(EMOTIONS, 3)
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.image, same.image)
        assert (one.cues, one.label) == (same.cues, same.cues.label)
    assert [frame.cues for frame in first] != [frame.cues for frame in other]
