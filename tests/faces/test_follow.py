"""Faces followed through a clip: what is searched whole, and that around boxes the same is found as in the whole."""

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from pipeline.faces import processor
from pipeline.faces.detector import build_detector
from pipeline.faces.follow import Follower
from pipeline.faces.near import NearDlibCnn
from pipeline.faces.spec import detector_names, detector_spec
from pipeline.records.faces import Box, Face, iou

WIDTH, HEIGHT = 420, 300
# Middle and side of a face, frame by frame: moving, growing and shrinking, and along the edges.
PATHS = {
    "across": [(120 + 9 * number, 150, 100) for number in range(8)],
    "nearer": [(210, 150, 90 * 1.05**number) for number in range(10)],
    "farther": [(210, 150, 170 / 1.05**number) for number in range(10)],
    "along the left": [(58, 60 + 12 * number, 104) for number in range(16)],
    "along the bottom": [(60 + 12 * number, 240, 104) for number in range(26)],
    "along the top": [(60 + 12 * number, 62, 104) for number in range(26)],
}
PRECISIONS = [
    "fp32",
    pytest.param("int8", marks=pytest.mark.skipif(not processor.cpu_has_int8(), reason="this processor has no int8")),
]


def frame(*faces):
    """A frame with a person's head at each (x, y, side)."""
    head = Image.fromarray(astronaut()[:220, 110:330])  # The face's box is about half of it.
    image = Image.fromarray(np.random.default_rng(1).integers(90, 110, (HEIGHT, WIDTH, 3), np.uint8))
    for x, y, side in faces:
        size = round(2 * side)
        image.paste(head.resize((size, size)), (round(x - side), round(y - 0.95 * side)))
    return np.asarray(image)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=PRECISIONS)
def cnn(request):
    return build_detector("dlib-cnn", precision=request.param, upsample=0, device="cpu")


def sure(faces):
    return [face for face in faces if face.score > 0]


def same(faces, others):
    """The same boxes; a score may differ where the window has an earlier frame of another level at its edge."""
    return [face.box for face in faces] == [face.box for face in others] and np.allclose(
        [face.score for face in faces], [face.score for face in others], atol=0.005
    )


@pytest.mark.parametrize("path", PATHS)
def test_what_is_near_the_last_faces_is_found_as_in_the_whole_frame(cnn, path):
    nearby = NearDlibCnn(cnn)
    frames = [frame(place) for place in PATHS[path]]
    boxes = [face.box for face in nearby.whole(frames[0])]
    num_found = 0
    for image in frames[1:]:
        found = sure(nearby.near(image, boxes))
        (expected,) = cnn_alone(cnn).detect_faces([image])
        assert same(found, expected)
        boxes, num_found = [face.box for face in found] or boxes, num_found + len(found)
    assert num_found >= len(frames) - 2


def cnn_alone(cnn):
    """Another network, with a tile of its own."""
    return ALONE.setdefault(cnn.precision, build_detector("dlib-cnn", precision=cnn.precision, upsample=0))


ALONE = {}


def test_two_faces_of_different_size_are_found_and_one_that_came_is_not(cnn):
    nearby = NearDlibCnn(cnn)
    boxes = [face.box for face in sure(nearby.whole(frame((90, 120, 90), (290, 150, 130))))]
    assert len(boxes) == 2
    image = frame((96, 124, 92), (285, 150, 126))
    assert same(sure(nearby.near(image, boxes)), cnn_alone(cnn).detect_faces([image])[0])
    assert len(sure(nearby.near(image, boxes[:1]))) == 1
    assert nearby.near(image, []) == []
    assert sure(nearby.near(frame(), boxes)) == []


def test_frames_that_are_doubled_first_are_searched_near_too():
    cnn = build_detector("dlib-cnn", precision="fp32", upsample=1, device="cpu")
    nearby = NearDlibCnn(cnn)
    boxes = [face.box for face in sure(nearby.whole(frame((150, 150, 50))))]
    assert len(boxes) == 1
    image = frame((154, 152, 52))
    found = sure(nearby.near(image, boxes))
    assert len(found) == 1
    assert same(found, cnn.detect_faces([image])[0])


