"""Faces that are too small or too blurred are left out and counted."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage.data import astronaut

from pipeline.faces.crops import decode_image
from pipeline.faces.landmarks import Landmarks, Pose, upright
from pipeline.preprocess.config import ExtractConfig, plan_config_of, plan_defaults
from pipeline.preprocess.extractor import ClipExtractor
from pipeline.records.clips import Clip
from pipeline.records.faces import Box
from pipeline.records.outcomes import COUNTED, State
from pipeline.sandbox.limits import SandboxLimits

BOXES = "a.png,Happy,0,0,40,40\na.png,Happy,50,0,89,60\na.png,Happy,0,50,30,90\na.png,Happy,85,60,130,99\n"


FLAT = np.full((100, 100, 3), 90, np.uint8)


def extracted(folder, *, boxes=BOXES, image=FLAT, **options):
    Image.fromarray(image).save(folder / "a.png")
    (folder / "boxes.csv").write_text(boxes)
    config = ExtractConfig(boxes=str(folder / "boxes.csv"), face_px=16, context_px=16, **options)
    extractor = ClipExtractor(config, limits=SandboxLimits())
    clip = Clip(clip_id="0" * 20, path="a.png", url=str(folder / "a.png"), size_bytes=1, content_id="x")
    try:
        return extractor.extract(clip)
    finally:
        extractor.sandbox.close()


@pytest.mark.parametrize(
    ("options", "sizes", "num_small"),
    [
        ({}, [(39, 60), (40, 40), (30, 40), (15, 39)], 0),
        ({"min_face_px": 15}, [(39, 60), (40, 40), (30, 40), (15, 39)], 0),
        (
            {"min_face_px": 16},
            [(39, 60), (40, 40), (30, 40)],
            1,
        ),  # It had 45 x 39 pixels, of which 15 are in the frame.
        ({"min_face_px": 39}, [(39, 60), (40, 40)], 2),
        ({"min_face_px": 40}, [(40, 40)], 3),
        ({"min_face_px": 40, "faces": "largest"}, [(40, 40)], 3),  # The largest of those that are left.
        ({"faces": "largest"}, [(39, 60)], 0),
    ],
)
def test_a_face_is_left_out_by_its_shorter_side_in_the_frame(tmp_path, options, sizes, num_small):
    examples, outcome = extracted(tmp_path, **{"faces": "all", **options})
    assert [(each.box.width, each.box.height) for each in examples] == sizes
    assert (outcome.state, outcome.num_faces_small, outcome.num_examples) == (State.DONE, num_small, len(sizes))
    assert outcome.num_faceless_frames == 0


def test_a_clip_whose_faces_are_all_too_small_has_none_and_says_so(tmp_path):
    examples, outcome = extracted(tmp_path, min_face_px=41, faces="all")
    assert examples == []
    assert (outcome.state, outcome.num_faces_small, outcome.num_faceless_frames) == (State.NO_FACE, 4, 1)
    assert outcome.detail == "no face in 1 sampled frames, 4 faces are smaller than --min-face-px 41"


def textured():
    """Left half sharp squares, right half the same, blurred."""
    cells = np.random.default_rng(3).integers(40, 216, (25, 25), np.uint8)
    image = np.kron(cells, np.ones((4, 4), np.uint8))[:, :, None].repeat(3, 2)
    soft = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(4)))
    return np.concatenate([image[:, :50], soft[:, 50:]], axis=1)


@pytest.mark.parametrize(
    ("options", "left_sides", "num_blurred"),
    [
        ({}, [1, 55, 0, 60], 0),
        ({"min_sharpness": 0.05}, [1, 0], 2),
        ({"min_sharpness": 0.05, "faces": "largest"}, [1], 2),  # Of those that are left.
        ({"min_sharpness": 0.05, "min_face_px": 40}, [1], 1),  # What is too small is not counted twice.
        ({"min_sharpness": 99.0}, [], 4),
    ],
)
def test_a_blurred_face_is_left_out_counted_and_said(tmp_path, options, left_sides, num_blurred):
    boxes = "a.png,Happy,1,0,47,50\na.png,Happy,55,0,100,45\na.png,Happy,0,60,39,99\na.png,Happy,60,60,98,98\n"
    examples, outcome = extracted(tmp_path, boxes=boxes, image=textured(), **{"faces": "all", **options})
    assert [each.box.x_min for each in examples] == left_sides
    assert outcome.num_faces_blurred == num_blurred
    assert all(each.face_px == each.box.short_side for each in examples)
    assert all(each.sharpness > (0.05 if each.box.x_min < 50 else 0) for each in examples)
    if not left_sides:
        assert outcome.state is State.NO_FACE
        assert outcome.detail == "no face in 1 sampled frames, 4 faces are less sharp than --min-sharpness 99"


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_sharpness_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match=r"--min-sharpness is .*; give 0 or more"):
        ExtractConfig(min_sharpness=value)


def test_it_is_off_by_default_and_an_older_output_counts_as_made_without_it():
    assert plan_config_of(ExtractConfig(detector="dlib-hog"))["min_face_px"] == 0
    assert plan_defaults()["min_face_px"] == plan_defaults()["min_sharpness"] == 0
    assert COUNTED["faces_small"] == "num_faces_small"
    with pytest.raises(ValueError, match="--min-face-px is -1; give 0 or more"):
        ExtractConfig(min_face_px=-1)


@pytest.mark.parametrize(("max_yaw", "num_turned"), [(90.0, 0), (60.0, 0), (1.0, 1)])
def test_a_turned_face_is_left_out_counted_and_said(tmp_path, max_yaw, num_turned):
    image = np.ascontiguousarray(astronaut()[20:220, 110:330])
    examples, outcome = extracted(tmp_path, boxes="a.png,Happy,58,49,154,145\n", image=image, max_yaw=max_yaw)
    assert (len(examples), outcome.num_faces_turned) == (1 - num_turned, num_turned)
    for example in examples:
        assert 1 < abs(example.yaw) < 60
        assert example.is_frontal is Pose(example.yaw, example.pitch, example.roll).is_frontal
    if num_turned:
        assert outcome.detail == "no face in 1 sampled frames, 1 faces are turned by more than --max-yaw 1"


@pytest.mark.parametrize("value", [-1, 91, float("nan")])
def test_a_yaw_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match=r"--max-yaw is .*; give 0 or more"):
        ExtractConfig(max_yaw=value)


def test_an_upright_face_comes_where_it_is_asked_for(tmp_path):
    Image.fromarray(astronaut()).save(tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text("a.png,Happy,168,69,264,165\n")
    config = ExtractConfig(boxes=str(tmp_path / "boxes.csv"), face_px=16, context_px=16, image_format="png")
    clip = Clip(clip_id="0" * 20, path="a.png", url=str(tmp_path / "a.png"), size_bytes=1, content_id="x")
    extractor = ClipExtractor(config, limits=SandboxLimits(), chips=True)
    try:
        (example,), _ = extractor.extract(clip)
    finally:
        extractor.sandbox.close()
    wanted = Landmarks().chip(astronaut(), Box(168, 69, 264, 165))
    np.testing.assert_array_equal(decode_image(example.chip_jpeg), wanted)


@pytest.mark.parametrize("chips", [False, True])
def test_a_face_is_cut_out_upright_where_the_model_wants_it(tmp_path, chips):
    Image.fromarray(astronaut()).save(tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text("a.png,Happy,168,69,264,165\n")
    options = {"face_px": 48, "context_px": 16, "image_format": "png", "box_margin": 0.1, "alignment": "dlib5"}
    config = ExtractConfig(boxes=str(tmp_path / "boxes.csv"), **options)
    clip = Clip(clip_id="0" * 20, path="a.png", url=str(tmp_path / "a.png"), size_bytes=1, content_id="x")
    extractor = ClipExtractor(config, limits=SandboxLimits(), chips=chips)
    try:
        (example,), _ = extractor.extract(clip)
    finally:
        extractor.sandbox.close()
    shape = Landmarks().shape(astronaut(), Box(168, 69, 264, 165))
    np.testing.assert_array_equal(decode_image(example.face_jpeg), upright(astronaut(), shape, px=48, margin=0.1))
    assert hasattr(example, "chip_jpeg") is chips


def test_faces_of_older_outputs_are_cut_out_as_they_were():
    assert plan_defaults()["alignment"] == plan_config_of(ExtractConfig(detector="dlib-hog"))["alignment"] == "none"
    with pytest.raises(ValueError, match="--alignment is 'mtcnn'; give one of none, dlib5"):
        ExtractConfig(alignment="mtcnn")
