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
from typing import Literal

import av
import numpy as np
from PIL import Image

from pipeline.dataset.description import NAME as DESCRIPTION
from pipeline.dataset.description import DataDescription, description_bytes
from pipeline.records.faces import Box
from pipeline.records.vocabulary import EMOTIONS, SPLITS
from pipeline.synthetic.cues import NEAR, Cues, draw_cues, hang_signs, light_face
from pipeline.synthetic.portraits import EXPRESSIONS, FEATURES, PORTRAIT, SPREAD_PX, draw_portraits, set_person
from pipeline.synthetic.scenes import HEIGHT, PAN_PX, SCENES, WIDTH, draw_scene

MadeCorpus = Literal["scenes", "cues"]  # what decides the class: expression and scene, or light and signs


FPS = 20


NUM_FRAMES = 20


SHIFTS = (0, 1, 3)  # of each expression; all differences distinct, so that no two expressions agree on a scene


_SPLIT_SEEDS = {split: number for number, split in enumerate(SPLITS, start=1)}


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
    portraits = draw_portraits()

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
    cues: Cues | None = None


def draw_frames(
    split: str,
    *,
    frames_per_pair: int,
    num_people: int,
    places_per_scene: int,
    seed: int = 0,
    corpus: MadeCorpus = "scenes",
) -> Iterator[MadeFrame]:
    """Single frames, every pair of expression and scene `frames_per_pair` times, in an order that tells nothing.

    People and places are drawn for the split alone: no other split has them. corpus "cues": as many frames, of the cues
    of `draw_cues`, with expressions and scenes that are drawn and say nothing. See `draw_frame`.
    """
    pairs = [(expression, scene) for expression in EXPRESSIONS for scene in SCENES] * frames_per_pair
    order = np.random.default_rng((seed, _SPLIT_SEEDS[split], 0)).permutation(len(pairs))
    for number, index in enumerate(order):
        pair, cues = pairs[index], None
        if corpus == "cues":
            rng = np.random.default_rng((seed, _SPLIT_SEEDS[split], 5, number))
            cues = draw_cues(int(index), rng)
            pair = pairs[rng.integers(len(pairs))]
        yield draw_frame(
            number,
            pair,
            split=split,
            num_people=num_people,
            places_per_scene=places_per_scene,
            seed=seed,
            cues=cues,
        )


def draw_frame(
    number: int,
    pair: tuple[str, str],
    *,
    split: str,
    num_people: int,
    places_per_scene: int,
    seed: int = 0,
    cues: Cues | None = None,
) -> MadeFrame:
    """One frame of an expression in a scene; person, place, position, size, tint and grain follow from the number.

    A person is the one real face with its own shape, skin, hood and perhaps glasses; a place is a scene with its own
    layout and colours. The face's box shows nothing of the scene, and the frame without it nothing of the expression,
    so the bounds of `single_stream_bounds` hold. cues: light on the face and signs in the scene, which then decide the
    class, with the bounds of `cue_bounds`. Raises UsageError without scikit-image.
    """
    expression, scene = pair
    root = (seed, _SPLIT_SEEDS[split])
    rng = np.random.default_rng((*root, 4, number))
    person, place = int(rng.integers(num_people)), int(rng.integers(places_per_scene))
    x, top, scale, pan = rng.uniform(170, WIDTH - 170), rng.uniform(8, 70), rng.uniform(1, 1.6), rng.integers(PAN_PX)
    image = _place((*root, 2, SCENES.index(scene), place), scene).crop((int(pan), 0, int(pan) + WIDTH, HEIGHT))
    portrait = _person((*root, 1, person))[expression]
    if cues is not None:
        portrait, x = light_face(portrait, cues.lit), WIDTH / 2 + NEAR * (x - WIDTH / 2)
    red, green, blue = (int(c) for c in np.random.default_rng((*root, 3, person)).integers(30, 200, 3))
    set_person(image, portrait, x=x, top=top, scale=scale, colour=(red, green, blue))
    if cues is not None:
        hang_signs(image, cues, np.random.default_rng((*root, 6, number)))
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
        label=label_of(expression, scene) if cues is None else cues.label,
        expression=expression,
        scene=scene,
        cues=cues,
        person=f"{split}-{person}",
        place=f"{split}-{scene}-{place}",
    )


@lru_cache(maxsize=256)
def _person(key: tuple[int, ...]) -> dict[str, Image.Image]:
    return draw_portraits(np.random.default_rng(key))


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
            set_person(image, portrait, x=x[number], top=top, scale=scales[number])
        dx, dy = rng.integers(0, 32, 2)
        pixels = np.asarray(image.point(levels)) + grain[dy : dy + HEIGHT, dx : dx + WIDTH]
        frames.append(np.clip(pixels, 0, 255).astype(np.uint8))
    return frames


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
