"""What a detector accepts, and the order of its faces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.records.faces import Face

# Smaller images are not searched by the CNN. dlib subtracts unsigned numbers when it lays out its pyramid: in an image
# under 55 px wide the levels overlap, and under 10 px they are written outside the buffer ("free(): invalid next size"
# in 20.0.1). Upsampling comes first.
MIN_WIDTH_PX = 55


MIN_HEIGHT_PX = 8


def check_image(image: np.ndarray) -> None:
    """Raises ValueError, naming dtype and shape, unless `image` is RGB uint8 HWC or grey uint8 HW, and not empty."""
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image of type {type(image).__name__}: give a numpy array, RGB uint8 HWC or grey uint8 HW")
    is_colour = image.ndim == 3 and image.shape[2] == 3
    if image.dtype != np.uint8 or not (is_colour or image.ndim == 2) or image.size == 0:
        raise ValueError(f"image of dtype {image.dtype} and shape {image.shape}: give RGB uint8 HWC or grey uint8 HW")


def is_searched(image: np.ndarray, *, upsample: int) -> bool:
    """Whether the CNN can look for faces in an image of this size. image: (H, W) or (H, W, 3)."""
    height, width = image.shape[:2]
    if upsample:
        height, width = 2 * height + 1, 2 * width + 2
    return height >= MIN_HEIGHT_PX and width >= MIN_WIDTH_PX


def sorted_faces(faces: Sequence[Face]) -> list[Face]:
    """Faces by falling score; ties by box."""
    return sorted(faces, key=lambda face: (-face.score, face.box))
