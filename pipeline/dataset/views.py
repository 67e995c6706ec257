"""A stored face and context in, what a network reads of them out: resized, cropped, changed at random in training."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
from PIL import Image, ImageEnhance

from pipeline.records.vocabulary import ContextCrop, UsageError

# The public CAER-Net-S resizes the context to 128 x 171 (height, width) and reads 112 x 112 of it.
PUBLIC_PX, PUBLIC_HEIGHT, PUBLIC_WIDTH = 112, 128, 171


def resized(image: np.ndarray, px: int) -> np.ndarray:
    """An image (H, W, 3) uint8 squashed to a square of `px` pixels."""
    if image.shape[0] == px == image.shape[1]:
        return image
    return np.array(Image.fromarray(image).resize((px, px), Image.Resampling.BILINEAR))


def context_view(
    context: np.ndarray,
    *,
    px: int,
    crop: ContextCrop,
    aspect: float,
    random: np.random.Generator | None = None,
) -> np.ndarray:
    """The part of a stored context that a network reads: (px, px, 3) uint8.

    Args:
        context: (H, W, 3) uint8, the whole frame squashed to a square.
        px: side of what is read.
        crop: none is the whole frame, squashed; public is a square of px of the frame at 128/112 px high and 171/112 px
            wide, as the public CAER-Net-S reads it; aspect is the same of the frame in its own proportions.
        aspect: the frame's width divided by its height.
        random: places the square anywhere, for training; None: in the middle.

    Raises UsageError for another crop.
    """
    if crop not in get_args(ContextCrop):
        raise UsageError(f"context crop {crop!r} is not known; use one of {', '.join(get_args(ContextCrop))}")
    if crop == "none":
        return resized(context, px)
    height, width = px * PUBLIC_HEIGHT / PUBLIC_PX, px * PUBLIC_WIDTH / PUBLIC_PX
    if crop == "aspect":
        height, width = (height, height * aspect) if aspect >= 1 else (height / aspect, height)
    top, left = ((1 - px / side) * (0.5 if random is None else random.random()) for side in (height, width))
    rows, columns = context.shape[:2]
    box = (left * columns, top * rows, (left + px / width) * columns, (top + px / height) * rows)
    return np.array(Image.fromarray(context).resize((px, px), Image.Resampling.BILINEAR, box=box))


def augmented(face: np.ndarray, augmentations: tuple[str, ...], *, px: int, random: np.random.Generator) -> np.ndarray:
    """A face (H, W, 3) uint8, changed at random: `crop` gives a part of it at `px` pixels square, the others its size.

    crop: 70 to 100 % of its area, sides 4:5 to 5:4, anywhere in it. colour: brightness, contrast and saturation each
    times 0.7 to 1.3. contrast: times 0.5 to 1.5. hue: turned by up to half a circle. flip: half of the faces are
    mirrored, apart from their context. erase: of half of them a rectangle of 2 to 20 % is grey.
    """
    image = Image.fromarray(face)
    if "crop" in augmentations:
        area, aspect = random.uniform(0.7, 1.0), math.exp(random.uniform(math.log(4 / 5), math.log(5 / 4)))
        width, height = (min(1.0, math.sqrt(area * ratio)) for ratio in (aspect, 1 / aspect))
        left, top = random.uniform(0, 1 - width), random.uniform(0, 1 - height)
        box = (left * image.width, top * image.height, (left + width) * image.width, (top + height) * image.height)
        image = image.resize((px, px), Image.Resampling.BILINEAR, box=box)
    if "colour" in augmentations:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(random.uniform(0.7, 1.3))
    if "contrast" in augmentations:
        image = ImageEnhance.Contrast(image).enhance(random.uniform(0.5, 1.5))
    if "hue" in augmentations:
        image = _turned_hue(image, turn=random.uniform(-0.5, 0.5))
    if "flip" in augmentations and random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.array(image)
    if "erase" in augmentations and random.random() < 0.5:
        _erase(pixels, random)
    return pixels


def _turned_hue(image: Image.Image, *, turn: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.array(hue).astype(np.int16) + round(255 * turn)) % 256
    bands = (Image.fromarray(turned.astype(np.uint8)), saturation, value)
    return Image.merge("HSV", bands).convert("RGB")


def _erase(pixels: np.ndarray, random: np.random.Generator) -> None:
    """Grey a rectangle of the image, in place."""
    area, aspect = random.uniform(0.02, 0.2), math.exp(random.uniform(math.log(1 / 3), math.log(3)))
    rows, columns = pixels.shape[:2]
    height = min(rows, max(1, round(rows * math.sqrt(area / aspect))))
    width = min(columns, max(1, round(columns * math.sqrt(area * aspect))))
    top, left = int(random.integers(0, rows - height + 1)), int(random.integers(0, columns - width + 1))
    pixels[top : top + height, left : left + width] = 127
