"""Sharpness of drawn and of real faces."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipeline.faces.quality import sharpness_of
from pipeline.records.faces import Box

BOX = Box(20, 10, 116, 106)


def drawn(*, seed: int = 0) -> np.ndarray:
    """Something with edges of all directions in the box, (120, 140, 3) uint8."""
    cells = np.random.default_rng(seed).integers(40, 216, (15, 17), np.uint8)
    image = np.zeros((120, 140, 3), np.uint8)
    image[:, :136] = np.kron(cells, np.ones((8, 8), np.uint8))[:, :, None]
    return image


def blurred(image: np.ndarray, px: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(px)))


@pytest.mark.parametrize("seed", range(4))
def test_the_more_it_is_blurred_the_less_sharp_it_is(seed):
    image = drawn(seed=seed)
    found = [sharpness_of(blurred(image, px), BOX) for px in (0.1, 1, 2, 4, 8)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 4 * found[3]


@pytest.mark.parametrize("change", [lambda x: x * 0.5, lambda x: x * 0.5 + 100, lambda x: 255.0 - x])
def test_light_and_contrast_change_it_little(change):
    image = drawn()
    assert sharpness_of(change(image).astype(np.uint8), BOX) == pytest.approx(sharpness_of(image, BOX), rel=0.1)


@pytest.mark.parametrize("factor", [2, 3])
def test_the_size_of_the_box_changes_it_little(factor):
    large = np.kron(drawn(), np.ones((factor, factor, 1), np.uint8))
    box = Box(*(factor * each for each in (BOX.x_min, BOX.y_min, BOX.x_max, BOX.y_max)))
    assert sharpness_of(large, box) == pytest.approx(sharpness_of(drawn(), BOX), rel=0.1)


def test_what_is_flat_has_none_and_what_passes_the_edge_counts_inside():
    assert sharpness_of(np.full((50, 50, 3), 90, np.uint8), Box(0, 0, 50, 50)) == 0
    image = drawn()
    assert sharpness_of(image, Box(-40, -40, 60, 60)) == sharpness_of(image, Box(0, 0, 60, 60))
    with pytest.raises(ValueError, match="empty"):
        sharpness_of(image, Box(200, 0, 300, 60))
