import hashlib
import multiprocessing
import os
import random
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import av
import dlib
import fsspec
import numpy as np
import pytest
import skimage.data
import skimage.transform
import torch

from pipeline.faces import processor
from pipeline.faces.detector import build_detector, find_weights, resolve_precision
from pipeline.faces.detectors.dlib_cnn import WEIGHTS
from pipeline.faces.devices import resolve_device
from pipeline.faces.dlib_cnn import DlibCnn, strongest, tile_levels, upsampled
from pipeline.faces.dlib_weights import parse_weights, read_weights
from pipeline.faces.given_boxes import read_boxes
from pipeline.faces.images import sorted_faces
from pipeline.faces.winograd import POINTS, RowWinograd, transforms
from pipeline.records.faces import Box, Face
from pipeline.records.vocabulary import UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

OURS = ("dlib-cnn", "dlib-cnn-reference", "dlib-hog")
MAX_SCORE_DIFFERENCE = 1e-4

needs_clips = pytest.mark.skipif("REAL_CLIPS_DIR" not in os.environ, reason="REAL_CLIPS_DIR is not set")


@pytest.fixture(scope="module")
def astronaut():
    return skimage.data.astronaut()


@pytest.fixture(scope="module")
def port():
    return {
        upsample: build_detector("dlib-cnn", upsample=upsample, precision="fp32", device="cpu") for upsample in (0, 1)
    }


@pytest.fixture(scope="module")
def reference():
    return {upsample: build_detector("dlib-cnn-reference", upsample=upsample) for upsample in (0, 1)}


def resized(image, height, width):
    return (skimage.transform.resize(image, (height, width)) * 255).astype(np.uint8)


def with_heads(astronaut, height, width):
    """A frame with the astronaut's head at several sizes, mirrored, and past the edges."""
    frame = np.full((height, width, 3), 90, np.uint8)
    head = astronaut[:220, 110:330]
    places = [(0.05, 0.1, 0.5), (0.4, 0.3, 0.35), (0.35, 0.68, 0.62), (-0.15, 0.55, 0.4), (0.6, -0.08, 0.6)]
    for number, (y, x, side) in enumerate(places):
        px = int(side * min(height, width))
        patch = resized(head, px, px)[:, :: 1 if number % 2 else -1]
        top, left = int(y * height), int(x * width)
        patch = patch[max(0, -top) : height - top, max(0, -left) : width - left]
        top, left = max(0, top), max(0, left)
        frame[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    return frame


def frames_of(path, indexes):
    with av.open(str(path)) as container:
        frames = []
        for number, frame in enumerate(container.decode(video=0)):
            if number in indexes:
                frames.append(frame.to_ndarray(format="rgb24"))
            if number >= max(indexes):
                break
    return frames


def assert_same_faces(found, expected):
    assert [face.box for face in found] == [face.box for face in expected]
    assert [face.score for face in found] == pytest.approx([face.score for face in expected], abs=MAX_SCORE_DIFFERENCE)


def iou(one, other):
    width = min(one.x_max, other.x_max) - max(one.x_min, other.x_min)
    height = min(one.y_max, other.y_max) - max(one.y_min, other.y_min)
    inner = max(width, 0) * max(height, 0)
    return inner / (one.area + other.area - inner)


def mean_iou(found, expected):
    """Of the best matches, each box used once; the number of faces must be the same."""
    assert len(found) == len(expected)
    left = [face.box for face in found]
    ious = []
    for face in expected:
        best = max(left, key=lambda box: iou(box, face.box))
        left.remove(best)
        ious.append(iou(best, face.box))
    return ious


# Parity with dlib


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("size", "upsample"),
    [
        ((400, 712), 0),
        ((401, 333), 0),
        ((640, 360), 0),
        ((97, 201), 0),
        ((8, 55), 0),
        ((161, 97), 1),
        ((200, 301), 1),
        ((27, 31), 1),
    ],
)
def test_boxes_are_dlibs_and_scores_within_1e_4(astronaut, port, reference, size, upsample):
    frame = with_heads(astronaut, *size)
    (expected,) = reference[upsample].detect_faces([frame])
    assert expected or min(size) < 200
    assert_same_faces(port[upsample].detect_faces([frame])[0], expected)


