"""The time of every row is that of the picture in it, whatever the container, the codec and the damage."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_zoo import cut, field_coded_h264, make_clip, make_streams, read_number, remux, with_bytes

from pipeline.video.frames import MAX_PACKETS, MAX_PIXELS, DecodedClip, Frame, Sampling, VideoError
from pipeline.video.index import index_of
from pipeline.video.listed import times_of_pictures
from pipeline.video.open import claimed_range, open_clip, open_video

pytestmark = pytest.mark.lengthy

EVERY_FRAME = Sampling(frames_per_clip=None, every_frame=True)
QUIET = {"x265-params": "log-level=none:keyint=12"}
# Name: what PyAV writes there.
CONTAINERS = {
    "h264.mp4": {"options": {"g": "12", "bf": "2"}},
    "h264.mkv": {"options": {"g": "12", "bf": "2"}},
    "h264.mov": {"options": {"g": "12", "bf": "3"}},
    "h264.ts": {"options": {"g": "12", "bf": "2"}},
    "h264.avi": {"options": {"g": "12", "bf": "2"}},
    "h264.flv": {"options": {"g": "12", "bf": "2"}},
    "h264.h264": {"options": {"g": "12", "bf": "2"}, "container": "h264"},
    "in_order.mkv": {"options": {"g": "12", "bf": "0"}},
    "in_order.avi": {"options": {"g": "12", "bf": "0"}},
    "may_reorder.mkv": {"options": {"g": "12", "x264-params": "bframes=2:scenecut=0:b-adapt=2"}},
    "hevc.mp4": {"codec": "libx265", "options": QUIET},
    "hevc.mkv": {"codec": "libx265", "options": QUIET},
    "hevc.ts": {"codec": "libx265", "options": QUIET},
    "hevc.hevc": {"codec": "libx265", "options": QUIET, "container": "hevc"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "mpeg4.mkv": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "mpeg4.m4v": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}, "container": "m4v"},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}},
    "mpeg2.mkv": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}},
    "mpeg2.mxf": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}},
    "mpeg2.m2v": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}, "container": "mpeg2video"},
    "mpeg1.mpg": {"codec": "mpeg1video", "options": {"g": "12", "bf": "2"}},
    "vp8.webm": {"codec": "libvpx", "options": {"g": "12"}},
    "vp8.ivf": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "av1.mkv": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "keyint=12"}},
    "wmv2.wmv": {"codec": "wmv2"},
    "flv1.flv": {"codec": "flv"},
    "mjpeg.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "rv20.rm": {"codec": "rv20"},
    "theora.ogv": {"codec": "libtheora"},
    "raw.y4m": {"codec": "wrapped_avframe", "container": "yuv4mpegpipe"},
    "raw.nut": {"codec": "rawvideo"},
    "gif.gif": {"codec": "gif", "pixel_format": "rgb8", "rate": 25},
}


def frames_of(clip: DecodedClip) -> list[Frame]:
    with clip:
        return list(clip)


def made(folder: Path, name: str, **more: object) -> Path:
    how = CONTAINERS[name]
    if (codec := str(how.get("codec", "libx264"))) not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    return make_clip(folder / name, **{"num_frames": 40, "rate": 25, **how, **more})


def assert_times(frames: list[Frame], *, step: float = 0.04) -> None:
    """Each frame holds the picture that is shown at its time, counted from the clip's beginning."""
    assert frames
    for frame in frames:
        assert frame.seconds == pytest.approx(read_number(frame.image) * step, abs=0.011), frame.frame_index


