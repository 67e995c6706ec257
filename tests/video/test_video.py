import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from PIL import Image
from video_zoo import (
    claim_avi_frames,
    cut,
    flip_bits,
    make_clip,
    numbered_image,
    read_number,
    remux,
    with_bytes,
    with_matrix,
)

from pipeline.corpus.read import read_corpus
from pipeline.video import decode
from pipeline.video.frames import DecodedClip, Frame, Sampling, VideoError
from pipeline.video.image import read_image
from pipeline.video.open import open_clip

REPOSITORY = Path(__file__).parents[2]
EVERY_FRAME = Sampling(frames_per_clip=None, every_frame=True)
EIGHT = Sampling()
REAL_CLIPS_DIR = os.environ.get("REAL_CLIPS_DIR")
needs_real_clips = pytest.mark.skipif(REAL_CLIPS_DIR is None, reason="REAL_CLIPS_DIR is not set")
XVID = {"codec": "mpeg4", "options": {"g": "12"}}
XVID_WITH_B_FRAMES = {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}
H264_IN_ORDER = {"options": {"bf": "0", "g": "12"}}
H264_OPEN_GROUPS = {"options": {"g": "12", "x264-params": "open-gop=1:bframes=2"}}
QUIET_HEVC = "log-level=none:open-gop=1:keyint=12"


def frames_of(clip: DecodedClip) -> list[Frame]:
    with clip:
        return list(clip)


def reason_of(path: Path, **limits: object) -> str:
    with pytest.raises(VideoError) as caught:
        frames_of(open_clip(path, EIGHT, **limits))
    assert len(str(caught.value)) > 20
    return caught.value.reason


def assert_numbered(frames: list[Frame]) -> None:
    assert [read_number(frame.image) for frame in frames] == [frame.frame_index for frame in frames]


# Which frames


def test_eight_frames_are_the_middles_of_eight_equal_parts():
    assert Sampling().choose(np.arange(90) / 30).tolist() == [5, 16, 28, 39, 50, 61, 73, 84]


def test_a_clip_with_fewer_frames_than_asked_gives_each_once():
    assert Sampling().choose(np.arange(3) / 30).tolist() == [0, 1, 2]


def test_sampling_by_rate_takes_the_first_frame_at_or_after_each_target():
    seconds = np.array([0.0, 0.3, 0.5, 0.9, 1.6, 1.7])
    assert Sampling(frames_per_clip=None, sample_fps=2).choose(seconds).tolist() == [0, 2, 4]
    assert Sampling(frames_per_clip=None, sample_fps=2).choose(seconds, start_seconds=-0.1).tolist() == [0, 2, 3, 4]
    assert Sampling(frames_per_clip=None, sample_fps=1000).choose(seconds).tolist() == [0, 1, 2, 3, 4, 5]
    every_tenth = np.arange(100) * 1001 / 30000
    assert Sampling(frames_per_clip=None, sample_fps=3000 / 1001).choose(every_tenth).tolist() == list(
        range(0, 100, 10)
    )


@pytest.mark.parametrize(
    "ways",
    [
        {"sample_fps": 2.0},
        {"every_frame": True},
        {"frames_per_clip": None},
        {"frames_per_clip": 0},
        {"frames_per_clip": None, "sample_fps": 0.0},
        {"frames_per_clip": None, "sample_fps": float("nan")},
    ],
)
def test_sampling_needs_exactly_one_sensible_way(ways: dict):
    with pytest.raises(ValueError):
        Sampling(**ways)


def test_an_unknown_decoder_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="pyav"):
        open_clip(make_clip(tmp_path / "a.mp4", num_frames=2), EIGHT, decoder="opencv")