@pytest.mark.slow
def test_a_frame_of_1920x1080_has_dlibs_boxes(astronaut, port, reference):
    frame = with_heads(astronaut, 1080, 1920)
    (expected,) = reference[0].detect_faces([frame])
    assert len(expected) >= 4
    assert_same_faces(port[0].detect_faces([frame])[0], expected)


@pytest.mark.lengthy
@pytest.mark.parametrize("upsample", [0, 1])
def test_a_grey_image_has_dlibs_boxes(astronaut, port, reference, upsample):
    grey = astronaut[:230, 110:340, 1]
    (expected,) = reference[upsample].detect_faces([grey])
    assert len(expected) == 1
    assert_same_faces(port[upsample].detect_faces([grey])[0], expected)
    assert_same_faces(port[upsample].detect_faces([np.stack([grey] * 3, axis=2)])[0], expected)


@pytest.mark.lengthy
@needs_clips
@pytest.mark.parametrize(
    "name",
    [
        "asl_book.mkv",
        "intel_head-pose-face-detection-male.gif",
        "mpf_xvid_aac.avi",
        "pyfeat_single_face.mp4",
        "torchcodec_nasa_13013.mp4",
    ],
)
def test_frames_of_real_clips_have_dlibs_boxes(port, reference, name):
    frames = frames_of(Path(os.environ["REAL_CLIPS_DIR"]) / name, {20})
    for found, expected in zip(port[0].detect_faces(frames), reference[0].detect_faces(frames), strict=True):
        assert_same_faces(found, expected)


@pytest.mark.slow
@needs_clips
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("upsample", [0, 1])
def test_every_real_clip_has_dlibs_boxes(port, reference, upsample):
    num_faces = 0
    for path in sorted(Path(os.environ["REAL_CLIPS_DIR"]).iterdir()):
        if path.suffix == ".tsv":
            continue
        for frame in frames_of(path, {0, 15, 30} if upsample == 0 else {25}):
            (expected,) = reference[upsample].detect_faces([frame])
            assert_same_faces(port[upsample].detect_faces([frame])[0], expected)
            num_faces += len(expected)
    assert num_faces >= 15


@pytest.mark.parametrize(("height", "width"), [(400, 712), (37, 53), (100, 101), (9, 300), (400, 28), (4, 27)])
def test_upsampling_is_dlibs_to_the_last_bit(astronaut, height, width):
    image = resized(astronaut, height, width)
    expected = np.asarray(dlib.resize_image(image, 2 * height + 1, 2 * width + 2))
    np.testing.assert_array_equal(upsampled(image), expected)
    np.testing.assert_array_equal(upsampled(image[..., 0].copy()), expected[..., 0])


@pytest.mark.parametrize(("height", "width"), [(400, 712), (301, 227), (60, 55)])
def test_every_level_of_the_tile_is_dlibs_resize_of_the_one_before(astronaut, port, height, width):
    image = resized(astronaut, height, width)
    plan = port[0]._make_plan(1, height, width)
    tile = port[0].make_tile([image], plan)[0].numpy()
    expected = (image.astype(np.float32) - np.float32([122.782, 117.001, 104.298])) / 256
    for x_min, y_min, x_max, y_max in plan.levels:
        planes = [np.ascontiguousarray(expected[..., channel]) for channel in range(3)]
        expected = np.stack([dlib.resize_image(plane, int(y_max - y_min), int(x_max - x_min)) for plane in planes], 2)
        found = tile[:, y_min:y_max, x_min:x_max].transpose(1, 2, 0)
        np.testing.assert_allclose(found, expected, atol=5e-5)  # 0.013 of 255
        tile[:, y_min:y_max, x_min:x_max] = 0
    assert not tile.any()


