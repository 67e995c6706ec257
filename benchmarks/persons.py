"""Persons in real clips: parity and speed of the face embedding, persons linked over cuts, sharpness, pose and shots.

Who is who in the clips of `WHO` was labelled by eye: the clips were watched, and those in which one and the same person
is in front share a name. The folder is given by a flag; nothing of it is kept.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import dlib
import numpy as np
from PIL import Image
from rich.console import Console

from benchmarks.films_of_faces import Seen, chosen_threshold, linked_films
from benchmarks.films_of_shots import shots_found
from benchmarks.machine import machine
from benchmarks.tables import table
from benchmarks.timing import one_thread, seconds_of
from pipeline.faces.detector import build_detector
from pipeline.faces.embedding import WEIGHTS, FaceEmbedder
from pipeline.faces.landmarks import Landmarks, upright
from pipeline.faces.quality import sharpness_of
from pipeline.faces.same_person import MAX_DISTANCE
from pipeline.records.faces import Box
from pipeline.records.vocabulary import UsageError
from pipeline.report.values import NONE
from pipeline.runtime.console import log_status

# Clip -> the persons in front in it, from left to right.
WHO: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("asl_book.mkv", "asl_learn.mkv", "asl_walk.mkv"), ("woman in yellow",)),
    **dict.fromkeys(("asl_brother.mkv", "asl_help.mkv", "asl_student.mkv", "asl_yes.mkv"), ("man with a skull",)),
    **dict.fromkeys(("asl_night.mkv", "asl_sister.mkv"), ("man in black",)),
    "asl_please.mkv": ("man in grey",),
    "intel_head-pose-face-detection-female-and-male.gif": ("woman in black", "man in blue"),
    "intel_head-pose-face-detection-male.gif": ("man in blue",),
    "mpf_video_01.mp4": ("woman in white",),
    "pyfeat_single_face.mp4": ("man at a door",),
}
# Persons on which a threshold is chosen while it is told on the others, and the other way round.
HALF = ("woman in yellow", "man in blue", "man in grey", "woman in white")
MIN_FACE_PX = 40
TOLD_ANGLES = (10, 20)


@dataclass(frozen=True, kw_only=True)
class PersonsConfig:
    """Measures the face embedding, persons over cuts, sharpness, pose and shots on real clips."""

    study: str
    """persons."""
    clips: str
    """Local folder with the clips that the study names (see benchmarks/persons.py)."""
    output: str = "build/persons"
    """Local folder of persons.json."""
    frames: int = 8
    """Frames looked at in each clip, evenly spaced (count)."""
    films: int = 300
    """Films drawn from the faces, and a third of it from the pictures (count)."""
    rounds: int = 5
    """Times that each embedding is timed (count)."""
    seed: int = 0
    """Of what is drawn."""

    def __post_init__(self) -> None:
        if min(self.frames, self.films, self.rounds) < 1:
            raise ValueError("--frames, --films, --rounds: give 1 or more")


def persons(config: PersonsConfig) -> dict[str, Any]:
    """Measure all of it; writes persons.json and returns what it holds. Raises UsageError without any of the clips."""
    folder = Path(config.clips)
    names = [name for name in WHO if (folder / name).is_file()]
    if not names:
        raise UsageError(f"--clips {config.clips}: none of {', '.join(list(WHO)[:3])}, ... is there")
    with one_thread():
        clips = {name: _frames(folder / name) for name in names}
        log_status(f"{len(names)} clips, {sum(map(len, clips.values()))} frames; looking for faces")
        seen = [each for name in names for each in _faces(name, clips[name], num_frames=config.frames)]
        log_status(f"{len(seen)} faces; embedding them")
        embedding, seen = _embedded(seen, rounds=config.rounds)
        log_status("linking films of these faces")
        found = {
            "clips": names,
            "num_persons": len({each.person for each in seen}),
            "num_faces": len(seen),
            "embedding": embedding,
            "persons": _linked(seen, config),
            "quality": _quality(seen),
            "shots": shots_found(list(clips.values()), num_films=max(1, config.films // 3), seed=config.seed),
        }
    results = {"settings": asdict(config), "machine": machine(), **found}
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "persons.json").write_text(json.dumps(results, indent=1) + "\n")
    return results


def _frames(path: Path) -> list[np.ndarray]:
    """Every frame of a clip, (H, W, 3) uint8 RGB."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def _faces(name: str, frames: Sequence[np.ndarray], *, num_frames: int) -> list[Seen]:
    """The faces of a clip's persons in some of its frames: the largest, from left to right."""
    detector, landmarks = build_detector("dlib-cnn", precision="auto", upsample=1, device="cpu"), Landmarks()
    found = []
    for number in np.linspace(0, len(frames) - 1, min(num_frames, len(frames))).round().astype(int):
        image, who = frames[number], WHO[name]
        faces = [face.box for face in detector.detect_faces([image])[0] if face.box.short_side >= MIN_FACE_PX]
        largest = sorted(faces, key=lambda box: -box.area)[: len(who)]
        if len(largest) < len(who):
            continue
        for person, box in zip(who, sorted(largest), strict=True):
            shape = landmarks.shape(image, box)
            found.append(Seen(name, person, image, box, upright(image, shape), np.zeros(0), sharpness_of(image, box)))
    return found


