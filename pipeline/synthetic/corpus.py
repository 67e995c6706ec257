"""A small SYNTHETIC corpus in CAER's layout and form, for the demo and the tests: a seed comes in, a folder goes out.

Nothing in it shows how anybody felt. One real face (the astronaut Eileen Collins, a NASA photograph in the public
domain that scikit-image carries) is bent into a few expressions and set on drawn scenes. A label is a function of the
pair: class = (scene + shift of the expression) mod 7. Either stream alone therefore knows little, by
`single_stream_bounds`, while the two together decide the class: a model that does better uses both.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipeline.dataset.description import NAME as DESCRIPTION
from pipeline.dataset.description import DataDescription, description_bytes
from pipeline.records.faces import Box
from pipeline.records.vocabulary import EMOTIONS, SPLITS, UsageError
from pipeline.synthetic.scenes import HEIGHT, PAN_PX, SCENES, WIDTH, draw_scene

FPS = 20


NUM_FRAMES = 20


# Each bend is (x, y, dx, dy, sigma) in pixels of the photograph: the skin at (x, y) moves by (dx, dy), its
# neighbourhood follows as a Gaussian of width sigma. Mouth corners lie at (203, 140) and (244, 140), brows at y = 90.
EXPRESSIONS: dict[str, tuple[tuple[float, float, float, float, float], ...]] = {
    "smile": ((203, 140, -5, -7, 9), (244, 140, 5, -7, 9)),
    "frown": (
        (202, 141, 2, 15, 11),
        (246, 141, -2, 15, 11),
        (224, 148, 0, -5, 8),
        (212, 91, 0, -8, 8),
        (234, 93, 0, -8, 8),
    ),
    "open": (
        (203, 140, 9, 3, 8),
        (244, 140, -9, 3, 8),
        (224, 153, 0, 20, 14),
        (224, 178, 0, 12, 16),
        (202, 89, 0, -9, 9),
        (250, 92, 0, -9, 9),
    ),
}


SHIFTS = (0, 1, 3)  # of each expression; all differences distinct, so that no two expressions agree on a scene


# All that an expression or a person moves lies in FEATURES, (x_min, y_min, x_max, y_max) in pixels of the photograph; a
# box wider by what resizing spreads holds the whole expression, so that the masked context says nothing of it.
FEATURES = (174, 72, 274, 192)


SPREAD_PX = 4


_SPLIT_SEEDS = {split: number for number, split in enumerate(SPLITS, start=1)}


PORTRAIT = (148, 10, 308, 200)  # the head that is cut out of the photograph


BROKEN_PATH = "train/Neutral/9001.mp4"


FACELESS_PATH = "train/Neutral/9002.avi"


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeClip:
    """One file of the corpus: `path` relative to its folder; expression and scene are None where no face was set."""

    path: str
    split: str
    label: str
    expression: str | None = None
    scene: str | None = None


def label_of(expression: str, scene: str) -> str:
    """The class of a pair."""
    shift = SHIFTS[list(EXPRESSIONS).index(expression)]
    return EMOTIONS[(SCENES.index(scene) + shift) % len(EMOTIONS)]


def plan_corpus(*, clips_per_class: tuple[int, int, int]) -> list[MadeClip]:
    """Every file with a face that `make_corpus` writes, in order.

    clips_per_class: of train, validation and test; multiples of the number of expressions, so that every pair comes
    equally often and the bounds hold in each split. Raises ValueError if they are not.
    """
    clips = []
    for split, count in zip(SPLITS, clips_per_class, strict=True):
        if count < 0 or count % len(EXPRESSIONS):
            raise ValueError(f"{split}: {count} clips a class are no multiple of {len(EXPRESSIONS)}, the expressions")
        for label in EMOTIONS:
            pairs = [(e, s) for e in EXPRESSIONS for s in SCENES if label_of(e, s) == label]
            for number in range(count):
                expression, scene = pairs[number % len(pairs)]
                suffix = "avi" if number % 2 == 0 else "mp4"
                path = f"{split}/{label}/{number + 1:04d}.{suffix}"
                clips.append(MadeClip(path=path, split=split, label=label, expression=expression, scene=scene))
    return clips


def single_stream_bounds() -> tuple[float, float]:
    """The best top-1 accuracy of any model that sees (only the face, only the context); the pair gives 1.0."""
    pairs = [(e, s) for e in EXPRESSIONS for s in SCENES]
    best = []
    for stream in (0, 1):
        counts = Counter((pair[stream], label_of(*pair)) for pair in pairs)
        most = {value: max(n for (v, _), n in counts.items() if v == value) for value, _ in counts}
        best.append(sum(most.values()) / len(pairs))
    return best[0], best[1]


def make_corpus(
    folder: str | Path, *, clips_per_class: tuple[int, int, int] = (6, 3, 3), seed: int = 0
) -> list[MadeClip]:
    """Write `{train,validation,test}/<Class>/NNNN.avi|mp4` under `folder`, a broken file and one without a face.

    clips_per_class: of train, validation and test (see `plan_corpus`). 712x400 at 20 fps, 1 s: MPEG-4 as XVID in
    .avi, H.264 in .mp4. The same seed gives the same frames; each clip draws from a seed of its own, so that splits
    share no scene, place, size or tint. Returns what was written. Raises UsageError without scikit-image.
    """
    folder = Path(folder)
    clips = plan_corpus(clips_per_class=clips_per_class)
    portraits = _portraits()

    def make(index: int) -> None:
        clip = clips[index]
        rng = np.random.default_rng((seed, SPLITS.index(clip.split), index))
        assert clip.scene
        assert clip.expression
        _write_clip(folder / clip.path, _frames(rng, clip.scene, portraits[clip.expression]))

    # Pillow, NumPy and FFmpeg let go of the interpreter while they draw and encode.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(make, range(len(clips))))
    rng = np.random.default_rng((seed, len(SPLITS)))
    _write_clip(folder / FACELESS_PATH, _frames(rng, "meadow", None))
    # The index of an mp4 lies at its end: what a broken upload leaves cannot be opened.
    whole = next(clip for clip in clips if clip.path.endswith(".mp4"))
    (folder / BROKEN_PATH).write_bytes((folder / whole.path).read_bytes()[:20_000])
    return [*clips, *(MadeClip(path=path, split="train", label="Neutral") for path in (BROKEN_PATH, FACELESS_PATH))]


def mark_synthetic(folder: str | Path, *, name: str) -> None:
    """Write `dataset.json`, so that whatever is trained on the folder knows that no real people are in it."""
    (Path(folder) / DESCRIPTION).write_bytes(description_bytes(DataDescription(name=name, synthetic=True)))


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeFrame:
    """A frame of a made person in a made place. image: (400, 712, 3) uint8. person, place: unique over all splits."""

    image: np.ndarray
    box: Box
    label: str
    expression: str
    scene: str
    person: str
    place: str


def draw_frames(
    split: str, *, frames_per_pair: int, num_people: int, places_per_scene: int, seed: int = 0
) -> Iterator[MadeFrame]:
    """Single frames, every pair of expression and scene `frames_per_pair` times, in an order that tells nothing.

    People and places are drawn for the split alone: no other split has them. See `draw_frame`.
    """
    pairs = [(expression, scene) for expression in EXPRESSIONS for scene in SCENES] * frames_per_pair
    order = np.random.default_rng((seed, _SPLIT_SEEDS[split], 0)).permutation(len(pairs))
    for number, index in enumerate(order):
        yield draw_frame(
            number, pairs[index], split=split, num_people=num_people, places_per_scene=places_per_scene, seed=seed
        )


def draw_frame(
    number: int, pair: tuple[str, str], *, split: str, num_people: int, places_per_scene: int, seed: int = 0
) -> MadeFrame:
    """One frame of an expression in a scene; person, place, position, size, tint and grain follow from the number.

    A person is the one real face with its own shape, skin, hood and perhaps glasses; a place is a scene with its own
    layout and colours. The face's box shows nothing of the scene, and the frame without it nothing of the expression,
    so the bounds of `single_stream_bounds` hold. Raises UsageError without scikit-image.
    """
    expression, scene = pair
    root = (seed, _SPLIT_SEEDS[split])
    rng = np.random.default_rng((*root, 4, number))
    person, place = int(rng.integers(num_people)), int(rng.integers(places_per_scene))
    x, top, scale, pan = rng.uniform(170, WIDTH - 170), rng.uniform(8, 70), rng.uniform(1, 1.6), rng.integers(PAN_PX)
    image = _place((*root, 2, SCENES.index(scene), place), scene).crop((int(pan), 0, int(pan) + WIDTH, HEIGHT))
    portrait = _person((*root, 1, person))[expression]
    red, green, blue = (int(c) for c in np.random.default_rng((*root, 3, person)).integers(30, 200, 3))
    _set_person(image, portrait, x=x, top=top, scale=scale, colour=(red, green, blue))
    left, upper = round(x - 0.47 * round(portrait.width * scale)), round(top)
    x_min, y_min, x_max, y_max = FEATURES
    box = Box(
        left + int((x_min - SPREAD_PX - PORTRAIT[0]) * scale),
        upper + int((y_min - SPREAD_PX - PORTRAIT[1]) * scale),
        left + int((x_max + SPREAD_PX - PORTRAIT[0]) * scale) + 1,
        upper + int((y_max + SPREAD_PX - PORTRAIT[1]) * scale) + 1,
    )
    tint = rng.uniform(0.8, 1.15) * rng.uniform(0.93, 1.07, 3)
    levels = [int(min(value * channel, 255)) for channel in tint for value in range(256)]
    pixels = np.asarray(image.point(levels)) + rng.normal(0, 5, (HEIGHT, WIDTH, 1)).astype(np.int16)
    return MadeFrame(
        image=np.clip(pixels, 0, 255).astype(np.uint8),
        box=box,
        label=label_of(expression, scene),
        expression=expression,
        scene=scene,
        person=f"{split}-{person}",
        place=f"{split}-{scene}-{place}",
    )


@lru_cache(maxsize=256)
def _person(key: tuple[int, ...]) -> dict[str, Image.Image]:
    return _portraits(np.random.default_rng(key))


@lru_cache(maxsize=256)
def _place(key: tuple[int, ...], scene: str) -> Image.Image:
    return draw_scene(np.random.default_rng(key), scene)


def film_photo(folder: Path) -> None:
    """The photograph itself, real and of a smile, as two seconds of a film that moves in on it."""
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    photo = Image.fromarray(data.astronaut())
    boxes = ((step, step, 512 - step, 384 - step * 3 / 4) for step in range(2 * FPS))
    with av.open(str(folder / "eileen-collins.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = 512, 384, "yuv420p", 1
        for box in boxes:
            frame = photo.resize((512, 384), Image.Resampling.BILINEAR, box=box)
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))


def _portraits(person: np.random.Generator | None = None) -> dict[str, Image.Image]:
    """Each expression as an RGBA cut-out of the head, at the photograph's scale; of one made person, if drawn."""
    try:
        from skimage import data, transform
    except ModuleNotFoundError as error:
        raise UsageError(
            "the made corpus takes its face from scikit-image, which is not installed: pip install"
            " 'emotion-pipeline[demo]'"
        ) from error
    photo = data.astronaut()[:210, :320]  # the head, and what its bends reach
    mask = Image.new("L", photo.shape[1::-1], 0)
    draw = ImageDraw.Draw(mask)
    draw.ellipse((157, 19, 299, 140), fill=255)
    draw.ellipse((184, 60, 266, 194), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(2))
    shape: tuple[tuple[float, float, float, float, float], ...] = ()
    skin = np.ones(3)
    if person is not None:
        # Brows, cheeks, nose, chin: broad bends, which leave the narrow ones of an expression to be seen.
        spots = ((208, 100), (240, 100), (224, 120), (205, 130), (243, 130), (224, 170))
        shape = tuple((x, y, *person.normal(0, 3.5, 2), person.uniform(16, 24)) for x, y in spots)
        skin = person.uniform(0.55, 1.1) * person.uniform(0.88, 1.12, 3)
        if person.random() < 0.3:
            photo = _with_glasses(photo, colour=tuple(person.integers(0, 120, 3).tolist()))

    portraits = {}
    for expression, bends in EXPRESSIONS.items():

        def source(points: np.ndarray, bends: Any = bends) -> np.ndarray:
            if person is None:
                return _unbent(points, bends)
            return _unbent(_unbent(points, shape, within=FEATURES), bends, within=FEATURES)

        image = Image.fromarray(transform.warp(photo, source, preserve_range=True).astype(np.uint8))
        if expression == "open":
            inside = Image.new("L", image.size, 0)
            ImageDraw.Draw(inside).ellipse((211, 144, 237, 170), fill=255)
            image.paste((50, 12, 14), mask=inside.filter(ImageFilter.GaussianBlur(1.5)))
        if person is not None:
            image = image.point([int(min(value * gain, 255)) for gain in skin for value in range(256)])
        image.putalpha(mask)
        portraits[expression] = image.crop(PORTRAIT)
    return portraits