# Right frames from every codec and container


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("b_frames.mp4", {}),
        ("open_groups.mp4", H264_OPEN_GROUPS),
        ("in_order.mkv", H264_IN_ORDER),
        ("xvid.avi", XVID),
        ("xvid_with_b_frames.avi", XVID_WITH_B_FRAMES),
        ("h264_with_b_frames.avi", {"options": {"bf": "2", "g": "12"}}),
        ("fragmented.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "12"}}),
        ("negative_offsets.mp4", {"container_options": {"movflags": "negative_cts_offsets", "use_editlist": "0"}}),
        ("hevc.mp4", {"codec": "libx265", "options": {"x265-params": QUIET_HEVC}}),
        (
            "ten_bits.mp4",
            {"codec": "libx265", "pixel_format": "yuv420p10le", "options": {"x265-params": QUIET_HEVC}},
        ),
        ("interlaced.mp4", {"options": {"flags": "+ildct+ilme", "x264-params": "tff=1"}}),
        ("vp8.webm", {"codec": "libvpx"}),
        ("vp9.webm", {"codec": "libvpx-vp9"}),
        ("mjpeg.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p"}),
        ("alpha.mov", {"codec": "qtrle", "pixel_format": "argb"}),
        ("animation.gif", {"codec": "gif", "pixel_format": "rgb8"}),
        ("mpeg2.mpg", XVID_WITH_B_FRAMES | {"codec": "mpeg2video"}),
        ("elementary.m2v", XVID_WITH_B_FRAMES | {"codec": "mpeg2video", "container": "mpeg2video"}),
        ("stream.ts", {"options": {"g": "12"}}),
        ("old.wmv", {"codec": "wmv2"}),
        ("old.flv", {"codec": "flv"}),
        ("odd.mp4", {"width": 353, "height": 201, "pixel_format": "yuv444p"}),
    ],
)
def test_every_frame_comes_out_whole_and_in_order(tmp_path: Path, name: str, how: dict):
    clip = open_clip(make_clip(tmp_path / name, num_frames=40, **how), EVERY_FRAME)
    frames = frames_of(clip)
    assert [frame.frame_index for frame in frames] == list(range(40))
    assert_numbered(frames)
    steps = np.diff([frame.pts_seconds for frame in frames])
    assert np.allclose(steps, 1 / 30, atol=0.011 if name.endswith("gif") else 0.0015)
    report = clip.report
    assert (report.num_frames, report.num_decoded, report.decode_integrity) == (40, 40, 1.0)
    assert (report.num_corrupt, report.num_repeated, report.num_missing) == (0, 0, 0)


@pytest.mark.lengthy
def test_the_same_content_in_five_codecs_gives_the_same_sampled_frames(tmp_path: Path):
    how = {
        "a.mp4": {},
        "b.mp4": {"codec": "libx265", "options": {"x265-params": QUIET_HEVC}},
        "c.mp4": XVID,
        "d.webm": {"codec": "libvpx"},
        "e.avi": XVID_WITH_B_FRAMES,
    }
    for name, options in how.items():
        frames = frames_of(open_clip(make_clip(tmp_path / name, num_frames=31, **options), EIGHT))
        assert [frame.frame_index for frame in frames] == [1, 5, 9, 13, 17, 21, 25, 29], name
        assert_numbered(frames)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_variable_rate_gives_every_frame_its_own_time(tmp_path: Path, name: str):
    ticks = [i * 33 + (i % 3) * 7 + (500 if i > 30 else 0) for i in range(60)]
    frames = frames_of(open_clip(make_clip(tmp_path / name, ticks=ticks), EVERY_FRAME))
    assert_numbered(frames)
    assert np.allclose([frame.pts_seconds for frame in frames], np.array(ticks) / 1000, atol=1e-4)


@pytest.mark.parametrize("size", [(2, 2), (16, 2), (4096, 2)])
def test_tiny_and_thin_frames_decode(tmp_path: Path, size: tuple[int, int]):
    width, height = size
    images = [np.full((height, width, 3), 128, np.uint8)] * 3
    path = make_clip(tmp_path / "a.mp4", num_frames=3, width=width, height=height, images=images)
    frames = frames_of(open_clip(path, EIGHT))
    assert [frame.image.shape for frame in frames] == [(height, width, 3)] * 3


# Upright


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_clip_comes_upright(tmp_path: Path, rotation: int):
    turns = rotation // 90
    images = [np.rot90(numbered_image(i), -turns).copy() for i in range(5)]
    height, width = images[0].shape[:2]
    path = make_clip(tmp_path / "a.mp4", num_frames=5, width=width, height=height, rotation=rotation, images=images)
    frames = frames_of(open_clip(path, EVERY_FRAME))
    assert frames[0].image.shape == (96, 160, 3)
    assert_numbered(frames)
    assert np.abs(frames[3].image.astype(int) - numbered_image(3)).mean() < 8


# a, b, c, d of the track header, and the stored image that they bring upright.
@pytest.mark.parametrize(
    ("matrix", "store"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((1, 0, 0, -1), lambda image: image[::-1]),
        ((0, 1, -1, 0), lambda image: np.rot90(image, 1)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, -1)),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda image: image[::-1, ::-1].transpose(1, 0, 2)),
    ],
)
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_every_display_matrix_of_quarter_turns_and_mirrors_is_undone(tmp_path: Path, matrix, store, decoder: str):
    images = [np.ascontiguousarray(store(numbered_image(i))) for i in range(3)]
    height, width = images[0].shape[:2]
    plain = make_clip(tmp_path / "p.mp4", num_frames=3, width=width, height=height, images=images, **H264_IN_ORDER)
    a, b, c, d = matrix
    frames = frames_of(open_clip(with_matrix(plain, tmp_path / "m.mp4", a=a, b=b, c=c, d=d), EIGHT, decoder=decoder))
    assert_numbered(frames)
    assert np.abs(frames[2].image.astype(int) - numbered_image(2)).mean() < 8