def _embedded(seen: Sequence[Seen], *, rounds: int) -> tuple[dict[str, Any], list[Seen]]:
    """Our embeddings beside dlib's, and what a face costs either; the faces with ours. CPU milliseconds, one thread."""
    chips = [each.chip for each in seen]
    ours = FaceEmbedder()
    theirs = dlib.face_recognition_model_v1(str(WEIGHTS.find()))  # pyright: ignore[reportAttributeAccessIssue]
    found = ours.embed(chips)
    wanted = np.array([theirs.compute_face_descriptor(chip) for chip in chips])
    batch = (chips * 16)[:16]
    taken: dict[str, list[float]] = {"ours_of_16": [], "ours_alone": [], "dlib": []}
    for _ in range(rounds):  # in turn, so that what else the machine does meets all of them
        taken["ours_of_16"].append(seconds_of(partial(ours.embed, batch))[0] / 16)
        taken["ours_alone"].append(seconds_of(partial(ours.embed, batch[:1]))[0])
        taken["dlib"].append(seconds_of(partial(theirs.compute_face_descriptor, batch[0]))[0])
    ms = {name: 1000 * statistics.median(values) for name, values in taken.items()}
    told = {
        "num_faces": len(chips),
        "largest_difference": float(np.abs(found - wanted).max()),
        "ms": ms,
        "times_faster": ms["dlib"] / ms["ours_of_16"],
        "times_faster_alone": ms["dlib"] / ms["ours_alone"],
    }
    return told, [each._replace(embedding=own) for each, own in zip(seen, found, strict=True)]


def _linked(seen: Sequence[Seen], config: PersonsConfig) -> dict[str, Any]:
    """Films of all persons at the threshold that is shipped and at dlib's, and each half at that of the other."""
    halves = [[each for each in seen if (each.person in HALF) is wanted] for wanted in (True, False)]
    films = partial(linked_films, num_films=config.films, seed=config.seed)
    crossed, left_out = [], []
    for person in sorted({each.person for each in seen}):
        others = [each for each in seen if each.person != person]
        threshold = chosen_threshold(others, num_films=config.films, seed=config.seed)
        left_out.append({"person": person, "threshold": threshold, **films(seen, threshold=threshold, only=person)})
    for chosen_on, told_on in (halves, halves[::-1]):
        threshold = chosen_threshold(chosen_on, num_films=config.films, seed=config.seed)
        names = sorted({each.person for each in chosen_on}), sorted({each.person for each in told_on})
        told = films(told_on, threshold=threshold)
        crossed.append({"chosen_on": names[0], "told_on": names[1], "threshold": threshold, **told})
    return {
        "shipped": {"threshold": MAX_DISTANCE, **films(seen, threshold=MAX_DISTANCE)},
        "dlibs": {"threshold": 0.6, **films(seen, threshold=0.6)},
        "without": {"threshold": 0.0, **films(seen, threshold=1e-9)},
        "crossed": crossed,
        "left_out": left_out,
    }