def test_the_tile_of_a_712x400_frame_is_laid_out_as_dlib_does():
    levels, height, width = tile_levels(400, 712)
    assert (len(levels), height, width) == (23, 1493, 734)
    assert levels[:2] == [(11, 11, 723, 411), (11, 421, 604, 754)]


@pytest.mark.parametrize(("height", "width"), [(8, 55), (9, 2000), (2000, 55), (101, 57), (1080, 1920), (333, 62)])
def test_levels_lie_in_the_tile_apart_from_each_other(height, width):
    levels, tile_height, tile_width = tile_levels(height, width)
    covered = np.zeros((tile_height, tile_width), np.uint8)
    for x_min, y_min, x_max, y_max in levels:
        assert x_min >= 11
        assert y_min >= 11
        assert x_max <= tile_width - 11
        assert y_max <= tile_height - 11
        covered[y_min:y_max, x_min:x_max] += 1
    assert covered.max() == 1


# What a detector answers


@pytest.mark.lengthy
@pytest.mark.parametrize("name", OURS)
def test_the_astronauts_face_is_found(astronaut, name):
    (faces,) = build_detector(name).detect_faces([astronaut])
    assert len(faces) == 1
    assert iou(faces[0].box, Box(177, 66, 275, 166)) > 0.6


needs_int8 = pytest.mark.skipif(not processor.cpu_has_int8(), reason="this processor has no int8")


def several_frames(astronaut):
    frames = [with_heads(astronaut, 400, 712), with_heads(astronaut, 480, 480), astronaut]
    if "REAL_CLIPS_DIR" in os.environ:
        for name in ("asl_book.mkv", "mpf_h264_aac.mp4", "pyfeat_single_face.mp4"):
            frames += frames_of(Path(os.environ["REAL_CLIPS_DIR"]) / name, {0, 20})
    return frames