# Time ranges


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "how", [H264_OPEN_GROUPS, XVID, XVID_WITH_B_FRAMES, {"options": {"x264-params": "intra-refresh=1:keyint=12"}}]
)
def test_a_range_gives_the_very_frames_of_the_whole_decode(tmp_path: Path, how: dict):
    path = make_clip(tmp_path / "a.mp4", num_frames=120, **how)
    whole = {frame.frame_index: frame for frame in frames_of(open_clip(path, EVERY_FRAME))}
    for start in (0.0, 0.5, 1.21, 2.05, 3.0):
        clip = open_clip(path, EVERY_FRAME, start_seconds=start, end_seconds=start + 0.5)
        frames = frames_of(clip)
        inside = [i for i, frame in whole.items() if start <= frame.pts_seconds < start + 0.5]
        assert [frame.frame_index for frame in frames] == inside
        assert all(np.array_equal(frame.image, whole[frame.frame_index].image) for frame in frames)
        assert clip.report.decode_integrity == 1.0


def test_a_range_without_frames_is_named(tmp_path: Path):
    path = make_clip(tmp_path / "a.mp4")
    assert reason_of(path, start_seconds=2.0) == "range_past_end"
    assert reason_of(path, start_seconds=0.01, end_seconds=0.02) == "no_frames"
    assert reason_of(path, end_seconds=-1.0) == "no_frames"


# Which decoder


@pytest.mark.lengthy
@pytest.mark.parametrize(("name", "how"), [("a.avi", XVID), ("a.mp4", H264_IN_ORDER), ("a.mkv", H264_IN_ORDER)])
def test_decord_reads_a_long_clip_where_its_seeking_is_exact(tmp_path: Path, name: str, how: dict):
    path = make_clip(tmp_path / name, num_frames=1300, width=96, height=64, **how)
    clip = open_clip(path, EIGHT)
    frames = frames_of(clip)
    assert clip.report.decoder == "decord"
    assert clip.report.num_decoded == 8
    assert_numbered(frames)
    others = frames_of(open_clip(path, EIGHT, decoder="pyav"))
    for frame, other in zip(frames, others, strict=True):
        assert (frame.frame_index, frame.pts_seconds) == (other.frame_index, other.pts_seconds)
        assert np.abs(frame.image.astype(int) - other.image).max() <= 2


@pytest.mark.lengthy
def test_a_large_file_is_left_to_the_decoder_that_holds_no_more_than_a_packet(tmp_path: Path, monkeypatch):
    path = make_clip(tmp_path / "a.mp4", num_frames=1300, width=96, height=64, **H264_IN_ORDER)
    monkeypatch.setattr(decode, "_MAX_DECORD_BYTES", path.stat().st_size - 1)
    clip = open_clip(path, EIGHT)
    assert_numbered(frames_of(clip))
    assert clip.report.decoder == "pyav"
    assert clip.report.decoder_reason.startswith("too large for decord")


def test_a_short_clip_is_decoded_in_sequence_since_that_sees_damage(tmp_path: Path):
    clip = open_clip(make_clip(tmp_path / "a.avi", **XVID), EIGHT)
    frames_of(clip)
    assert clip.report.decoder == "pyav"
    assert clip.report.decoder_reason.startswith("short enough")


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("name", "how", "reason"),
    [
        ("a.mp4", {}, "reordered"),
        ("a.avi", XVID_WITH_B_FRAMES, "B-frames"),
        ("a.mp4", H264_OPEN_GROUPS, "IDR"),
        ("a.ts", H264_IN_ORDER, "not exact for h264 in mpegts"),
        ("a.avi", H264_IN_ORDER, "not exact for h264 in avi"),
        ("a.wmv", {"codec": "wmv2"}, "not exact"),
        ("a.webm", {"codec": "libvpx"}, "not exact"),
        ("a.mp4", {"pixel_format": "yuv444p", **H264_IN_ORDER}, "pixel format"),
    ],
)
def test_decord_is_kept_from_files_that_it_gets_wrong(tmp_path: Path, name: str, how: dict, reason: str):
    clip = open_clip(make_clip(tmp_path / name, **how), EIGHT, decoder="decord")
    assert_numbered(frames_of(clip))
    assert clip.report.decoder == "pyav"
    assert reason in clip.report.decoder_reason


