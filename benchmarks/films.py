"""How soon a film begins to play in the viewer: the seconds that its page waits for the server, on a disk and on S3.

The page asks for the facts of a video and then for the stretch with the moment that is wanted; the child processes that
answer are those of the viewer. What the browser takes to show what comes is not in it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np
import psutil
from rich.console import Console

from benchmarks.listing import reached
from benchmarks.machine import machine
from benchmarks.tables import table
from pipeline.labels.videos import opened_videos
from pipeline.runtime.console import log_status
from pipeline.storage.store import Storage
from pipeline.viewer.media import STRETCH_SECONDS

FPS, BLOCK_PX, SCENE_SECONDS = 25, 16, 60
# Name of the film: its codec and what the encoder is told. A key frame every ten seconds, in MPEG-2 as broadcasts have.
FILMS: dict[str, tuple[str, dict[str, str]]] = {
    "film.avi": ("mpeg4", {"g": "250"}),
    "film.ts": ("libx264", {"g": "250", "preset": "veryfast"}),
    "film.mp4": ("libx265", {"g": "250", "preset": "ultrafast", "x265-params": "log-level=none"}),
    "film.mpg": ("mpeg2video", {"g": "15"}),
}
SOUNDS = {"film.avi": "mp3", "film.mpg": "mp2"}
BUCKET = "films"


@dataclass(frozen=True, kw_only=True)
class FilmsConfig:
    """Makes films and asks for moments of them as the viewer's page does."""

    study: str
    """films."""
    output: str = "build/films"
    """Local folder of films.json; the films are made in it and deleted afterwards."""
    minutes: int = 60
    """Length of the films (minutes)."""
    width: int = 640
    """Width of their pictures (pixels); the height is three quarters of it."""
    s3: bool = True
    """Also from a server of S3 on this machine."""
    keep: bool = False
    """Leave the films where they are; the next run asks for moments of them."""

    def __post_init__(self) -> None:
        if self.minutes < 1:
            raise ValueError(f"--minutes is {self.minutes}; give 1 or more")
        if not 64 <= self.width <= 3840:
            raise ValueError(f"--width is {self.width}; give 64 to 3840 pixels")