def _quality(seen: Sequence[Seen]) -> dict[str, Any]:
    """How sharpness falls with blur, and how far pose says of a mirrored or turned face what it must."""
    landmarks = Landmarks()
    sharpness: dict[str, list[float]] = {"as it is": [], "averaged over 3 px": [], "over 7 px": []}
    yaw, roll = list[float](), list[float]()
    for each in seen:
        image, box = each.image, each.box
        sharpness["as it is"].append(each.sharpness)
        for name, px in (("averaged over 3 px", 3), ("over 7 px", 7)):
            sharpness[name].append(sharpness_of(_averaged(image, px), box))
        pose = landmarks.pose(image, box)
        width = image.shape[1]
        mirrored = Box(width - box.x_max, box.y_min, width - box.x_min, box.y_max)
        other = landmarks.pose(np.ascontiguousarray(image[:, ::-1]), mirrored)
        yaw.append(abs(pose.yaw + other.yaw))
        for angle in TOLD_ANGLES:
            centre = ((box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2)
            turned = Image.fromarray(image).rotate(-angle, Image.Resampling.BILINEAR, center=centre)
            roll.append(abs(landmarks.pose(np.asarray(turned), box).roll - pose.roll - angle))
    return {
        "sharpness": {name: _spread(values) for name, values in sharpness.items()},
        "yaw_of_the_mirrored": _spread(yaw),
        "roll_of_the_turned": _spread(roll),
    }


def _averaged(image: np.ndarray, px: int) -> np.ndarray:
    for axis in (0, 1):
        shifted = [np.roll(image.astype(np.float32), by, axis) for by in range(-(px // 2), px // 2 + 1)]
        image = np.mean(shifted, axis=0).round().astype(np.uint8)
    return image


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {name: float(np.quantile(values, share)) for name, share in (("5 %", 0.05), ("50 %", 0.5), ("95 %", 0.95))}


def print_persons(results: Mapping[str, Any]) -> None:
    """Print a table each part."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    own = results["embedding"]
    ms = own["ms"]
    rows = [
        ["largest difference from dlib's", f"{own['largest_difference']:.1e}"],
        ["ours, ms a face of a batch of 16", f"{ms['ours_of_16']:.2f}"],
        ["ours, ms a face alone", f"{ms['ours_alone']:.2f}"],
        ["dlib's own, ms a face", f"{ms['dlib']:.1f}"],
        ["times faster, of 16 and alone", f"{own['times_faster']:.1f}, {own['times_faster_alone']:.1f}"],
    ]
    console.print(table(f"Embedding of {own['num_faces']} faces, one thread, CPU time", ("", ""), rows))
    linked = results["persons"]
    named = {"at what is shipped": linked["shipped"], "at dlib's": linked["dlibs"], "not linked": linked["without"]}
    for each in linked["crossed"]:
        named[f"chosen on {each['chosen_on'][0]} and {len(each['chosen_on']) - 1} more, told on others"] = each
    named |= {f"{each['person']}, chosen on the others": each for each in linked["left_out"]}
    rows = [
        [
            *(name, f"{each['threshold']:.2f}", f"{each['same']:,}", f"{each['splits']:,}", f"{each['other']:,}"),
            *(f"{each['joins']:,}", f"{each['switches']:,} of {each['returns']:,}"),
        ]
        for name, each in named.items()
    ]
    columns = ("films", "threshold", "pairs of one person", "splits", "pairs of two", "joins", "switches")
    console.print(table(f"Persons of {results['settings']['films']} films of 12 shots", columns, rows))
    quality = results["quality"]
    spreads = {f"sharpness, {name}": each for name, each in quality["sharpness"].items()}
    spreads |= {"yaw of the mirrored face, off by": quality["yaw_of_the_mirrored"]}
    spreads |= {"roll of the turned face, off by": quality["roll_of_the_turned"]}
    rows = [[name, *(f"{value:.2f}" for value in each.values())] for name, each in spreads.items()]
    console.print(table("Sharpness and pose (degrees)", ("", "5 %", "50 %", "95 %"), rows))
    shots = results["shots"]
    rows = [
        [name, *(f"{each[part]:,}" for part in ("found", "missed", "wrong"))] for name, each in shots["finders"].items()
    ]
    kinds = shots["found_by_kind"]
    rows += [
        [f"found by {name}, {kind}", f"{own[name]:,}", f"{own['cuts'] - own[name]:,}", NONE]
        for kind, own in kinds.items()
        for name in shots["finders"]
    ]
    title = f"Shots of {shots['num_films']} films with {shots['num_cuts']:,} cuts"
    console.print(table(title, ("", "found", "missed", "that are none"), rows))