def test_bf16_is_refused_in_words_where_the_processor_has_no_convolutions_in_it(monkeypatch):
    monkeypatch.setattr(processor, "_cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(UsageError, match="bf16: this processor has no AVX-512 BW, VL and DQ; use fp32"):
        build_detector("dlib-cnn", precision="bf16", device="cpu")


@pytest.mark.lengthy
@pytest.mark.skipif(not processor.cpu_has_bf16_convolutions(), reason="this processor has no convolutions in bf16")
def test_bf16_finds_the_same_faces(astronaut, port):
    frames = several_frames(astronaut)
    rough = build_detector("dlib-cnn", precision="bf16", device="cpu")
    pairs = zip(rough.detect_faces(frames), port[0].detect_faces(frames), strict=True)
    ious = [each for found, expected in pairs for each in mean_iou(found, expected)]
    assert len(ious) >= 9
    assert np.mean(ious) >= 0.95


@pytest.mark.lengthy
@needs_int8
def test_int8_finds_every_face_whose_score_is_not_near_the_threshold(astronaut, port):
    frames = several_frames(astronaut)
    rough = build_detector("dlib-cnn", precision="int8", device="cpu")
    ious = []
    for found, expected in zip(rough.detect_faces(frames), port[0].detect_faces(frames), strict=True):
        for faces, others in ((found, expected), (expected, found)):
            ious += [max(iou(face.box, other.box) for other in others) for face in faces if face.score > 0.2]
    assert len(ious) >= 18
    assert min(ious) > 0.5
    assert np.mean(ious) >= 0.95


def test_int8_is_refused_where_the_processor_would_cut_sums_off(monkeypatch):
    monkeypatch.setattr(processor, "_cpu_has", lambda *_: False)
    with pytest.raises(UsageError, match=r"int8: this processor has no .* use fp32"):
        build_detector("dlib-cnn", precision="int8", device="cpu")


@needs_int8
def test_int8_gives_a_frame_the_same_faces_whatever_came_before(astronaut):
    bright = np.clip(astronaut.astype(int) * 3, 0, 255).astype(np.uint8)
    detector = build_detector("dlib-cnn", precision="int8", device="cpu")
    (alone,) = detector.detect_faces([astronaut])
    assert len(alone) == 1
    assert detector.detect_faces([bright, astronaut[:, ::-1], astronaut])[-1] == alone


@pytest.mark.parametrize("name", OURS)
def test_a_flat_image_has_no_face(name):
    detector = build_detector(name)
    assert detector.detect_faces([np.full((120, 160, 3), 128, np.uint8), np.zeros((90, 90), np.uint8)]) == [[], []]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("upsample", [0, 1])
def test_a_tiny_image_has_no_face(name, upsample):
    images = [np.zeros(shape, np.uint8) for shape in ((1, 1), (1, 300), (8, 8, 3), (300, 9), (7, 200, 3), (3, 27))]
    assert build_detector(name, upsample=upsample).detect_faces(images) == [[]] * len(images)


def test_images_of_many_sizes_come_back_in_order(astronaut, port):
    flat = np.zeros((512, 512, 3), np.uint8)
    images = [astronaut, astronaut[:300, 100:360], flat, astronaut[..., 0], astronaut]
    found = port[0].detect_faces(images)
    assert found == [port[0].detect_faces([image])[0] for image in images]
    assert [len(faces) for faces in found] == [1, 1, 0, 1, 1]
    assert port[0].detect_faces([]) == []


def test_a_batch_has_the_boxes_of_its_frames(astronaut, port):
    frames = [with_heads(astronaut, 300, 420), np.zeros((300, 420, 3), np.uint8), astronaut[:300, :420]]
    batched = port[0]._detect(frames)
    for found, expected in zip(batched, port[0].detect_faces(frames), strict=True):
        assert_same_faces(found, expected)


def test_faces_are_sorted_by_score_then_box(astronaut, port):
    (faces,) = port[0].detect_faces([with_heads(astronaut, 400, 712)])
    assert len(faces) >= 4
    scores = [face.score for face in faces]
    assert scores == sorted(scores, reverse=True)
    tied = [Face(Box(5, 0, 9, 9), 1.0), Face(Box(0, 0, 9, 9), 1.0), Face(Box(0, 0, 5, 5), 2.0)]
    assert sorted_faces(tied) == [tied[2], tied[1], tied[0]]


@pytest.mark.parametrize("name", ["dlib-cnn", "dlib-cnn-reference"])
def test_only_faces_above_the_threshold_are_told(astronaut, port, name):
    (score,) = (face.score for face in port[0].detect_faces([astronaut[:230, 110:340]])[0])
    below, above = score - 0.01, score + 0.01
    image = astronaut[:230, 110:340]
    assert len(build_detector(name, precision="auto", score_threshold=below).detect_faces([image])[0]) == 1
    assert build_detector(name, precision="auto", score_threshold=above).detect_faces([image]) == [[]]


def test_a_threshold_below_zero_tells_weaker_faces(astronaut, port):
    frame = with_heads(astronaut, 200, 300)
    detector = build_detector("dlib-cnn", precision="fp32", device="cpu", score_threshold=-1.5)
    (strong,) = port[0].detect_faces([frame])
    (faces,) = detector.detect_faces([frame])
    assert faces[: len(strong)] == strong
    assert len(faces) > len(strong)
    assert all(-1.5 < face.score <= 0 for face in faces[len(strong) :])


def test_frames_that_are_read_only_or_turned_are_read_as_they_are(astronaut, port):
    turned = np.rot90(np.rot90(astronaut, 2).copy(), 2)
    frozen = astronaut.copy()
    frozen.flags.writeable = False
    assert port[0].detect_faces([turned]) == port[0].detect_faces([frozen]) == port[0].detect_faces([astronaut])


def test_the_callers_frame_is_untouched(astronaut, port):
    before = astronaut.copy()
    port[0].detect_faces([astronaut])
    np.testing.assert_array_equal(astronaut, before)


def test_plans_of_old_frame_sizes_are_dropped(port):
    for width in (60, 70, 80, 90):
        port[0].detect_faces([np.zeros((60, width, 3), np.uint8)])
    assert port[0]._plan.cache_info().currsize == 2


def test_the_weaker_of_two_overlapping_boxes_goes():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 0, 30, 10], [5, 0, 15, 10]])
    assert strongest(boxes, 0.34) == [0, 2, 3]
    assert strongest(boxes, 0.33) == [0, 2]
    assert strongest(np.empty((0, 4), np.int64), 0.3) == []


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((90, 90, 3), np.float32),
        np.zeros((90, 90, 1), np.uint8),
        np.zeros((90, 90, 4), np.uint8),
        np.zeros((3, 90, 90), np.uint8),
        np.zeros((1, 90, 90, 3), np.uint8),
        np.zeros((0, 90, 3), np.uint8),
        np.zeros(90, np.uint8),
    ],
)
def test_an_image_of_another_kind_is_an_error_that_names_it(name, image):
    with pytest.raises(ValueError) as caught:
        build_detector(name).detect_faces([image])
    assert str(image.dtype) in str(caught.value)
    assert str(image.shape) in str(caught.value)


