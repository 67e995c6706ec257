"""Where shots begin: films drawn with known cuts, things that only look like cuts, and parts of films."""

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.video.frames import Cuts, Sampling
from pipeline.video.open import open_clip
from pipeline.video.shots import CutFinder, small_picture

EVERY = Sampling(frames_per_clip=None, every_frame=True)
FEW = Sampling(frames_per_clip=3)


def scene(seed: int, *, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """A coarse pattern of its own for each seed, (H, W, 3) uint8."""
    cells = np.random.default_rng(seed).integers(20, 235, (6, 8, 3), np.uint8)
    return np.kron(cells, np.ones((size[0] // 6, size[1] // 8, 1), np.uint8))


def plain(number: int) -> np.ndarray:
    """Cuts at 20 and 45; within a shot little moves."""
    return np.roll(scene(sum(number >= cut for cut in (20, 45))), number % 3, 1)


def flash(number: int) -> np.ndarray:
    return np.clip(plain(number).astype(int) + 110 * (number in (10, 11, 33)), 0, 255).astype(np.uint8)


def hand(number: int) -> np.ndarray:
    image = plain(number).copy()
    if number in (30, 31, 32):
        image[:] = 15
    return image


def pan(number: int) -> np.ndarray:
    return np.roll(plain(number), 2 * number, 1)


def dark(number: int) -> np.ndarray:
    return (plain(number) * 0.15).astype(np.uint8)


def grainy(number: int) -> np.ndarray:
    grain = np.random.default_rng(number).normal(0, 20, (96, 128, 3))
    return np.clip(plain(number) + grain, 0, 255).astype(np.uint8)


def still(_: int) -> np.ndarray:
    return scene(5)


def fade(number: int) -> np.ndarray:
    share = min(max((number - 20) / 20, 0), 1)
    return (scene(1) * (1 - share) + scene(2) * share).astype(np.uint8)


def another_each_time(number: int) -> np.ndarray:
    return scene(number)


def write(path: Path, draw, *, num_frames: int = 70, codec: str = "libx264", pixels: str = "yuv420p", gop: int = 12):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 128, 96, pixels, gop
        stream.bit_rate = 3_000_000
        for number in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw(number), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def cuts_of(path: Path, sampling: Sampling = FEW, **options) -> Cuts | None:
    with open_clip(path, sampling, finds_cuts=True, **options) as clip:
        for _ in clip:
            pass
        return clip.report.cuts


def found(draw, num_frames: int = 70) -> list[int]:
    finder = CutFinder()
    for number in range(num_frames):
        picture = small_picture(av.VideoFrame.from_ndarray(draw(number), format="rgb24"))
        assert picture is not None
        finder.add(number, picture)
    return finder.cuts()


@pytest.mark.parametrize("draw", [plain, flash, hand, pan, dark, grainy])
def test_cuts_are_found_and_what_looks_like_one_is_none(draw):
    assert found(draw) == [20, 45]


@pytest.mark.parametrize("draw", [still, fade, another_each_time])
def test_without_a_cut_none_is_found(draw):
    assert found(draw) == []


@pytest.mark.parametrize("num_frames", [0, 1, 2, 22])
def test_films_of_few_frames(num_frames):
    assert found(plain, num_frames) == ([20] if num_frames > 20 else [])


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mkv", "libx265", "yuv420p10le"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mkv", "ffv1", "bgr0"),
        ("a.mkv", "libx264", "yuv444p"),
    ],
)
def test_every_codec_and_pixel_format_is_looked_at_whatever_is_sampled(tmp_path, name, codec, pixels):
    path = write(tmp_path / name, plain, codec=codec, pixels=pixels)
    few, every = cuts_of(path), cuts_of(path, EVERY)
    assert few == every
    assert few.frames == (20, 45)
    assert few.times == pytest.approx((0.8, 1.8), abs=0.002)
    assert (few.start_frame, few.end_seconds - few.start_seconds) == (0, pytest.approx(2.8, abs=0.002))


@pytest.mark.parametrize("gop", [1, 12, 250])
@pytest.mark.parametrize("edges", [(0.5, 1.0, 2.0), (0.8, 1.8), (0.76, 0.84, 1.7, 1.9)])
def test_the_parts_of_a_film_have_the_cuts_of_the_whole(tmp_path, gop, edges):
    path = write(tmp_path / "a.mp4", flash, gop=gop)
    bounds = [None, *edges, None]
    parts = [cuts_of(path, EVERY, start_seconds=start, end_seconds=end) for start, end in pairwise(bounds)]
    assert [number for part in parts for number in part.frames] == [20, 45]
    assert [part.end_seconds for part in parts[:-1]] == [part.start_seconds for part in parts[1:]]


def test_nobody_looks_where_it_is_not_asked_or_not_every_frame_is_decoded(tmp_path):
    path = write(tmp_path / "a.avi", plain, codec="mpeg4")
    with open_clip(path, FEW) as clip:
        assert len(list(clip)) == 3
        assert clip.report.cuts is None
    assert cuts_of(path, decoder="decord") is None


@pytest.mark.lengthy
def test_where_every_frame_is_a_key_frame_auto_decodes_them_all_for_it(tmp_path):
    path = write(tmp_path / "a.mp4", lambda number: plain(number // 20), num_frames=1100, gop=1)
    with open_clip(path, FEW) as clip:
        list(clip)
        assert clip.report.decoder == "decord"
    with open_clip(path, FEW, finds_cuts=True) as clip:
        list(clip)
        assert clip.report.decoder == "pyav"
        assert "every frame is decoded" in clip.report.decoder_reason
        assert clip.report.cuts.frames[0] == 400


@pytest.mark.lengthy
def test_the_cuts_of_a_real_clip(real_clips_dir):
    """Seen by eye: at 8.0 s the picture is another; what begins at 5.1 s is faded in."""
    assert cuts_of(real_clips_dir / "torchcodec_nasa_13013.mp4").frames == (240,)
    for path in sorted(real_clips_dir.glob("asl_*.mkv")):
        assert cuts_of(path).frames == (), path.name


@pytest.mark.parametrize(
    "values",
    [
        {"frames": (3,)},
        {"frames": (3, 2), "times": (1.0, 2.0)},
        {"frames": (3, 4), "times": (2.0, 1.0)},
        {"frames": (3,), "times": (9.0,)},
        {"frames": (3,), "times": (float("nan"),)},
        {"start_frame": -1},
        {"end_seconds": float("inf")},
    ],
)
def test_cuts_out_of_order_are_none(values):
    with pytest.raises(ValueError, match="not in order"):
        Cuts(**{"start_frame": 0, "start_seconds": 0.0, "end_seconds": 5.0, **values})
