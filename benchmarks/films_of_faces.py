"""Films whose shots are faces of known persons, as their embeddings: how they are linked at a threshold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from pipeline.faces import same_person
from pipeline.records.faces import Box

NUM_SHOTS, FACES_A_SHOT = 12, 4
THRESHOLDS = tuple(round(0.26 + 0.02 * number, 2) for number in range(20))


class Seen(NamedTuple):
    """A face of a known person in a frame. chip: upright, 150 px. embedding: (128,), empty where it is not known."""

    clip: str
    person: str
    image: np.ndarray
    box: Box
    chip: np.ndarray
    embedding: np.ndarray
    sharpness: float


def linked_films(
    seen: Sequence[Seen], *, threshold: float, num_films: int, seed: int, only: str | None = None
) -> dict[str, Any]:
    """Films of NUM_SHOTS shots, each FACES_A_SHOT faces of one person in one clip, linked as score links them.

    only: count pairs and tracks of this person alone.

    Returns:
        same, other: pairs of tracks of one person and of two; splits: of `same`, those not linked; joins: of `other`,
        those linked; returns: tracks of a person who was seen before in the film; switches: those of them that got
        another number than the time before.
    """
    counts: dict[str, Any] = dict.fromkeys(("same", "other", "splits", "joins", "returns", "switches"), 0)
    for shots in _films(seen, num_films=num_films, seed=seed):
        tracks = [number for number, shot in enumerate(shots) for _ in shot]
        faces = [face for shot in shots for face in shot]
        with mock.patch.object(same_person, "MAX_DISTANCE", threshold):
            persons = same_person.joined(
                tracks, list(range(len(faces))), {place: face.embedding for place, face in enumerate(faces)}
            )
        who = [shot[0].person for shot in shots]
        for one, two in combinations(range(len(shots)), 2):
            if only not in (None, who[one], who[two]):
                continue
            is_one, is_linked = who[one] == who[two], persons[one] == persons[two]
            counts["same" if is_one else "other"] += 1
            counts["splits"] += is_one and not is_linked
            counts["joins"] += is_linked and not is_one
        last: dict[str, int] = {}
        for track, person in enumerate(who):
            if only in (None, person):
                counts["returns"] += person in last
                counts["switches"] += person in last and last[person] != persons[track]
            last[person] = persons[track]
    return counts


def chosen_threshold(seen: Sequence[Seen], *, num_films: int, seed: int) -> float:
    """The threshold with the fewest splits and joins; the middle of those that are equally good."""
    faults = []
    for threshold in THRESHOLDS:
        found = linked_films(seen, threshold=threshold, num_films=max(1, num_films // 5), seed=seed + 1)
        faults.append(found["splits"] + found["joins"])
    best = [threshold for threshold, count in zip(THRESHOLDS, faults, strict=True) if count == min(faults)]
    return best[len(best) // 2]


def _films(seen: Sequence[Seen], *, num_films: int, seed: int) -> Iterator[list[list[Seen]]]:
    random = np.random.default_rng(seed)
    sets: dict[tuple[str, str], list[Seen]] = defaultdict(list)
    for each in seen:
        sets[each.person, each.clip].append(each)
    clips_of: dict[str, list[list[Seen]]] = defaultdict(list)
    for (person, _), faces in sorted(sets.items()):
        clips_of[person].append(faces)
    names = sorted(clips_of)
    for _ in range(num_films):
        film = []
        for _ in range(NUM_SHOTS):
            of_person = clips_of[names[random.integers(len(names))]]
            faces = of_person[random.integers(len(of_person))]
            chosen = random.choice(len(faces), min(FACES_A_SHOT, len(faces)), replace=False)
            film.append([faces[place] for place in chosen])
        yield film