def test_an_image_that_is_no_array_is_an_error(port):
    with pytest.raises(ValueError, match="type list"):
        port[0].detect_faces([[[0, 0]]])


def detect_in_child(name, image, answers):
    torch.set_num_threads(1)
    answers.put(build_detector(name, precision="fp32", device="cpu").detect_faces([image]))


@pytest.mark.lengthy
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["dlib-cnn", "dlib-cnn-reference"])
def test_a_detector_runs_in_a_child_of_a_forkserver(astronaut, port, name):
    image = astronaut[:230, 110:340]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    answers = context.SimpleQueue()
    child = context.Process(target=detect_in_child, args=(name, image, answers))
    child.start()
    (found,) = answers.get()
    child.join()
    assert child.exitcode == 0
    assert_same_faces(found, port[0].detect_faces([image])[0])


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dlib"}, "detector 'dlib' is not one of .*dlib-cnn, dlib-cnn-reference, dlib-hog"),
        ({"name": "dlib-cnn", "precision": "fp16"}, "precision 'fp16' is not one of auto, fp32, bf16, int8"),
        ({"name": "dlib-hog", "precision": "int8"}, "runs in fp32 on CPU; use dlib-cnn"),
        ({"name": "dlib-cnn", "device": "tpu"}, "device 'tpu' is not one of auto, cpu, cuda"),
        ({"name": "dlib-cnn", "upsample": 2}, "upsample 2 is not 0 or 1"),
        ({"name": "dlib-cnn-reference", "precision": "bf16"}, "runs in fp32 on CPU; use dlib-cnn"),
        ({"name": "dlib-cnn-reference", "score_threshold": -0.5}, "score_threshold -0.5"),
        ({"name": "dlib-hog", "device": "cuda"}, "runs in fp32 on CPU; use dlib-cnn"),
        ({"name": "dlib-hog", "weights": "x.dat"}, "dlib-hog carries its own"),
    ],
)
def test_a_wrong_option_is_named_with_its_cure(options, message):
    with pytest.raises(ValueError, match=message):
        build_detector(**options)


def test_auto_precision_is_bf16_where_the_cpu_multiplies_it():
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert resolve_precision("auto", "cpu") == ("bf16" if has_bf16 else "fp32")
    assert resolve_precision("fp32", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_an_error():
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ValueError, match="PyTorch sees no CUDA device"):
        build_detector("dlib-cnn", device="cuda")