def test_a_header_that_claims_a_thousand_million_frames_is_not_believed(tmp_path: Path):
    path = claim_avi_frames(make_clip(tmp_path / "a.avi", **XVID), tmp_path / "b.avi", num_frames=10**9)
    clip = open_clip(path, EIGHT, decoder="decord")
    assert_numbered(frames_of(clip))
    assert (clip.report.decoder, clip.report.num_frames) == ("pyav", 60)
    assert "the header claims 1000000000 frames, the file holds 60" in clip.report.notes


def test_pyav_takes_over_where_decord_fails_in_the_middle(tmp_path: Path):
    def spoil(number: int, packet: av.Packet) -> list[av.Packet]:
        data = bytearray(bytes(packet))
        if number == 20:  # keep the length of the unit and its type, so that only the decoder can tell
            data[6:] = b"\xff" * (len(data) - 6)
        return [with_bytes(packet, bytes(data))]

    path = remux(make_clip(tmp_path / "a.mp4", **H264_IN_ORDER), tmp_path / "b.mp4", spoil)
    clip = open_clip(path, EVERY_FRAME, decoder="decord")
    frames = frames_of(clip)
    assert clip.report.decoder == "pyav"
    assert clip.report.decoder_reason.startswith("decord failed")
    whole = [frame for frame in frames if not 20 <= frame.frame_index < 24]
    assert_numbered(whole)
    assert len(whole) == 56


# Damage is counted


def test_after_a_packet_that_does_not_decode_the_next_key_frame_goes_on_with_the_right_index(tmp_path: Path):
    def spoil(number: int, packet: av.Packet) -> list[av.Packet]:
        return [with_bytes(packet, b"\x00" * 40) if number == 20 else packet]

    path = remux(make_clip(tmp_path / "a.mp4", **H264_IN_ORDER), tmp_path / "b.mp4", spoil)
    clip = open_clip(path, EVERY_FRAME)
    frames = frames_of(clip)
    assert [frame.frame_index for frame in frames] == [*range(20), *range(24, 60)]
    assert_numbered(frames)
    assert (clip.report.num_decoded, clip.report.num_missing) == (56, 4)
    assert clip.report.decode_integrity == pytest.approx(56 / 60)
    assert "packet 20 does not decode" in clip.report.notes[0]


def test_the_next_frame_stands_in_for_a_sampled_frame_that_is_lost(tmp_path: Path):
    def spoil(number: int, packet: av.Packet) -> list[av.Packet]:
        return [with_bytes(packet, b"\x00" * 40) if number == 26 else packet]

    path = remux(make_clip(tmp_path / "a.mp4", **H264_IN_ORDER), tmp_path / "b.mp4", spoil)
    frames = frames_of(open_clip(path, EIGHT))
    assert [frame.frame_index for frame in frames] == [3, 11, 18, 36, 41, 48, 56]  # 26 and 33 were wanted too
    assert_numbered(frames)


