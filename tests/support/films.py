"""Films of noise, which no codec makes small: large files that are made in a moment."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 320, 240


def draw_film(path: Path, codec: str, *, seconds: int, fps: int = 25, key_every: int = 20) -> Path:
    """A video without sound of some 0.4 MiB a second at 3 Mbit/s."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(8)]
    frames = [av.VideoFrame.from_ndarray(image, format="rgb24") for image in images]
    with av.open(str(path), "w") as writer:
        options = {"g": str(key_every)} | ({"preset": "ultrafast"} if codec == "libx264" else {})
        stream = writer.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.bit_rate = WIDTH, HEIGHT, 3_000_000
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(seconds * fps):
            frame = frames[number % len(frames)]
            frame.pts = number
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode())
    return path