@pytest.mark.parametrize(
    ("asked", "said"),
    [("gpu", "is not known; use auto"), ("cuda:x", "is not known"), ("cuda:99", "device 'cuda:99' is not there")],
)
def test_a_device_that_is_not_known_or_not_there_is_named(asked, said):
    with pytest.raises(ValueError, match=said):
        resolve_device(asked)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_fp32_on_cuda_has_the_cpus_boxes(astronaut, port):
    frames = [with_heads(astronaut, 400, 712), astronaut, with_heads(astronaut, 400, 712)[:, ::-1]]
    detector = build_detector("dlib-cnn", precision="fp32", device="cuda")
    for found, expected in zip(detector.detect_faces(frames), port[0].detect_faces(frames), strict=True):
        assert_same_faces(found, expected)


# Weights


def test_weights_come_from_the_package_without_importing_it():
    path = find_weights()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == WEIGHTS.sha256
    assert "face_recognition_models" not in sys.modules


def test_weights_may_be_given_by_path(tmp_path, astronaut):
    path = tmp_path / "copy.dat"
    path.write_bytes(find_weights().read_bytes())
    detector = build_detector("dlib-cnn", weights=str(path))
    assert isinstance(detector, DlibCnn)
    assert len(detector.detect_faces([astronaut])[0]) == 1


def test_other_weights_are_an_error_with_both_digests_and_the_cure(tmp_path):
    path = tmp_path / "short.dat"
    path.write_bytes(find_weights().read_bytes()[:1000])
    with pytest.raises(ValueError, match="install face-recognition-models") as caught:
        build_detector("dlib-cnn", weights=str(path))
    assert hashlib.sha256(path.read_bytes()).hexdigest() in str(caught.value)
    assert WEIGHTS.sha256 in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_weights_are_an_error_with_the_cure(tmp_path):
    with pytest.raises(ValueError, match="no such file; install face-recognition-models"):
        find_weights(str(tmp_path / "none.dat"))
    with pytest.raises(ValueError, match="no-such-package, which carries the detector's weights, is missing"):
        replace(WEIGHTS, package="no-such-package").find()


def test_the_network_is_read_whole():
    weights = read_weights(find_weights())
    assert weights.means == pytest.approx((122.782, 117.001, 104.298))
    assert weights.window_px == 80
    assert weights.max_overlap == pytest.approx(0.33828, abs=1e-5)
    assert [layer.weight.shape for layer in weights.layers] == [
        (16, 3, 5, 5),
        (32, 16, 5, 5),
        (32, 32, 5, 5),
        (45, 32, 5, 5),
        (45, 45, 5, 5),
        (45, 45, 5, 5),
        (1, 45, 9, 9),
    ]
    assert [(layer.stride, layer.padding) for layer in weights.layers] == [(2, 0)] * 3 + [(1, 2)] * 3 + [(1, 4)]
    assert [layer.has_relu for layer in weights.layers] == [True] * 6 + [False]


def test_a_cut_file_is_an_error_wherever_it_is_cut(tmp_path):
    data = find_weights().read_bytes()
    for length in (*range(200), *range(200, len(data), 9973), len(data) - 1):
        with pytest.raises(ValueError):
            parse_weights(data[:length])
    path = tmp_path / "cut.dat"
    path.write_bytes(data[:5000])
    with pytest.raises(ValueError, match=r"cut\.dat: .* bytes are claimed and .* are left: truncated or foreign"):
        read_weights(path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(500), b"\x01\x01" * 300, b"\xff" * 100, bytes(100)])
def test_a_foreign_file_is_an_error(data):
    with pytest.raises(ValueError):
        parse_weights(data)


def test_bytes_after_the_network_are_an_error():
    with pytest.raises(ValueError, match="2 bytes follow the last layer"):
        parse_weights(find_weights().read_bytes() + b"\x01\x01")


