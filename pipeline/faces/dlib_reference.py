"""dlib's own detectors: images in, boxes with scores out.

They hold the interpreter's lock while they run, and dlib's CNN hangs in a child that was forked after it had run: build
them in the process that uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dlib
import numpy as np

from pipeline.faces.images import check_image, is_searched, sorted_faces
from pipeline.records.faces import Box, Face
from pipeline.records.vocabulary import UsageError


class DlibCnnReference:
    """dlib's CNN detector: the reference for `DlibCnn`, and some 20 times slower."""

    def __init__(self, weights: Path, *, upsample: int, score_threshold: float) -> None:
        if score_threshold < 0:
            raise UsageError(f"score_threshold {score_threshold}: dlib's own CNN tells none below 0; use dlib-cnn")
        self._net = dlib.cnn_face_detection_model_v1(str(weights))  # pyright: ignore[reportAttributeAccessIssue]
        self._upsample = upsample
        self._score_threshold = score_threshold

    def detect_faces(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """See `Detector.detect_faces`."""
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> list[Face]:
        check_image(image)
        if not is_searched(image, upsample=self._upsample):
            return []
        found = self._net(np.ascontiguousarray(image), self._upsample)
        faces = [Face(_box(each.rect), each.confidence) for each in found]
        return sorted_faces([face for face in faces if face.score > self._score_threshold])


class DlibHog:
    """dlib's HOG detector: frontal faces only, quick. Its scores are on a scale of their own."""

    def __init__(self, *, upsample: int, score_threshold: float) -> None:
        self._detector = dlib.get_frontal_face_detector()  # pyright: ignore[reportAttributeAccessIssue]
        self._upsample = upsample
        self._score_threshold = score_threshold

    def detect_faces(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """See `Detector.detect_faces`."""
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> list[Face]:
        check_image(image)
        rectangles, scores, _ = self._detector.run(np.ascontiguousarray(image), self._upsample, self._score_threshold)
        faces = [Face(_box(rectangle), score) for rectangle, score in zip(rectangles, scores, strict=True)]
        return sorted_faces([face for face in faces if face.score > self._score_threshold])


def _box(rectangle: Any) -> Box:
    return Box(rectangle.left(), rectangle.top(), rectangle.right() + 1, rectangle.bottom() + 1)