@pytest.mark.parametrize("shape", [(54, 200), (60, 9), (1, 1)])
def test_frames_that_are_too_small_to_be_searched_have_no_faces(cnn, shape):
    follower = Follower(NearDlibCnn(cnn), every=3)
    assert [follower.find(np.zeros((*shape, 3), np.uint8)) for _ in range(4)] == [[]] * 4


@pytest.mark.parametrize("box", [Box(-500, -500, -400, -400), Box(0, 0, 1, 1), Box(-9000, -9000, 9000, 9000)])
def test_boxes_beside_the_frame_or_out_of_all_size_do_no_harm(cnn, box):
    nearby = NearDlibCnn(cnn)
    image = frame((210, 150, 100))
    (face,) = sure(nearby.whole(image))
    assert all(iou(face.box, each.box) > 0.99 for each in sure(nearby.near(image, [box])))


class Searched:
    """A detector by numbers: a frame's face is where its brightest pixel is; keeps what it was asked."""

    score_threshold = 1.0

    def __init__(self):
        self.asked = []

    def _face(self, image):
        y, x = np.unravel_index(image[..., 0].argmax(), image.shape[:2])
        return Face(Box(int(x) - 5, int(y) - 5, int(x) + 5, int(y) + 5), float(image[y, x, 0]) / 100)

    def whole(self, image):
        self.asked.append("whole")
        return [self._face(image)]

    def near(self, image, boxes):
        self.asked.append(list(boxes))
        found = self._face(image)
        return [found] if any(iou(found.box, box) > 0 for box in boxes) else []


def dots(*places, background=None, size=(40, 60)):
    """Frames with a bright dot at each (x, y, brightness), before one background."""
    base = np.arange(size[0] * size[1], dtype=np.float64).reshape(size) % 83 if background is None else background
    for x, y, brightness in places:
        image = np.repeat(base[..., None].astype(np.uint8), 3, axis=2)
        image[y, x] = brightness
        yield image


def test_every_kth_frame_is_searched_whole_and_the_others_near_the_last_faces():
    detector = Searched()
    follower = Follower(detector, every=3)
    found = [follower.find(image) for image in dots(*((10 + number, 20, 200) for number in range(5)))]
    assert [faces[0].box.x_min for faces in found] == [5, 6, 7, 8, 9]
    assert [each if each == "whole" else each[0].x_min for each in detector.asked] == ["whole", 5, 6, "whole", 8]


def test_another_picture_is_searched_whole_and_begins_the_count_anew():
    detector = Searched()
    follower = Follower(detector, every=3)
    other = np.arange(2400).reshape(40, 60)[::-1] // 20
    frames = [*dots((10, 20, 200), (10, 20, 200)), *dots(*[(40, 9, 220)] * 3, background=other)]
    found = [follower.find(image) for image in frames]
    assert [faces[0].box.x_min for faces in found] == [5, 5, 35, 35, 35]
    assert ["whole" if each == "whole" else "near" for each in detector.asked] == [
        *("whole", "near"),
        *("whole", "near", "near"),
    ]


def test_a_frame_of_another_size_is_searched_whole():
    detector = Searched()
    follower = Follower(detector, every=9)
    for image in [*dots((10, 20, 200), (10, 20, 200)), *dots((10, 20, 200), size=(41, 60))]:
        follower.find(image)
    assert [each == "whole" for each in detector.asked] == [True, False, True]


def test_what_scores_too_little_is_no_face_and_is_followed_until_it_scores():
    follower = Follower(Searched(), every=9)
    found = [follower.find(image) for image in dots((10, 20, 95), (11, 20, 98), (12, 20, 130))]
    assert [len(faces) for faces in found] == [0, 0, 1]


def test_a_face_that_is_lost_for_a_frame_is_looked_for_in_the_next():
    follower = Follower(Searched(), every=9)
    found = [follower.find(image) for image in dots((10, 20, 200), (50, 35, 200), (11, 20, 200))]
    assert [len(faces) for faces in found] == [1, 0, 1]


def test_only_a_detector_that_says_so_can_follow():
    assert [name for name in detector_names() if detector_spec(name).nearby] == ["dlib-cnn"]
