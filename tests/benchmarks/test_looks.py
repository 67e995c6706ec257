"""The ways of looking less find what moves within their regions, and are counted against whole frames."""

import numpy as np
import pytest

from benchmarks.looks import GAPS, REGION_STEP_PX, compared, in_regions, interpolated, regions_of
from pipeline.records.faces import Box, Face, iou
from pipeline.video.frames import Frame

HEIGHT, WIDTH = 400, 712


def frames_of(*paths):
    """Frames in which white squares of 80 px lie at these places: each path is (x, y) a frame."""
    frames = []
    for number, places in enumerate(zip(*paths, strict=True)):
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for x, y in places:
            image[y : y + 80, x : x + 80] = 255
        frames.append(Frame(frame_index=number, pts_seconds=number / 25, seconds=number / 25, image=image))
    return frames


class Finder:
    """Finds each white square, and counts the pixels that it has looked at."""

    def __init__(self):
        self.num_px = 0

    def __call__(self, image):
        self.num_px += image.shape[0] * image.shape[1]
        corner = (image[..., 0] > 0) & ~np.pad(image[..., 0], ((1, 0), (1, 0)))[:-1, :-1].astype(bool)
        faces = []
        for y, x in np.argwhere(corner):
            is_corner = (y == 0 or not image[y - 1, x, 0]) and (x == 0 or not image[y, x - 1, 0])
            if is_corner and image[y : y + 80, x : x + 80].size == 80 * 80 * 3:
                faces.append(Face(box=Box(int(x), int(y), int(x) + 80, int(y) + 80), score=1.0))
        return faces


WALKS = [(20 + 6 * step, 30 + 3 * step) for step in range(24)], [(600 - 5 * step, 300) for step in range(24)]


@pytest.mark.parametrize("every", GAPS)
def test_around_the_last_faces_the_same_are_found_in_fewer_pixels(every):
    frames, whole, less = frames_of(*WALKS), Finder(), Finder()
    expected = interpolated(whole, frames, every=1)
    assert all(len(faces) == 2 for faces in expected)
    found = in_regions(less, frames, every=every)
    assert [{face.box for face in faces} for faces in found] == [{face.box for face in faces} for faces in expected]
    assert less.num_px < (0.5 + 0.5 / every) * whole.num_px


def test_what_comes_between_two_whole_frames_is_not_found_before_the_next():
    frames = frames_of(WALKS[0])
    frames[:5] = frames_of([(WIDTH - 80, HEIGHT - 80)] * 5)
    found = [bool(faces) for faces in in_regions(Finder(), frames, every=8)]
    assert found == [True] * 5 + [False] * 3 + [True] * 16


@pytest.mark.parametrize(
    "box", [Box(0, 0, 80, 80), Box(630, 318, 712, 400), Box(300, 100, 450, 260), Box(0, 0, 712, 400)]
)
def test_a_region_holds_its_face_and_is_within_the_frame(box):
    (region,) = regions_of([box], (HEIGHT, WIDTH))
    assert region.clamped(width=WIDTH, height=HEIGHT) == region
    assert (min(region.x_min, box.x_min), max(region.y_max, box.y_max)) == (region.x_min, region.y_max)
    for side, most in ((region.x_max - region.x_min, WIDTH), (region.y_max - region.y_min, HEIGHT)):
        assert side == most or side % REGION_STEP_PX == 0


def test_regions_that_overlap_are_searched_as_one():
    boxes = [Box(100, 100, 180, 180), Box(220, 120, 300, 200), Box(340, 110, 420, 190), Box(660, 350, 700, 390)]
    regions = regions_of(boxes, (HEIGHT, WIDTH))
    assert len(regions) == 2
    assert all(any(iou(region, box) > 0 for region in regions) for box in boxes)
    assert all(iou(a, b) == 0 for a in regions for b in regions if a is not b)


def test_faces_are_counted_by_how_far_their_boxes_agree():
    one, near, far = Box(0, 0, 100, 100), Box(2, 0, 102, 100), Box(30, 0, 130, 100)
    whole = [[Face(box=one, score=1.0)], [Face(box=one, score=1.0)], [Face(box=one, score=1.0)], []]
    found = [[Face(box=near, score=1.0)], [Face(box=far, score=1.0)], [], [Face(box=one, score=1.0)]]
    assert compared(whole, found) == {"found": {"0.5": 2, "0.9": 1}, "others": 1}