def test_a_claimed_size_allocates_nothing():
    data = find_weights().read_bytes()
    start = data.index(b"con_4") + len(b"con_4")
    huge = b"\x01\x02" + b"\x04\xff\xff\xff\x7f" * 4 + data[start + 12 : start + 2000]
    tracemalloc.start()
    with pytest.raises(ValueError, match="bytes are claimed"):
        parse_weights(data[:start] + huge)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_spoilt_byte_is_an_error_or_a_number():
    data = bytearray(find_weights().read_bytes())
    headers = [
        place for place in range(len(data)) if place < 400 or data[place : place + 5] in (b"con_4", b"bn_co", b"relu_")
    ]
    chance = random.Random(0)
    num_errors = 0
    for place in headers:
        spoilt = bytearray(data)
        spoilt[place + chance.randrange(40) - 20] ^= 1 << chance.randrange(8)
        try:
            parse_weights(bytes(spoilt))
        except ValueError:
            num_errors += 1
    assert num_errors > 50


# Box lists


def write_list(folder, text):
    path = folder / "boxes.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_a_box_list_is_read_in_its_order_as_given(tmp_path):
    url = write_list(
        tmp_path,
        "test/Anger/0001.png,Anger,10,20,30,40\n\ntest\\Sad\\2.png,Sad,-3,0,5,6\r\ntest/Anger/0001.png,Anger,1,2,3,4",
    )
    assert read_boxes(url) == {
        "test/Anger/0001.png": [Box(10, 20, 30, 40), Box(1, 2, 3, 4)],
        "test/Sad/2.png": [Box(-3, 0, 5, 6)],
    }


def test_a_box_list_is_read_from_any_url():
    with fsspec.open("memory://lists/boxes.csv", "wb") as file:
        file.write("\ufeffa.png,Fear,0,0,1,1\n".encode())
    assert read_boxes("memory://lists/boxes.csv") == {"a.png": [Box(0, 0, 1, 1)]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b.png,Fear,9,0,3,4", r"line 2: 'b\.png,Fear,9,0,3,4': the box is empty or inverted; it needs x1 < x2"),
        ("b.png,Fear,0,4,3,4", "line 2: .* empty or inverted"),
        ("b.png,Fear,0,0,3.5,4", r"line 2: 'b\.png,Fear,0,0,3\.5,4': x1,y1,x2,y2 must be integer pixels"),
        ("path,label,x1,y1,x2,y2", r"line 2: .* must be integer pixels \(no header row\)"),
        ("b.png,Fear,0,0,3", "line 2: .* is not relpath,label,x1,y1,x2,y2"),
        (",Fear,0,0,3,4", "line 2: .* is not relpath,label,x1,y1,x2,y2"),
        (b"\xff\xfe.png,Fear,0,0,3,4", "byte 20 is not UTF-8; save the list as UTF-8"),
    ],
)
def test_a_bad_row_is_named_with_file_line_value_and_cure(tmp_path, row, message):
    first = b"a.png,Fear,0,0,12,1\n"
    url = write_list(tmp_path, first + (row if isinstance(row, bytes) else row.encode()))
    with pytest.raises(ValueError, match=message) as caught:
        read_boxes(url)
    assert url in str(caught.value)


def test_winograds_sums_are_those_of_the_direct_convolution():
    out, taps, data = transforms(6, 5, POINTS)
    rng = np.random.default_rng(0)
    kernel, rows = rng.normal(size=5), rng.normal(size=10)
    np.testing.assert_allclose(out @ ((taps @ kernel) * (data @ rows)), np.correlate(rows, kernel), rtol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(184, 89), (1, 5), (6, 9), (7, 1), (50, 3000)])
def test_a_convolution_by_winograd_is_the_direct_one_at_any_size(height, width):
    torch.manual_seed(height)
    weight, bias = torch.randn(6, 4, 5, 5), torch.randn(6)
    x = torch.randn(2, 4, height, width)
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), padding=2).relu()
    found = RowWinograd(weight.numpy(), bias.numpy(), padding=2)(x)
    np.testing.assert_allclose(found, expected, atol=5e-4)
