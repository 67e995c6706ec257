"""Drawn scenes."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 712, 400  # CAER's frame, pixels


PAN_PX = 200  # the camera pans within a scene that is this much wider than the frame


WIDE = WIDTH + PAN_PX


SCENES = ("meadow", "city", "beach", "room", "winter", "sunset", "office")


def draw_scene(rng: np.random.Generator, scene: str) -> Image.Image:
    """A drawn background; colours, places and counts vary, the kind stays plain to the eye."""

    def colour(red: int, green: int, blue: int) -> tuple[int, int, int]:
        r, g, b = (int(c) for c in np.clip(np.array((red, green, blue)) + rng.normal(0, 8, 3), 0, 255))
        return r, g, b

    def at(low: float, high: float) -> int:
        return int(rng.uniform(low, high))

    image = Image.new("RGB", (WIDE, HEIGHT))
    draw = ImageDraw.Draw(image)
    horizon = at(190, 260)

    def halves(above: tuple[int, int, int], below: tuple[int, int, int]) -> None:
        draw.rectangle((0, 0, WIDE, horizon), fill=above)
        draw.rectangle((0, horizon, WIDE, HEIGHT), fill=below)

    if scene == "meadow":
        halves(colour(120, 180, 240), colour(70, 150, 50))
        for _ in range(at(40, 80)):
            px, py = at(0, WIDE), at(horizon, HEIGHT)
            draw.ellipse((px, py, px + 8, py + 8), fill=colour(240, 220, 60))
    elif scene == "city":
        halves(colour(15, 15, 40), colour(30, 30, 35))
        for px in range(at(-40, 0), WIDE, 75):
            roof = at(40, 150)
            draw.rectangle((px, roof, px + 62, HEIGHT), fill=colour(45, 45, 60))
            for wx in range(px + 8, px + 54, 16):
                for wy in range(roof + 10, HEIGHT, 24):
                    if rng.random() < 0.6:
                        draw.rectangle((wx, wy, wx + 8, wy + 12), fill=colour(250, 220, 110))
    elif scene == "beach":
        halves(colour(60, 200, 210), colour(235, 205, 140))
        for _ in range(at(6, 12)):
            px, py = at(0, WIDE), at(horizon - 60, horizon)
            draw.arc((px, py, px + 120, py + 20), 180, 360, fill=colour(240, 250, 250), width=4)
    elif scene == "room":
        draw.rectangle((0, 0, WIDE, HEIGHT), fill=colour(170, 60, 70))
        stripe = colour(215, 120, 110)
        for px in range(at(-30, 0), WIDE, 44):
            draw.rectangle((px, 0, px + 18, HEIGHT), fill=stripe)
    elif scene == "winter":
        halves(colour(190, 200, 215), colour(240, 243, 248))
        for _ in range(at(6, 11)):
            px, base = at(0, WIDE), at(horizon - 20, horizon + 60)
            draw.polygon(((px, base - 150), (px - 45, base), (px + 45, base)), fill=colour(40, 80, 75))
    elif scene == "sunset":
        halves(colour(245, 130, 30), colour(50, 20, 25))
        px = at(60, WIDE - 60)
        draw.ellipse((px - 50, horizon - 80, px + 50, horizon + 20), fill=colour(255, 235, 120))
        draw.rectangle((0, horizon, WIDE, HEIGHT), fill=colour(60, 25, 30))
    else:
        draw.rectangle((0, 0, WIDE, HEIGHT), fill=colour(150, 140, 200))
        for py in range(at(0, 40), HEIGHT, 70):
            draw.rectangle((0, py, WIDE, py + 8), fill=colour(90, 70, 150))
            for px in range(at(0, 20), WIDE, 28):
                draw.rectangle((px, py - at(20, 50), px + 20, py), fill=colour(at(60, 220), 90, 190))
    return image
