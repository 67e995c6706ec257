"""Crops are drawn on tiny images and compared with exact arrays."""

import numpy as np
import pytest

from pipeline.faces.crops import (
    crop_face,
    decode_image,
    encode_image,
    make_context,
    mask_face,
    masked_region,
    select_faces,
)
from pipeline.records.faces import Box, Face


def ramp(height, width):
    """Every pixel its own colour: red says the column, green the row."""
    image = np.full((height, width, 3), 7, np.uint8)
    image[..., 0] = np.arange(width)
    image[..., 1] = np.arange(height)[:, None]
    return image


def smooth_photo(seed, height=400, width=712):
    coarse = np.random.default_rng(seed).integers(40, 256, (6, 10, 3), np.uint8)
    return np.kron(coarse, np.ones((height // 6 + 1, width // 10 + 1, 1), np.uint8))[:height, :width]


def test_a_square_face_at_its_own_size_is_copied_exactly():
    image = ramp(10, 12)
    assert np.array_equal(crop_face(image, Box(3, 2, 7, 6), face_px=4), image[2:6, 3:7])


def test_a_face_is_squashed_without_its_aspect():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 4:] = 200
    crop = crop_face(image, Box(0, 0, 8, 4), face_px=4)
    assert crop.shape == (4, 4, 3)
    assert (crop == crop[:1]).all()
    # Triangle of half width 2 around 1, 3, 5, 7 on the step at 4: an eighth of 200 leaks each way.
    assert crop[0, :, 0].tolist() == [0, 25, 175, 200]


def test_shrinking_averages_instead_of_dropping_pixels():
    checkerboard = np.zeros((64, 64, 3), np.uint8)
    checkerboard[::2, ::2] = checkerboard[1::2, 1::2] = 200
    assert np.abs(crop_face(checkerboard, Box(0, 0, 64, 64), face_px=8).astype(int) - 100).max() <= 1


def test_face_at_the_edge_is_clamped():
    image = ramp(10, 12)
    assert np.array_equal(crop_face(image, Box(-4, -4, 4, 4), face_px=4), image[:4, :4])
    assert np.array_equal(crop_face(image, Box(8, 6, 40, 40), face_px=4), image[6:, 8:])


def test_margin_widens_the_box_on_each_side_before_the_clamp():
    image = ramp(20, 20)
    assert np.array_equal(crop_face(image, Box(8, 8, 12, 12), face_px=8, margin=0.5), image[6:14, 6:14])
    assert np.array_equal(crop_face(image, Box(0, 0, 4, 4), face_px=6, margin=0.5), image[:6, :6])


def test_a_face_outside_the_frame_has_no_crop():
    with pytest.raises(ValueError, match="empty"):
        crop_face(ramp(10, 10), Box(20, 0, 30, 10))


def test_masking_zeroes_the_box_alone_and_leaves_the_frame():
    image = ramp(6, 8)
    before = image.copy()
    context = mask_face(image, Box(-2, 1, 3, 4))
    expected = before.copy()
    expected[1:4, 0:3] = 0
    assert np.array_equal(context, expected)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_an_image_of_another_form_is_refused(image):
    with pytest.raises(ValueError, match="uint8 RGB"):
        mask_face(image, Box(0, 0, 2, 2))


def test_context_of_the_frames_own_size_is_the_masked_frame():
    image = ramp(8, 8)
    assert np.array_equal(make_context(image, Box(2, 3, 5, 6), context_px=8), mask_face(image, Box(2, 3, 5, 6)))
    assert masked_region(Box(2, 3, 5, 6), frame_width=8, frame_height=8, context_px=8) == (2, 3, 5, 6)


def test_context_holds_no_pixel_of_the_face():
    image = smooth_photo(0)
    other = image.copy()
    box = Box(300, 80, 420, 230)
    other[box.y_min : box.y_max, box.x_min : box.x_max] = 255
    assert np.array_equal(make_context(image, box), make_context(other, box))


@pytest.mark.parametrize("seed", range(40))
def test_masked_region_is_zero_and_all_but_maximal(seed):
    rng = np.random.default_rng(seed)
    for _ in range(10):
        width, height, context_px = (int(n) for n in rng.integers((8, 8, 4), (800, 500, 260)))
        x, y = np.sort(rng.integers(-20, width + 20, 2)), np.sort(rng.integers(-20, height + 20, 2))
        if x[0] == x[1] or y[0] == y[1] or x[1] <= 0 or y[1] <= 0 or x[0] >= width or y[0] >= height:
            continue
        box = Box(int(x[0]), int(y[0]), int(x[1]), int(y[1]))
        white = np.full((height, width, 3), 255, np.uint8)
        zero = ~make_context(white, box, context_px=context_px).any(axis=2)
        region = masked_region(box, frame_width=width, frame_height=height, context_px=context_px)
        if region is None:
            columns, rows = np.flatnonzero(zero.any(axis=0)), np.flatnonzero(zero.any(axis=1))
            # A pixel outside its region can round down to zero: at most one on each side.
            assert min(columns.size, rows.size) <= 2
            continue
        x_min, y_min, x_max, y_max = region
        assert 0 <= x_min < x_max <= context_px
        assert 0 <= y_min < y_max <= context_px
        assert zero[y_min:y_max, x_min:x_max].all()
        zero[max(y_min - 1, 0) : y_max + 1, max(x_min - 1, 0) : x_max + 1] = False
        assert not zero.any()


def test_masked_region_in_caers_form():
    # A column is 712/224 = 3.18 px: 95 is centred at 303.55 and reaches 3.18 px, so to 300.37; 94 reaches to 297.19.
    assert masked_region(Box(300, 80, 420, 230), frame_width=712, frame_height=400, context_px=224) == (
        95,
        46,
        131,
        128,
    )


def test_a_box_under_one_context_pixel_has_no_masked_region():
    assert masked_region(Box(10, 10, 12, 12), frame_width=712, frame_height=400, context_px=224) is None


def test_masked_region_of_the_whole_frame_is_everything():
    assert masked_region(Box(-5, -5, 800, 500), frame_width=712, frame_height=400, context_px=64) == (0, 0, 64, 64)


def test_png_is_exact_and_jpeg_close():
    image = smooth_photo(1, height=64, width=64)
    assert np.array_equal(decode_image(encode_image(image, image_format="png")), image)
    assert np.abs(decode_image(encode_image(image)).astype(int) - image).mean() < 3


def test_jpeg_keeps_the_chroma_of_single_pixels():
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, ::2] = (255, 0, 0)
    image[:, 1::2] = (0, 0, 255)
    # Subsampled chroma would give every column the same purple.
    assert np.abs(decode_image(encode_image(image)).astype(int) - image).max() < 40


def test_encoding_is_deterministic():
    image = smooth_photo(2)
    assert encode_image(image) == encode_image(image.copy())


def test_an_unknown_image_format_is_refused():
    with pytest.raises(ValueError, match="use jpeg or png"):
        encode_image(ramp(4, 4), image_format="webp")


def test_cut_off_bytes_are_an_error_of_the_clip():
    with pytest.raises(OSError, match=r"truncated|cannot identify"):
        decode_image(encode_image(smooth_photo(3))[:2000])


def test_the_largest_clamped_face_is_kept():
    wide_but_outside = Face(Box(-90, 0, 10, 10), 5.0)
    inside = Face(Box(20, 20, 40, 40), 1.0)
    assert select_faces([wide_but_outside, inside], faces_kept="largest", width=100, height=100) == ([inside], 1)


def test_all_faces_come_largest_first_then_by_score_then_by_box():
    low, high = Face(Box(0, 0, 10, 10), 1.0), Face(Box(50, 0, 60, 10), 2.0)
    twin = Face(Box(20, 0, 30, 10), 1.0)
    large = Face(Box(0, 50, 30, 80), 0.1)
    faces, num_clamped = select_faces([twin, low, high, large], faces_kept="all", width=100, height=100)
    assert faces == [large, high, low, twin]
    assert num_clamped == 0


def test_a_face_wholly_outside_is_dropped_and_counted():
    outside = Face(Box(100, 0, 120, 20), 1.0)
    over = Face(Box(90, 90, 120, 120), 1.0)
    faces, num_clamped = select_faces([outside, over], faces_kept="all", width=100, height=100)
    assert faces == [Face(Box(90, 90, 100, 100), 1.0)]
    assert num_clamped == 2


def test_a_frame_without_faces_keeps_none():
    assert select_faces([], faces_kept="largest", width=100, height=100) == ([], 0)


def test_an_unknown_way_to_keep_faces_is_refused():
    with pytest.raises(ValueError, match="use largest or all"):
        select_faces([], faces_kept="some", width=1, height=1)