def films(config: FilmsConfig) -> dict[str, Any]:
    """Make the films and ask; writes films.json and returns what it holds."""
    storage = Storage(config.output)
    folder = Path(storage.path("made"))
    if not (config.keep and (folder / "whole").exists()):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in FILMS:
            log_status(f"making {name}, {config.minutes} minutes")
            make_film(folder / name, minutes=config.minutes, width=config.width)
        (folder / "whole").touch()
    before, rows = os.getloadavg()[0], []
    try:
        rows += [{"place": "disk", **row} for row in _asked(str(folder), folder)]
        if config.s3:
            with _served(folder) as (url, server):
                rows += [{"place": "S3", **row} for row in _asked(url, folder, server)]
    finally:
        if not config.keep:
            shutil.rmtree(folder)
    load = {"before": before, "after": os.getloadavg()[0]}
    results = {"machine": machine(), "settings": asdict(config), "load_average": load, "films": rows}
    storage.put("films.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


def make_film(path: Path, *, minutes: int, width: int) -> None:
    """A film of one minute that is repeated: moving blocks and a tone."""
    codec, options = FILMS[path.name]
    height = width * 3 // 4 // 2 * 2
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (-(-height // BLOCK_PX), -(-width // BLOCK_PX), 3), dtype=np.uint8)
    picture = picture.repeat(BLOCK_PX, 0).repeat(BLOCK_PX, 1)[:height, :width]
    moved = [np.ascontiguousarray(np.roll(picture, 3 * step, axis=1)) for step in range(FPS)]
    images = [av.VideoFrame.from_ndarray(each, format="rgb24").reformat(format="yuv420p") for each in moved]
    with av.open(str(path), "w") as writer:
        video: Any = writer.add_stream(codec, rate=FPS, options=options)
        video.width, video.height, video.pix_fmt, video.bit_rate = width, height, "yuv420p", 1_500_000
        sound: Any = writer.add_stream(SOUNDS.get(path.name, "aac"), rate=48_000, layout="stereo")
        video_packets, sound_packets = _packets(video, images), _tone(sound)
        for minute in range(minutes):
            for packet in sorted([*video_packets, *sound_packets], key=lambda each: float(each[1] * each[3])):
                writer.mux(_copied(packet, seconds=minute * SCENE_SECONDS))


def _packets(stream: Any, images: list[Any]) -> list[tuple[Any, ...]]:
    found = []
    for number in range(SCENE_SECONDS * FPS):
        images[number % len(images)].pts = number
        found += stream.encode(images[number % len(images)])
    return [_facts(each) for each in [*found, *stream.encode()]]


def _tone(stream: Any) -> list[tuple[Any, ...]]:
    num_samples = stream.codec_context.frame_size or 1024
    times = np.arange(num_samples) / 48_000
    wave = (8000 * np.sin(2 * np.pi * 441 * times)).astype(np.int16)
    found = []
    for number in range(SCENE_SECONDS * 48_000 // num_samples):
        frame = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[None], format="s16", layout="stereo")
        frame.sample_rate, frame.pts = 48_000, number * num_samples
        found += stream.encode(frame)
    # Not what the encoder begins early and ends late: the minutes follow one another.
    packets = map(_facts, [*found, *stream.encode()])
    return [each for each in packets if 0 <= each[2] * each[3] < SCENE_SECONDS - 0.05]


def _facts(packet: Any) -> tuple[Any, ...]:
    return packet, packet.dts, packet.pts, packet.time_base, bytes(packet), packet.stream, packet.is_keyframe


def _copied(facts: tuple[Any, ...], *, seconds: int) -> Any:
    _, dts, pts, base, data, stream, is_key = facts
    later = round(seconds / base)
    packet = av.Packet(data)
    packet.time_base, packet.stream, packet.is_keyframe = base, stream, is_key
    packet.dts, packet.pts = dts + later, pts + later
    return packet


def _asked(url: str, folder: Path, server: int | None = None) -> Iterator[dict[str, Any]]:
    """Of each film what is waited for: its facts with the stretch at three quarters, then two other stretches."""
    with opened_videos(url, num_children=2) as videos:
        videos.start()
        for name in FILMS:
            size = (folder / name).stat().st_size
            clip = {"clip_id": name, "path": name, "url": f"{url}/{name}", "size_bytes": size, "content_id": ""}
            facts, first = _timed(partial(videos.ask, "facts", clip), server)
            waits = []
            for share in (0.75, 1 / 6, 0.97):
                start = facts["start"] + int(share * facts["end"] / STRETCH_SECONDS) * STRETCH_SECONDS
                span = {"start": start, "end": start + STRETCH_SECONDS, "offset": facts["start"]}
                convert = partial(videos.ask, "convert", clip, number=facts["stream"], **span)
                data, taken = _timed(convert, server)
                if not data:
                    raise RuntimeError(f"{name}: nothing came of {start} s")
                waits.append(taken)
            opened = {key: first[key] + waits[0][key] for key in first}
            sought = {key: statistics.mean(each[key] for each in waits[1:]) for key in first}
            yield {"film": name, "codec": FILMS[name][0], "mib": size / 2**20, "opened": opened, "sought": sought}


def _timed(ask: Callable[[], Any], server: int | None) -> tuple[Any, dict[str, float]]:
    before, cpu = time.monotonic(), _cpu_seconds(server)
    found = ask()
    return found, {"seconds": time.monotonic() - before, "cpu_seconds": _cpu_seconds(server) - cpu}


def _cpu_seconds(server: int | None) -> float:
    """Of this process and its children, but not of the server of S3."""
    own = psutil.Process()
    times = [each.cpu_times() for each in [own, *own.children(recursive=True)] if each.pid != server]
    return sum(each.user + each.system for each in times)


@contextmanager
def _served(folder: Path) -> Iterator[tuple[str, int]]:
    """The films in a bucket of a server of S3 on this machine, and its process."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(folder, theirs), daemon=True)
    process.start()
    try:
        endpoint = ours.recv()
        assert process.pid is not None, "it has answered"
        with reached(endpoint):
            yield f"s3://{BUCKET}", process.pid
    finally:
        process.kill()
        process.join()


def _serve(folder: Path, connection: Connection) -> None:
    """Answer for the films as S3 does. Not moto, which reads the whole of a film for each of its ranges."""

    class Films(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(is_read=False)

        def do_GET(self) -> None:
            self._answer(is_read=True)

        def log_message(self, *_: object) -> None:  # type: ignore[override] - a line for each request
            return

        def _answer(self, *, is_read: bool) -> None:
            path = folder / Path(urlsplit(self.path).path).name
            if not path.is_file():
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            size = path.stat().st_size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            end = min(size, int(asked[2]) + 1) if asked and asked[2] else size
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(end - start))
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.send_header("ETag", f'"{size:032x}"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            if is_read:
                with path.open("rb") as file:
                    file.seek(start)
                    self.wfile.write(file.read(end - start))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Films)
    connection.send(f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()


def print_films(results: Mapping[str, Any]) -> None:
    """Print a row for each film and place."""
    rows = [
        [f"{row['film']} ({row['codec']})", row["place"], f"{row['mib']:,.0f}"]
        + [f"{row[step][key]:.2f}" for step in ("opened", "sought") for key in ("seconds", "cpu_seconds")]
        for row in results["films"]
    ]
    load, settings = results["load_average"], results["settings"]
    title = (
        f"Films of {settings['minutes']} minutes, {settings['width']} pixels wide; load average {load['before']:.1f}"
        f" before, {load['after']:.1f} after"
    )
    columns = ("film", "from", "MiB", "opened at 3/4, s", "CPU s", "sought, s", "CPU s")
    Console(width=None if sys.stdout.isatty() else 120).print(table(title, columns, rows))