@pytest.mark.parametrize("name", ["a.avi", "a.ts", "a.mkv", "a.mpg"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_what_lies_before_a_cut_is_salvaged(tmp_path: Path, name: str, share: float):
    how = {"codec": "mpeg2video"} if name == "a.mpg" else XVID if name == "a.avi" else H264_IN_ORDER
    path = cut(make_clip(tmp_path / name, num_frames=120, **how), tmp_path / ("cut_" + name), share=share)
    frames = frames_of(open_clip(path, EVERY_FRAME))
    assert len(frames) >= 120 * share * 0.25
    assert_numbered(frames[:-1])


def test_flipped_bits_lower_the_integrity(tmp_path: Path):
    path = make_clip(tmp_path / "a.avi", num_frames=90, **XVID)
    clip = open_clip(flip_bits(path, tmp_path / "b.avi", seed=1, num_flips=20, begin=0.2, end=0.8), EIGHT)
    frames_of(clip)
    report = clip.report
    assert report.num_corrupt + report.num_missing > 0
    assert 0 < report.decode_integrity < 1


@pytest.mark.lengthy
def test_uncoded_and_hidden_frames_are_not_damage(tmp_path: Path):
    # A VOP with vop_coded 0 (time increment 5 of 30), as encoders write for a picture like the one before.
    stub = b"\x00\x00\x01\xb6\x52\xcf"
    source = make_clip(tmp_path / "a.avi", width=320, height=240, **XVID)
    path = remux(source, tmp_path / "b.avi", lambda i, packet: [with_bytes(packet, stub) if i == 5 else packet])
    clip = open_clip(path, EVERY_FRAME, decoder="decord")
    frames = frames_of(clip)
    assert [frame.frame_index for frame in frames] == [*range(5), *range(6, 60)]
    assert_numbered(frames)
    assert (clip.report.decoder, clip.report.num_missing, clip.report.decode_integrity) == ("pyav", 0, 1.0)

    def hide(number: int, packet: av.Packet) -> list[av.Packet]:
        data = bytes(packet)
        return [with_bytes(packet, bytes([data[0] & ~0x10]) + data[1:]) if number == 7 else packet]

    path = remux(make_clip(tmp_path / "a.webm", codec="libvpx"), tmp_path / "b.webm", hide)
    clip = open_clip(path, EVERY_FRAME)
    assert [read_number(frame.image) for frame in frames_of(clip)] == [*range(7), *range(8, 60)]
    assert (clip.report.num_frames, clip.report.decode_integrity) == (59, 1.0)


def test_frames_hidden_by_an_edit_list_are_not_counted(tmp_path: Path):
    def earlier(_: int, packet: av.Packet) -> list[av.Packet]:
        packet.pts -= 10240  # 20 frames at 1 / 15360 s
        packet.dts -= 10240
        return [packet]

    path = remux(make_clip(tmp_path / "a.mp4"), tmp_path / "b.mp4", earlier)
    clip = open_clip(path, EVERY_FRAME, decoder="decord")
    frames = frames_of(clip)
    assert [read_number(frame.image) for frame in frames] == list(range(20, 60))
    assert frames[0].pts_seconds == 0.0
    assert (clip.report.num_frames, clip.report.decode_integrity) == (40, 1.0)


def test_a_repeated_timestamp_is_counted(tmp_path: Path):
    def same(number: int, packet: av.Packet) -> list[av.Packet]:
        if number == 10:
            packet.pts = packet.dts
        return [packet]

    path = remux(make_clip(tmp_path / "a.mp4"), tmp_path / "b.mkv", same)
    clip = open_clip(path, EVERY_FRAME)
    assert_numbered(frames_of(clip))
    assert clip.report.num_repeated == 1


def test_joined_streams_go_on_where_the_clock_starts_again(tmp_path: Path):
    first = make_clip(tmp_path / "a.ts", num_frames=30, options={"g": "12"})
    second = make_clip(tmp_path / "b.ts", num_frames=30, options={"g": "12"}, width=320, height=240)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    clip = open_clip(joined, EVERY_FRAME)
    frames = frames_of(clip)
    assert [read_number(frame.image) for frame in frames] == [*range(30), *range(30)]
    assert [frame.image.shape[1] for frame in frames] == [160] * 30 + [320] * 30
    assert np.allclose(np.diff([frame.pts_seconds for frame in frames]), 1 / 30, atol=1e-3)
    assert any("size changes" in note for note in clip.report.notes)

    clip = open_clip(joined, EVERY_FRAME, max_pixels=160 * 96 * 2)  # a stream that grows past the limit
    assert len(frames_of(clip)) == 30
    assert clip.report.decode_integrity == 0.5


# Files that are no video


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (b"hello, this is a text", "not_a_video"),
        (b"PK\x03\x04" + bytes(2000), "not_a_video"),
        (bytes(5000), "not_a_video"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(100), "image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "image"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(100), "image"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image"),
        (b"#EXTM3U\n#EXTINF:1,\nclip.mp4\n", "playlist"),
        (b"\xef\xbb\xbf\r\n#EXTM3U\nhttp://127.0.0.1:9/a.ts\n", "playlist"),
        (b"ffconcat version 1.0\nfile 'clip.mp4'\n", "playlist"),
        (b'<?xml version="1.0"?><MPD></MPD>', "playlist"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\n", "playlist"),
        (b"rtsp://127.0.0.1/x", "playlist"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(100), "undecodable"),
        (b"\x1a\x45\xdf\xa3" + bytes(100), "undecodable"),
        (b"OggS" + bytes(100), "undecodable"),
        (b"FLV\x01\x05\x00\x00\x00\x09" + bytes(100), "undecodable"),
    ],
)
def test_a_file_that_is_no_video_is_refused_by_its_content(tmp_path: Path, content: bytes, reason: str):
    make_clip(tmp_path / "clip.mp4", num_frames=3)  # what the playlists point to
    path = tmp_path / "named.mp4"
    path.write_bytes(content)
    assert reason_of(path) == reason


@pytest.mark.parametrize(
    "name",
    ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.mpg", "a.flv", "a.wmv", "a.gif", "a.mxf", "a.rm", "a.ivf", "a.nut", "a.m2v"],
)
def test_what_is_planned_as_a_video_without_a_name_is_what_the_decoder_takes(tmp_path: Path, name: str):
    codecs = {"a.wmv": "wmv2", "a.gif": "gif", "a.rm": "rv20", "a.ivf": "libvpx", "a.flv": "flv", "a.m2v": "mpeg2video"}
    codec = codecs.get(name, "mpeg2video" if name in ("a.mpg", "a.mxf") else "libx264")
    how = {"pixel_format": "rgb8"} if codec == "gif" else {"rate": 25}
    made = make_clip(
        tmp_path / name, codec=codec, num_frames=4, container="mpeg2video" if name == "a.m2v" else None, **how
    )
    made.rename(tmp_path / "nameless")
    (clip,) = read_corpus(str(tmp_path)).clips
    assert len(frames_of(open_clip(clip.url, EVERY_FRAME))) == 4


def test_folders_pipes_devices_loops_and_missing_files_are_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    assert reason_of(tmp_path) == "not_a_file"
    assert reason_of(tmp_path / "pipe.mp4") == "not_a_file"
    assert reason_of(Path("/dev/zero")) == "not_a_file"
    for name in ("loop.mp4", "missing.mp4", "null\0byte.mp4", "x" * 300):
        assert reason_of(tmp_path / name) == "unreadable"


def test_a_file_with_sound_only_is_refused(tmp_path: Path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert reason_of(path) == "no_video_stream"


def test_an_encrypted_file_is_refused(tmp_path: Path):
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "0" * 32, "encryption_kid": "1" * 32}
    assert reason_of(make_clip(tmp_path / "a.mp4", container_options=options)) == "encrypted"


def test_limits_are_kept_and_named(tmp_path: Path):
    path = make_clip(tmp_path / "a.mp4")
    assert reason_of(path, max_bytes=1000) == "too_large"
    assert reason_of(path, max_packets=59) == "too_large"
    assert reason_of(path, max_pixels=160 * 96 - 1) == "too_many_pixels"
    assert len(frames_of(open_clip(path, EIGHT, max_packets=60, max_pixels=160 * 96 * 2))) == 8


def test_no_key_frame_at_the_start_gives_frames_from_the_first_key_frame_on(tmp_path: Path):
    source = make_clip(tmp_path / "a.mkv", **H264_IN_ORDER)
    path = remux(source, tmp_path / "b.mkv", lambda i, packet: [packet] if i >= 5 else [])
    clip = open_clip(path, EVERY_FRAME, decoder="decord")
    frames = frames_of(clip)
    assert [read_number(frame.image) for frame in frames][-48:] == list(range(12, 60))
    assert clip.report.decoder == "pyav"

    path = remux(source, tmp_path / "c.mkv", lambda i, packet: [packet] if 5 <= i < 12 else [])
    assert reason_of(path) == "undecodable"


@pytest.mark.parametrize(
    "name",
    ["-dash.mp4", "%03d.mp4", "a b'\"$(x)&;.mp4", "new\nline.mp4", "é 漢字.mp4", "http:a.mp4", "x" * 255, "\udcff.mp4"],
)
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_any_name_is_only_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, decoder: str):
    monkeypatch.chdir(tmp_path)
    made = make_clip(tmp_path / "made.mp4", num_frames=20, **H264_IN_ORDER)
    made.rename(tmp_path / name)
    clip = open_clip(name, EIGHT, decoder=decoder)  # relative, as a decoder could misread it
    assert_numbered(frames_of(clip))
    assert clip.report.decoder == decoder