def decoder_times(path: Path) -> dict[int, float]:
    """What FFmpeg says: the time of each picture, by the number that it shows."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frames = [frame for packet in container.demux(stream) for frame in decoded(packet)]
        return {read_number(f.to_ndarray(format="rgb24")): f.time for f in frames if f.time is not None}


def decoded(packet: av.Packet) -> list[av.VideoFrame]:
    try:
        return packet.decode()
    except av.FFmpegError:
        return []


def without_first(source: Path, path: Path, *, count: int) -> Path:
    return remux(source, path, lambda number, packet: [packet] if number >= count else [])


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_picture_has_its_time(tmp_path: Path, name: str):
    path = made(tmp_path, name)
    clip = open_clip(path, EVERY_FRAME)
    frames = frames_of(clip)
    assert [read_number(frame.image) for frame in frames] == list(range(40))
    assert_times(frames)
    assert clip.report.decode_integrity == 1.0
    if name.partition(".")[2] not in ("avi", "h264", "hevc"):  # they have no times: FFmpeg makes some in another order
        told = decoder_times(path)
        assert {read_number(f.image): f.pts_seconds for f in frames} == pytest.approx(told, abs=1e-6)


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_picture_of_a_range_has_its_time(tmp_path: Path, name: str):
    frames = frames_of(open_clip(made(tmp_path, name), EVERY_FRAME, start_seconds=0.62, end_seconds=1.1))
    assert [read_number(frame.image) for frame in frames] == list(range(16, 28))
    assert_times(frames)


@pytest.mark.parametrize(
    "name",
    ["h264.mp4", "h264.mkv", "in_order.mkv", "may_reorder.mkv", "h264.avi", "in_order.avi", "mpeg4.avi", "mpeg4.mkv",
     "hevc.mkv", "hevc.mp4", "mpeg2.mkv", "vp8.webm"],
)  # fmt: skip
@pytest.mark.parametrize("count", [1, 7, 13])
def test_a_clip_without_its_first_packets_keeps_the_times_of_the_rest(tmp_path: Path, name: str, count: int):
    container = name.partition(".")[2]
    path = without_first(made(tmp_path, name), tmp_path / f"cut.{container}", count=count)
    frames = frames_of(open_clip(path, EVERY_FRAME))
    numbers = [read_number(frame.image) for frame in frames]
    assert numbers[-15:] == list(range(25, 40))
    whole = [frame for frame in frames if read_number(frame.image) >= 25]
    if container != "mp4":  # which writes an edit list, so that its clock begins with what is left
        assert_times(whole)
    assert np.allclose(np.diff([frame.pts_seconds for frame in whole]), 0.04, atol=2e-3)
    ranged = frames_of(open_clip(path, EVERY_FRAME, start_seconds=whole[0].seconds, end_seconds=whole[5].seconds))
    assert [read_number(frame.image) for frame in ranged] == numbers[-15:-10]


@pytest.mark.parametrize("name", ["h264.ts", "hevc.ts", "mpeg2.ts", "mpeg2.mpg"])
def test_a_stream_without_its_beginning_keeps_the_times_of_the_rest(tmp_path: Path, name: str):
    data = made(tmp_path, name).read_bytes()
    path = tmp_path / f"cut.{name.partition('.')[2]}"
    start = len(data) // 3
    path.write_bytes(data[start - start % (188 if name.endswith("ts") else 2048) :])
    told = decoder_times(path)
    frames = frames_of(open_clip(path, EVERY_FRAME))
    assert len(frames) >= 12
    assert all(frame.pts_seconds == pytest.approx(told[read_number(frame.image)], abs=1e-6) for frame in frames)


@pytest.mark.parametrize("name", ["in_order.mkv", "h264.mkv", "h264.avi", "mpeg4.avi", "h264.mp4", "h264.ts"])
def test_a_packet_that_does_not_decode_moves_no_other_picture(tmp_path: Path, name: str):
    container = name.partition(".")[2]

    def spoil(number: int, packet: av.Packet) -> list[av.Packet]:
        return [with_bytes(packet, b"\x00" * 40) if number == 14 else packet]

    path = remux(made(tmp_path, name), tmp_path / f"bad.{container}", spoil)
    frames = frames_of(open_clip(path, EVERY_FRAME))
    if name == "mpeg4.avi":  # FFmpeg makes its times of the kinds of pictures, of which this packet has none
        told = decoder_times(path)
        assert {read_number(f.image): f.pts_seconds for f in frames}.items() <= told.items()
    else:
        assert_times(frames)
    assert {read_number(frame.image) for frame in frames} >= set(range(25, 40))


@pytest.mark.parametrize("missing", [range(5), range(14, 17), range(20, 32)])
def test_frames_that_may_be_reordered_and_are_not_keep_their_times(tmp_path: Path, missing: range):
    source = make_clip(tmp_path / "a.mkv", num_frames=60, rate=25, options={"g": "20", "bf": "0"})
    path = remux(source, tmp_path / "b.mkv", lambda number, packet: [] if number in missing else [packet])
    frames = frames_of(open_clip(path, EVERY_FRAME))
    told = decoder_times(path)
    assert {read_number(f.image): f.pts_seconds for f in frames}.items() <= told.items()


@pytest.mark.parametrize("name", ["h264.ts", "h264.mkv", "h264.mp4", "mpeg2.mpg"])
def test_one_damaged_timestamp_moves_one_frame(tmp_path: Path, name: str):
    container = name.partition(".")[2]

    def damage(number: int, packet: av.Packet) -> list[av.Packet]:
        if number == 24:
            packet.pts += round(100 / packet.time_base)
        return [packet]

    path = remux(made(tmp_path, name), tmp_path / f"bad.{container}", damage)
    frames = frames_of(open_clip(path, EVERY_FRAME))
    told = decoder_times(path)
    assert len(frames) >= 38
    assert all(frame.pts_seconds == pytest.approx(told[read_number(frame.image)], abs=1e-6) for frame in frames)


# One clock


@pytest.mark.parametrize("offset", [1.48, 54321.0, 95443.0])
@pytest.mark.parametrize("name", ["h264.ts", "mpeg2.ts", "h264.mkv"])
def test_ranges_count_from_the_first_frame(tmp_path: Path, name: str, offset: float):
    container = name.partition(".")[2]

    def later(_: int, packet: av.Packet) -> list[av.Packet]:
        ticks = round(Fraction(offset) / packet.time_base)
        packet.pts, packet.dts = packet.pts + ticks, None if packet.dts is None else packet.dts + ticks
        return [packet]

    path = remux(made(tmp_path, name), tmp_path / f"late.{container}", later)
    frames = frames_of(open_clip(path, EVERY_FRAME, start_seconds=0.3, end_seconds=0.8))
    assert [read_number(frame.image) for frame in frames] == list(range(8, 20))
    assert_times(frames)
    whole = frames_of(open_clip(path, EVERY_FRAME))
    assert whole[0].seconds == 0.0
    assert frames[0].pts_seconds - whole[0].pts_seconds == pytest.approx(0.32, abs=1e-3)
    assert (claimed_range(path) or (None,))[0] == 0.0


# Fields


@pytest.mark.parametrize("name", ["fields.ts", "fields.mkv", "fields.mp4", "fields.h264"])
def test_two_fields_are_one_picture(tmp_path: Path, name: str):
    path = field_coded_h264(tmp_path / name, num_frames=12)
    clip = open_clip(path, EVERY_FRAME)
    frames = frames_of(clip)
    assert [frame.frame_index for frame in frames] == list(range(12))
    assert [read_number(frame.image) for frame in frames] == list(range(12))
    assert (clip.report.num_frames, clip.report.num_missing, clip.report.decode_integrity) == (12, 0, 1.0)
    if not name.endswith(".h264"):  # a bare stream has no clock: FFmpeg counts each field as a frame of 1/25 s
        assert np.allclose(np.diff([frame.pts_seconds for frame in frames]), 0.04, atol=1e-3)


# A part is not a whole


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.avi", "mpeg4.avi", "vp8.webm", "wmv2.wmv", "h264.flv",
                                  "mpeg4.mp4", "hevc.mkv", "vp8.ivf"])  # fmt: skip
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_a_part_of_a_file_counts_what_is_missing(tmp_path: Path, name: str, share: float):
    options = {"movflags": "faststart"} if name.endswith(".mp4") else {}
    whole = made(tmp_path, name, num_frames=75, container_options=options)
    path = cut(whole, tmp_path / f"cut_{name}", share=share)
    clip = open_clip(path, EVERY_FRAME)
    frames = frames_of(clip)
    report = clip.report
    assert len(frames) < 75
    assert abs(report.num_decoded + report.num_missing - 75) <= 1
    assert report.decode_integrity == pytest.approx(len(frames) / 75, abs=0.03)
    assert "claims" in "; ".join(report.notes)
    # What is whole before the cut is whole.
    early = open_clip(path, EVERY_FRAME, end_seconds=0.5)
    frames_of(early)
    assert early.report.decode_integrity == 1.0
    with pytest.raises(VideoError, match=r"claims.*check the manifest"):
        open_clip(path, EVERY_FRAME, start_seconds=2.95)


@pytest.mark.parametrize("name", list(CONTAINERS))
def test_a_whole_file_has_nothing_to_say(tmp_path: Path, name: str):
    clip = open_clip(made(tmp_path, name), EVERY_FRAME)
    frames_of(clip)
    assert clip.report.notes == ()


@pytest.mark.parametrize("container", ["mkv", "mp4", "webm"])
def test_sound_that_goes_on_after_the_last_picture_is_no_damage(tmp_path: Path, container: str):
    video = "libvpx" if container == "webm" else "libx264"
    path = make_streams(tmp_path / f"a.{container}", [{"codec": video, "num_frames": 25}], sound_seconds=2.0)
    clip = open_clip(path, EVERY_FRAME)
    assert len(frames_of(clip)) == 25
    assert (clip.report.notes, clip.report.decode_integrity) == ((), 1.0)


# The right stream


@pytest.mark.parametrize("container", ["mkv", "mp4", "mov", "ts"])
@pytest.mark.parametrize("first", ["picture", "film"])
def test_a_picture_beside_a_film_is_not_the_film(tmp_path: Path, container: str, first: str):
    picture = {"codec": "mjpeg", "num_frames": 1, "width": 640, "height": 400, "pixel_format": "yuvj420p"}
    if container == "ts":
        picture = {"codec": "mpeg2video", "num_frames": 1, "width": 640, "height": 400}
    streams = [picture, {"num_frames": 50}] if first == "picture" else [{"num_frames": 50}, picture]
    path = make_streams(tmp_path / f"a.{container}", streams)
    clip = open_clip(path, EVERY_FRAME)
    frames = frames_of(clip)
    assert [read_number(frame.image) for frame in frames] == list(range(50))
    assert frames[0].image.shape == (96, 160, 3)
    assert "640x400, 1 frame" in "; ".join(clip.report.notes)


def test_of_several_films_the_longest_is_read_and_the_others_are_named(tmp_path: Path):
    streams = [{"num_frames": 20, "width": 320}, {"num_frames": 60}, {"num_frames": 40, "width": 240}]
    path = make_streams(tmp_path / "a.mkv", streams)
    clip = open_clip(path, EVERY_FRAME)
    assert len(frames_of(clip)) == 60
    (note,) = clip.report.notes
    assert "320x96, 20 frames" in note
    assert "240x96, 40 frames" in note
    for number, count in ((0, 20), (1, 60), (2, 40)):
        clip = open_clip(path, EVERY_FRAME, stream=number)
        assert len(frames_of(clip)) == count
        assert clip.report.notes == ()
    with pytest.raises(VideoError, match="stream 3 is asked for, and the file has 3"):
        open_clip(path, EVERY_FRAME, stream=3)


def test_a_file_of_one_picture_is_a_film_of_one_frame(tmp_path: Path):
    path = make_clip(tmp_path / "a.mkv", codec="mjpeg", pixel_format="yuvj420p", num_frames=1)
    assert len(frames_of(open_clip(path, EVERY_FRAME))) == 1


# Square pixels


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "mpeg4.mp4", "h264.ts", "hevc.mp4"])
@pytest.mark.parametrize("aspect", [Fraction(32, 15), Fraction(16, 11), Fraction(8, 9)])
def test_pixels_are_made_square(tmp_path: Path, name: str, aspect: Fraction):
    path = made(tmp_path, name, num_frames=5, pixel_aspect=aspect)
    (frame, *_) = frames_of(open_clip(path, EVERY_FRAME))
    assert frame.sample_aspect_ratio == pytest.approx(float(aspect), rel=0.02)
    assert frame.image.shape[0] == 96
    assert frame.image.shape[1] == pytest.approx(160 * float(aspect), abs=4)
    assert read_number(frame.image) == 0


def test_square_pixels_stay_as_they_are_and_a_damaged_ratio_is_left_out(tmp_path: Path):
    for name, aspect in (("a.mp4", None), ("b.mp4", Fraction(1)), ("c.mp4", Fraction(200))):
        path = make_clip(tmp_path / name, num_frames=2, pixel_aspect=aspect)
        (frame, *_) = frames_of(open_clip(path, EVERY_FRAME))
        assert (frame.image.shape, frame.sample_aspect_ratio) == ((96, 160, 3), 1.0)


def test_square_pixels_never_pass_the_limit_of_pixels(tmp_path: Path):
    path = make_clip(tmp_path / "a.mp4", num_frames=2, pixel_aspect=Fraction(3))
    (frame, *_) = frames_of(open_clip(path, EVERY_FRAME, max_pixels=2 * 160 * 96))
    assert frame.image.shape == (32, 160, 3)


@pytest.mark.parametrize("part", [1.0, 0.7])
@pytest.mark.parametrize("name", ["h264.avi", "in_order.avi", "mpeg4.avi", "mjpeg.avi"])
def test_the_index_of_an_avi_tells_what_its_packets_tell(tmp_path, name, part):
    path = make_clip(tmp_path / name, **CONTAINERS[name])
    path.write_bytes(path.read_bytes()[: round(part * path.stat().st_size)])  # The index lies at the end.
    with path.open("rb") as file:
        index = index_of(file, max_pixels=MAX_PIXELS, max_packets=MAX_PACKETS)
    with open_video(path) as (file, container, stream, _):
        times = times_of_pictures(file, container, stream)
    assert (times is not None) == index.by_order
    if times is not None:
        assert times.tolist() == pytest.approx(index.seconds.tolist())