def _unbent(
    points: np.ndarray,
    bends: tuple[tuple[float, float, float, float, float], ...],
    *,
    within: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """Where in the photograph the skin at `points` (N, 2) came from; outside `within` nothing moves."""
    moved = points.copy()
    for x, y, dx, dy, sigma in bends:
        weight = np.exp(-((points[:, 0] - x - dx) ** 2 + (points[:, 1] - y - dy) ** 2) / (2 * sigma**2))
        moved -= weight[:, None] * (dx, dy)
    if within is not None:
        x_min, y_min, x_max, y_max = within
        # From nothing at the edge to all of it 12 px inside, so that no seam is seen.
        gap = np.minimum(
            np.minimum(points[:, 0] - x_min, x_max - points[:, 0]),
            np.minimum(points[:, 1] - y_min, y_max - points[:, 1]),
        )
        moved = points + (moved - points) * np.clip(gap / 12, 0, 1)[:, None]
    return moved


def _with_glasses(photo: np.ndarray, *, colour: tuple[int, ...]) -> np.ndarray:
    image = Image.fromarray(photo)
    draw = ImageDraw.Draw(image)
    for x in (209, 241):
        draw.ellipse((x - 13, 93, x + 13, 115), outline=colour, width=2)
    draw.line((221, 102, 229, 102), fill=colour, width=2)
    return np.asarray(image)


def _frames(rng: np.random.Generator, scene: str, portrait: Image.Image | None) -> list[np.ndarray]:
    """The clip's frames, (400, 712, 3) uint8: the camera pans, the head drifts and comes nearer, the grain changes."""

    def drift(low: float, high: float) -> np.ndarray:
        start, stop = rng.uniform(low, high, 2)
        return np.linspace(start, stop, NUM_FRAMES)

    background = draw_scene(rng, scene)
    levels = [int(min(value * channel, 255)) for channel in rng.uniform(0.95, 1.05, 3) for value in range(256)]
    grain = rng.normal(0, 4, (HEIGHT + 32, WIDTH + 32, 1)).astype(np.int16)
    x, top = drift(110, WIDTH - 110), rng.uniform(8, 70)
    scales = drift(1.0, 1.6)
    pans = drift(0, PAN_PX).astype(int)
    frames = []
    for number in range(NUM_FRAMES):
        image = background.crop((pans[number], 0, pans[number] + WIDTH, HEIGHT))
        if portrait is not None:
            _set_person(image, portrait, x=x[number], top=top, scale=scales[number])
        dx, dy = rng.integers(0, 32, 2)
        pixels = np.asarray(image.point(levels)) + grain[dy : dy + HEIGHT, dx : dx + WIDTH]
        frames.append(np.clip(pixels, 0, 255).astype(np.uint8))
    return frames


def _set_person(
    image: Image.Image,
    portrait: Image.Image,
    *,
    x: float,
    top: float,
    scale: float,
    colour: tuple[int, int, int] = (90, 90, 96),
) -> None:
    """Draw a person into the image: head centred on x, hair starting at `top`, at `scale` times the photograph."""
    head = portrait.resize((round(portrait.width * scale), round(portrait.height * scale)), Image.Resampling.BICUBIC)
    chin = top + 0.93 * head.height
    draw = ImageDraw.Draw(image)
    # The hood fills the corners of the face's box, through which the scene would show in the face crop.
    draw.ellipse((x - 88 * scale, top - 8 * scale, x + 88 * scale, top + 215 * scale), fill=colour)
    draw.ellipse((x - 130 * scale, chin, x + 130 * scale, chin + 300 * scale), fill=colour)
    draw.ellipse((x - 46 * scale, chin - 20 * scale, x + 46 * scale, chin + 26 * scale), fill=(20, 20, 24))
    image.paste(head, (round(x - 0.47 * head.width), round(top)), head)


def _write_clip(path: Path, frames: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    xvid = path.suffix == ".avi"
    with av.open(str(path), "w") as container:
        # The same seed gives the same bytes: x264's slower presets look ahead and differ from run to run here.
        options = {} if xvid else {"preset": "ultrafast", "crf": "20"}
        stream = container.add_stream("mpeg4" if xvid else "libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count = 1
        if xvid:
            stream.codec_context.codec_tag = "XVID"
            stream.bit_rate = 2_000_000
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