# The clip as an object


def test_the_report_is_complete_only_after_the_last_frame(tmp_path: Path):
    clip = open_clip(make_clip(tmp_path / "a.mp4"), EIGHT)
    with pytest.raises(ValueError, match="iterate"):
        _ = clip.report
    frames_of(clip)
    assert clip.report.num_frames == 60


def test_no_file_stays_open_after_failures_and_early_exits(tmp_path: Path):
    good = make_clip(tmp_path / "a.mp4", **H264_IN_ORDER)
    damaged = cut(good, tmp_path / "b.mp4", share=0.5)
    frames_of(open_clip(good, EIGHT, decoder="decord"))
    before = psutil.Process().num_fds()
    for _ in range(20):
        reason_of(damaged)
        for decoder in ("pyav", "decord"):
            with open_clip(good, EIGHT, decoder=decoder) as clip:
                next(iter(clip))
    assert psutil.Process().num_fds() == before


@pytest.mark.lengthy
def test_memory_stays_flat_over_a_film(tmp_path: Path):
    path = make_clip(tmp_path / "a.mp4", num_frames=200, width=640, height=480, options={"preset": "ultrafast"})
    gc.disable()  # a frame that lives until the next collection is a leak too: 200 decoded frames are 92 MB
    try:
        for frame in open_clip(path, EVERY_FRAME):
            if frame.frame_index == 40:
                before = psutil.Process().memory_info().rss
        assert psutil.Process().memory_info().rss - before < 30e6
    finally:
        gc.enable()


