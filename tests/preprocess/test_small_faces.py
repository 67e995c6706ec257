"""Faces that are too small are left out and counted."""

import numpy as np
import pytest
from PIL import Image

from pipeline.preprocess.config import ExtractConfig, plan_config_of, plan_defaults
from pipeline.preprocess.extractor import ClipExtractor
from pipeline.records.clips import Clip
from pipeline.records.outcomes import COUNTED, State
from pipeline.sandbox.limits import SandboxLimits

BOXES = "a.png,Happy,0,0,40,40\na.png,Happy,50,0,89,60\na.png,Happy,0,50,30,90\na.png,Happy,85,60,130,99\n"


def extracted(folder, **options):
    Image.fromarray(np.full((100, 100, 3), 90, np.uint8)).save(folder / "a.png")
    (folder / "boxes.csv").write_text(BOXES)
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


def test_it_is_off_by_default_and_an_older_output_counts_as_made_without_it():
    assert plan_config_of(ExtractConfig(detector="dlib-hog"))["min_face_px"] == 0
    assert plan_defaults()["min_face_px"] == 0
    assert COUNTED["faces_small"] == "num_faces_small"
    with pytest.raises(ValueError, match="--min-face-px is -1; give 0 or more"):
        ExtractConfig(min_face_px=-1)
