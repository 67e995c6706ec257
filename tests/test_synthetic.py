"""The made corpus: its labels need both streams, its files have CAER's form, its faces are found."""

from collections import Counter

import av
import numpy as np
import pytest

from pipeline.detection import build_detector
from pipeline.records import EMOTIONS, SPLITS
from pipeline.synthetic import (
    BROKEN_PATH,
    EXPRESSIONS,
    FACELESS_PATH,
    FPS,
    NUM_FRAMES,
    SCENES,
    label_of,
    make_corpus,
    plan_corpus,
    single_stream_bounds,
)

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


def test_dlibs_cnn_finds_every_expression_as_one_face_of_80_px_or_more(corpus):
    folder, clips = corpus
    detector = build_detector("dlib-cnn", precision="fp32")
    chosen = [clip for clip in clips if clip.expression][::4]
    assert {clip.expression for clip in chosen} == set(EXPRESSIONS)
    for clip in chosen:
        (faces,) = detector.detect_faces([frames_of(folder / clip.path)[NUM_FRAMES // 2]])
        assert len(faces) == 1, clip.path
        assert min(faces[0].box.width, faces[0].box.height) >= 80


def test_dlibs_hog_finds_a_face_in_every_clip_with_one(corpus):
    folder, clips = corpus
    detector = build_detector("dlib-hog")
    for clip in clips:
        if clip.expression:
            assert any(detector.detect_faces(frames_of(folder / clip.path)[::5])), clip.path


def test_no_face_is_found_in_the_clip_without_one(corpus):
    frames = frames_of(corpus[0] / FACELESS_PATH)
    assert build_detector("dlib-cnn", precision="fp32").detect_faces(frames[::10]) == [[], []]
    assert build_detector("dlib-hog").detect_faces(frames[::5]) == [[]] * 4
