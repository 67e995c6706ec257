"""Landmarks: the five points of a face, how its head is turned, and the face upright."""

import dlib
import numpy as np
import pytest
import skimage.data
from PIL import Image

from pipeline.faces.landmarks import Landmarks, Pose, pose_of, upright
from pipeline.records.faces import Box

FACE = Box(168, 69, 264, 165)  # of the astronaut
# Right, down, towards the viewer: the eyes' corners and the bottom of the nose of a face that looks into the camera.
POINTS = np.array([(45.5, -22, -10), (19.5, -22, -3.5), (-45.5, -22, -10), (-19.5, -22, -3.5), (0, 22, 22)])


@pytest.fixture(scope="module")
def landmarks():
    return Landmarks()


@pytest.fixture(scope="module")
def photo():
    return skimage.data.astronaut()


def seen(*, yaw=0.0, pitch=0.0, roll=0.0, px=100.0, at=(300.0, 200.0)):
    """The points of the face turned by these angles, degrees, as a camera far away sees them."""
    y, p, r = np.radians((yaw, pitch, roll))
    up = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    aside = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    leaning = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return (POINTS @ (leaning @ aside @ up).T)[:, :2] * px / 91 + at


@pytest.mark.parametrize("yaw", [-50, -20, 0, 35])
@pytest.mark.parametrize("pitch", [-30, 0, 20])
@pytest.mark.parametrize("roll", [-100, -30, 0, 10, 60])
def test_the_pose_of_an_average_face_is_found(yaw, pitch, roll):
    pose = pose_of(seen(yaw=yaw, pitch=pitch, roll=roll))
    assert (pose.yaw, pose.pitch, pose.roll) == pytest.approx((yaw, pitch, roll), abs=0.5)


def test_size_and_place_of_a_face_do_not_matter():
    near = pose_of(seen(yaw=20, roll=5, px=400, at=(-50, 900)))
    assert near.yaw == pytest.approx(pose_of(seen(yaw=20, roll=5, px=12)).yaw, abs=0.1)


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.ones((5, 2)) * 7, np.arange(10.0).reshape(5, 2)])
def test_points_of_no_face_have_some_pose(points):
    pose = pose_of(points)
    assert all(np.isfinite(angle) and abs(angle) <= 180 for angle in (pose.yaw, pose.pitch, pose.roll))
    assert max(abs(pose.yaw), abs(pose.pitch)) <= 75


@pytest.mark.parametrize(
    ("pose", "is_frontal"),
    [((0, 0, 0), True), ((20, -25, 20), True), ((21, 0, 0), False), ((0, 26, 0), False), ((0, 0, -21), False)],
)
def test_a_face_is_frontal_that_looks_about_into_the_camera(pose, is_frontal):
    assert Pose(*map(float, pose)).is_frontal is is_frontal


def test_points_of_a_photo_are_the_eyes_and_the_nose(landmarks, photo):
    points = landmarks.points(photo, FACE)
    right, left, nose = points[:2].mean(axis=0), points[2:4].mean(axis=0), points[4]
    assert left[0] < nose[0] < right[0]
    assert nose[1] > max(left[1], right[1])
    assert all(FACE.x_min <= x <= FACE.x_max and FACE.y_min <= y <= FACE.y_max for x, y in points)


def test_a_mirrored_face_has_the_opposite_yaw_and_roll(landmarks, photo):
    mirrored = Box(512 - FACE.x_max, FACE.y_min, 512 - FACE.x_min, FACE.y_max)
    pose, other = landmarks.pose(photo, FACE), landmarks.pose(np.ascontiguousarray(photo[:, ::-1]), mirrored)
    assert (other.yaw, other.roll) == pytest.approx((-pose.yaw, -pose.roll), abs=6)
    assert other.pitch == pytest.approx(pose.pitch, abs=6)


@pytest.mark.parametrize("angle", [-15, 10, 20])
def test_a_face_that_is_turned_with_its_image_has_that_much_more_roll(angle, landmarks, photo):
    centre = ((FACE.x_min + FACE.x_max) / 2, (FACE.y_min + FACE.y_max) / 2)
    turned = np.asarray(Image.fromarray(photo).rotate(-angle, Image.Resampling.BILINEAR, center=centre))
    assert landmarks.pose(turned, FACE).roll - landmarks.pose(photo, FACE).roll == pytest.approx(angle, abs=4)


@pytest.mark.parametrize("box", [FACE, Box(-40, -30, 60, 70), Box(480, 480, 600, 600), Box(0, 0, 2, 2)])
def test_any_box_has_points_and_an_upright_face(box, landmarks, photo):
    chip = landmarks.chip(photo, box)
    assert (chip.shape, chip.dtype) == ((150, 150, 3), np.uint8)
    np.testing.assert_array_equal(chip, dlib.get_face_chip(photo, landmarks.shape(photo, box)))
    assert np.isfinite(landmarks.pose(photo, box).yaw)


@pytest.mark.parametrize(("px", "margin"), [(96, 0.0), (112, 0.25), (150, 0.25), (224, 0.1)])
def test_an_upright_face_is_dlibs_own_of_this_size_and_margin(px, margin, landmarks, photo):
    shape = landmarks.shape(photo, FACE)
    found = upright(photo, shape, px=px, margin=margin)
    np.testing.assert_array_equal(found, dlib.get_face_chip(photo, shape, size=px, padding=margin))


def test_a_leaning_face_is_cut_out_as_one_that_stands_upright(landmarks, photo):
    centre = ((FACE.x_min + FACE.x_max) / 2, (FACE.y_min + FACE.y_max) / 2)
    turned = np.asarray(Image.fromarray(photo).rotate(-18, Image.Resampling.BICUBIC, center=centre))
    one, other = (upright(each, landmarks.shape(each, FACE), px=96, margin=0.1) for each in (photo, turned))
    box = photo[FACE.y_min : FACE.y_max, FACE.x_min : FACE.x_max]
    leaning = turned[FACE.y_min : FACE.y_max, FACE.x_min : FACE.x_max]
    apart = np.abs(one.astype(int) - other).mean()
    assert apart < np.abs(box.astype(int) - leaning).mean() / 3
    # The eyes are level, a sixth and more of the square from each other, above the nose.
    points = landmarks.points(one, Box(8, 8, 88, 88))
    right, left, nose = points[:2].mean(axis=0), points[2:4].mean(axis=0), points[4]
    assert abs(right[1] - left[1]) < 3
    assert left[0] - right[0] < -16 or left[0] - right[0] > 16
    assert nose[1] > right[1] + 8