# Still images


def test_an_image_is_a_clip_of_one_frame_turned_as_its_exif_says(tmp_path: Path):
    picture = numbered_image(5)
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored image is to be turned a quarter clockwise
    Image.fromarray(np.rot90(picture, 1)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    clip = read_image(tmp_path / "a.jpg")
    (frame,) = frames_of(clip)
    assert (frame.frame_index, frame.pts_seconds, read_number(frame.image)) == (0, 0.0, 5)
    assert (clip.report.decoder, clip.report.container, clip.report.decode_integrity) == ("pillow", "jpeg", 1.0)


def test_images_of_every_mode_become_rgb(tmp_path: Path):
    picture = numbered_image(5)
    Image.fromarray(picture).save(tmp_path / "rgb.png")
    assert np.array_equal(frames_of(read_image(tmp_path / "rgb.png"))[0].image, picture)
    Image.fromarray(picture).convert("RGBA").save(tmp_path / "rgba.png")
    assert np.array_equal(frames_of(read_image(tmp_path / "rgba.png"))[0].image, picture)
    Image.fromarray(picture[:, :, 0].astype(np.uint16) << 8).save(tmp_path / "grey16.png")
    assert np.array_equal(frames_of(read_image(tmp_path / "grey16.png"))[0].image[:, :, 1], picture[:, :, 0])


def test_images_that_are_broken_too_large_or_of_another_kind_are_refused(tmp_path: Path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(numbered_image(1)).save(tmp_path / "a.webp")
    Image.new("1", (10000, 9100)).save(tmp_path / "bomb.png")
    make_clip(tmp_path / "a.gif", codec="gif", pixel_format="rgb8", num_frames=2)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(VideoError, match="copy it again"):
            read_image(cut(tmp_path / "a.png", tmp_path / "b.png", share=share))
    for name, limit, reason in (
        ("a.png", 4095, "too_many_pixels"),
        ("bomb.png", 10**12, "too_many_pixels"),
        ("a.webp", 10**6, "undecodable"),
        ("a.gif", 10**6, "undecodable"),
        ("missing.png", 10**6, "unreadable"),
    ):
        with pytest.raises(VideoError) as caught:
            read_image(tmp_path / name, max_pixels=limit)
        assert caught.value.reason == reason, name


# Hostile files, in a process of their own, since a decoder may crash

_TRY_EACH = """
import json, sys
from pipeline.video import Sampling, VideoError, open_clip
for path in json.load(sys.stdin):
    try:
        with open_clip(path, Sampling()) as clip:
            indices = [frame.frame_index for frame in clip]
        report = clip.report
        assert indices and indices == sorted(set(indices)) and 0 <= report.decode_integrity <= 1
        print(json.dumps([path, report.decoder, indices]), flush=True)
    except VideoError as error:
        assert error.reason and str(error)
        print(json.dumps([path, error.reason, None]), flush=True)
"""


def outcomes_of(paths: list[Path]) -> dict[str, tuple[str, list[int] | None]]:
    """name -> (decoder or reason, indices or None), tried one after the other in one child process."""
    child = subprocess.run(
        [sys.executable, "-c", _TRY_EACH],
        input=json.dumps([str(path) for path in paths]),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=240,
        check=False,
    )
    rows = [json.loads(line) for line in child.stdout.splitlines()]
    assert len(rows) == len(paths), f"{paths[len(rows)]}: exit {child.returncode}\n{child.stderr[-3000:]}"
    return {Path(path).name: (word, indices) for path, word, indices in rows}


@pytest.mark.lengthy
def test_mutants_of_six_containers_give_frames_or_a_reason(tmp_path: Path):
    sources = [
        make_clip(tmp_path / "a.mp4", num_frames=24),
        make_clip(tmp_path / "a.avi", num_frames=24, **XVID),
        make_clip(tmp_path / "a.mkv", num_frames=24, **H264_IN_ORDER),
        make_clip(tmp_path / "a.ts", num_frames=24, options={"g": "12"}),
        make_clip(tmp_path / "a.webm", num_frames=24, codec="libvpx"),
        make_clip(tmp_path / "a.mpg", num_frames=24, codec="mpeg2video"),
    ]
    mutants = []
    for source in sources:
        for seed in range(20):
            begin, end = ((0, 1), (0, 0.02), (0.95, 1), (0.02, 0.95))[seed % 4]
            path = tmp_path / f"{source.suffix[1:]}_{seed}.mp4"
            mutants.append(flip_bits(source, path, seed=seed, num_flips=1 + seed, begin=begin, end=end))
    outcomes = outcomes_of(mutants)
    assert sum(indices is not None for _, indices in outcomes.values()) > len(mutants) / 2


@pytest.mark.lengthy
@needs_real_clips
def test_sampled_frames_of_real_clips_are_those_of_a_sequential_decode():
    for path in sorted(Path(REAL_CLIPS_DIR).iterdir()):
        if path.suffix == ".tsv":
            continue
        clip = open_clip(path, EIGHT, decoder="decord")  # PyAV where decord is not exact
        frames = {frame.frame_index: frame for frame in frames_of(clip)}
        assert len(frames) == 8, path.name
        assert clip.report.decode_integrity == 1.0
        count = 0
        with path.open("rb") as file, av.open(file) as container:
            for index, decoded in enumerate(container.decode(container.streams.best("video"))):
                count += 1
                if index in frames:
                    expected = decoded.to_ndarray(format="rgb24")
                    assert np.abs(expected.astype(int) - frames[index].image).max() <= 2, f"{path.name} {index}"
                    assert frames[index].pts_seconds == pytest.approx(decoded.time)
        assert count == clip.report.num_frames, path.name


@needs_real_clips
def test_real_footage_in_five_codecs_gives_the_same_sampled_frames():
    names = ("h264_aac.mp4", "h265_aac.mp4", "mp4v_aac.mp4", "vp8_opus.webm", "xvid_aac.avi")
    clips = [frames_of(open_clip(Path(REAL_CLIPS_DIR) / f"mpf_{name}", EIGHT)) for name in names]
    assert len({tuple(frame.frame_index for frame in frames) for frames in clips}) == 1
    for frames in clips[1:]:
        for frame, first in zip(frames, clips[0], strict=True):
            assert np.abs(frame.image.astype(int) - first.image).mean() < 8


@pytest.mark.lengthy
@needs_real_clips
def test_hostile_files_give_frames_or_a_reason():
    folder = Path(REAL_CLIPS_DIR).parent / "nasty"
    outcomes = outcomes_of([path for path in sorted(folder.iterdir()) if path.name != "MANIFEST.tsv"])
    refused = {name: word for name, (word, indices) in outcomes.items() if indices is None}
    assert refused == {
        "ffconcat_named.mp4": "playlist",
        "mp4parse_bipbop_480wp_1001kbps-cenc-video-key1-init.mp4": "no_frames",
        "mp4parse_invalid_userdata.mp4": "no_frames",
        "mpf_audio_only.mp4": "no_video_stream",
        "mpf_noaudio-novideo.mkv": "no_video_stream",
        "playlist_to_file_named.mp4": "playlist",
        "playlist_to_url_named.mp4": "playlist",
        "syn_8k.mp4": "too_many_pixels",
        "syn_all_1e9.mp4": "no_frames",
        "syn_bomb_16384.mp4": "too_many_pixels",
        "syn_first_key_zeroed.mp4": "undecodable",
        "syn_jpeg_named.mp4": "image",
        "syn_mjpeg_65500.avi": "undecodable",
        "syn_no_key_at_start.mp4": "undecodable",
        "syn_no_key_at_start.ts": "undecodable",
        "syn_random_bytes.mp4": "not_a_video",
        "syn_stsz_1e9.mp4": "undecodable",
        "syn_stsz_const_1e9.mp4": "no_frames",
        "syn_stsz_stts_1e9.mp4": "no_frames",
        "syn_text.mp4": "not_a_video",
        "syn_trunc30_moov_end.mp4": "undecodable",
        "syn_trunc60_moov_end.mp4": "undecodable",
        "syn_trunc90_moov_end.mp4": "undecodable",
        "syn_zero_byte.mp4": "empty_file",
        "syn_zip_named.mp4": "not_a_video",
    }
