"""Five points of a face, how its head is turned, and the face upright in a square. By dlib's landmarks (CC0)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import dlib
import numpy as np

from pipeline.faces.spec import Weights
from pipeline.records.faces import Box

WEIGHTS = Weights(
    package="face-recognition-models",
    path="models/shape_predictor_5_face_landmarks.dat",
    num_bytes=9_150_489,
    sha256="c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
    owner="Dlib's",
)

# What dlib's face embedding wants.
CHIP_PX, CHIP_MARGIN = 150, 0.25

# Where the points of an average face are, seen from the front, mm: right, down, towards the viewer. In dlib's order:
# outer and inner corner of the eye on the right of the image, of that on the left, bottom of the nose.
_FACE = np.array([(45.5, -22, -10), (19.5, -22, -3.5), (-45.5, -22, -10), (-19.5, -22, -3.5), (0, 22, 22)], np.float64)
_MAX_STEPS = 10
_STEP = 1e-5
_MAX_ANGLE = math.radians(75)  # Beyond it the far eye is not seen.

# A face is frontal that is turned by no more than this: yaw, pitch, roll in degrees.
FRONTAL = (20.0, 25.0, 20.0)


@dataclass(frozen=True, slots=True)
class Pose:
    """How a head is turned, degrees: 0 looks into the camera.

    Attributes:
        yaw: positive where it turns to the right of the image. pitch: positive where it looks up. roll: positive where
            it leans clockwise, as seen.
    """

    yaw: float
    pitch: float
    roll: float

    @property
    def is_frontal(self) -> bool:
        """Whether it looks about into the camera."""
        turned = (abs(self.yaw), abs(self.pitch), abs(self.roll))
        return all(angle <= most for angle, most in zip(turned, FRONTAL, strict=True))


class Landmarks:
    """Dlib's five landmarks, loaded. Built in the process that uses it."""

    def __init__(self) -> None:
        self._rectangle = dlib.rectangle  # pyright: ignore[reportAttributeAccessIssue]
        self._predictor = dlib.shape_predictor(str(WEIGHTS.find()))  # pyright: ignore[reportAttributeAccessIssue]

    def shape(self, image: np.ndarray, box: Box) -> Any:
        """The face's landmarks as dlib's own record. image: (H, W, 3) uint8 RGB. The box may pass its edge."""
        return self._predictor(image, self._rectangle(box.x_min, box.y_min, box.x_max - 1, box.y_max - 1))

    def points(self, image: np.ndarray, box: Box) -> np.ndarray:
        """The face's landmarks (5, 2) float64, pixels: x, y."""
        return points_of(self.shape(image, box))

    def pose(self, image: np.ndarray, box: Box) -> Pose:
        """How the face's head is turned."""
        return pose_of(self.points(image, box))

    def chip(self, image: np.ndarray, box: Box) -> np.ndarray:
        """The face upright in a square (150, 150, 3) uint8, as dlib's face embedding wants it."""
        return upright(image, self.shape(image, box))


def points_of(shape: Any) -> np.ndarray:
    """The points of dlib's record of landmarks (5, 2) float64, pixels: x, y."""
    return np.array([(point.x, point.y) for point in shape.parts()], np.float64)


def upright(image: np.ndarray, shape: Any, *, px: int = CHIP_PX, margin: float = CHIP_MARGIN) -> np.ndarray:
    """A face turned, scaled and moved so that its points are where dlib's average face has them: (px, px, 3) uint8.

    What lies outside the image is black.

    Args:
        image: (H, W, 3) uint8 RGB.
        shape: the face's landmarks, as `Landmarks.shape` gives them.
        margin: share of the square's own side that is added on each side of the face.
    """
    return dlib.get_face_chip(image, shape, px, margin)  # pyright: ignore[reportAttributeAccessIssue]


def pose_of(points: np.ndarray) -> Pose:
    """How a head is turned, by the average face that lies nearest to its points (least squares, seen from far away).

    Of 96 faces of real clips the mirrored one had the opposite yaw within 1.2 degrees (median; 8 at the 95th
    percentile), and those turned by 10 to 20 with their image had that much more roll within 1.1. Pitch depends on the
    build of a face as much as on how it is held: of one person it says how the head moves, between persons it may
    differ by 20.

    points: (5, 2) pixels, as `Landmarks.points` gives them. The angles are at most 75.
    """
    seen = points - points.mean(axis=0)
    face = _FACE - _FACE.mean(axis=0)
    across = points[:2].mean(axis=0) - points[2:4].mean(axis=0)
    width = float(np.hypot(*across)) or 1.0
    roll = math.atan2(across[1], across[0])

    def missed(values: np.ndarray) -> np.ndarray:
        found = math.exp(values[3]) * (face @ _turned(*values[:3]).T)
        return (found - seen).ravel() / width

    values = np.array([0.0, 0.0, roll, math.log(width / 65)])
    for _ in range(_MAX_STEPS):
        now = missed(values)
        slopes = np.stack([(missed(values + step) - now) / _STEP for step in _STEP * np.eye(4)], axis=1)
        change = np.linalg.lstsq(slopes, -now, rcond=None)[0].clip(-0.5, 0.5)
        values = values + change
        values[:2] = values[:2].clip(-_MAX_ANGLE, _MAX_ANGLE)
        if np.abs(change).max() < 1e-3:
            break
    yaw, pitch, roll = (math.remainder(math.degrees(value), 360) for value in values[:3])
    return Pose(yaw=yaw, pitch=pitch, roll=roll)


def _turned(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """The first two rows of the rotation (3, 3): pitch, then yaw, then roll."""
    (cy, cp, cr), (sy, sp, sr) = (
        [function(angle) for angle in (yaw, pitch, roll)] for function in (math.cos, math.sin)
    )
    x, y = np.array([cy, sy * sp, sy * cp]), np.array([0.0, cp, -sp])
    return np.stack([cr * x - sr * y, sr * x + cr * y])
