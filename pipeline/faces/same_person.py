"""Tracks and embeddings of a clip's faces in, who is one person out: tracks joined over cuts. Pure.

A track is known by the mean embedding of a few of its sharpest faces. Tracks are joined by agglomerative clustering
with average linkage; two that are seen in one frame are two persons.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations, groupby

import numpy as np

from pipeline.records.vocabulary import UsageError

# Of 8 sampled frames of 18 real clips: means of 5 faces were at most 0.365 apart in clips of one person (11 pairs of
# clips that show 4 persons) and at least 0.450 between persons; of single faces 0.52 and 0.48.
NUM_FACES = 5
MAX_DISTANCE = 0.41
# Of two tracks that are seen together. Averaged over all pairs of two clusters it is still far.
_FAR = 1e6
# The distances of so many tracks take half a gigabyte; of more, those of the fewest faces stay as they are.
MAX_TRACKS = 8000


def check_linking() -> None:
    """Raise UsageError where tracks can't be joined for want of a library."""
    try:
        import sklearn.cluster  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--link-persons needs {error.name}: pip install scikit-learn, or this package with its extra [persons]"
        ) from None


def faces_to_embed(tracks: Sequence[int], sharpness: Sequence[float | None]) -> list[int]:
    """The places of the NUM_FACES sharpest faces of each track, ascending; of equal ones the first.

    tracks: of each face of a clip. sharpness: of each, None where it is not known.
    """
    own = defaultdict[int, list[int]](list)
    for place, track in enumerate(tracks):
        own[track].append(place)

    def order(place: int) -> tuple[float, int]:
        return -(sharpness[place] or 0.0), place

    return sorted(place for places in own.values() for place in sorted(places, key=order)[:NUM_FACES])


def joined(tracks: Sequence[int], frames: Sequence[int], embeddings: Mapping[int, np.ndarray]) -> dict[int, int]:
    """Track -> person, numbered from 0 in order of appearance.

    Args:
        tracks: of each face of a clip, in order of time. One of which no face is embedded is a person of its own.
        frames: the number of each face's frame.
        embeddings: place of a face in `tracks` -> its embedding.
    """
    sizes = Counter(tracks)
    parts = defaultdict[int, list[np.ndarray]](list)
    for place, embedding in embeddings.items():
        parts[tracks[place]].append(embedding)
    known = sorted(sorted(parts, key=lambda track: (-sizes[track], track))[:MAX_TRACKS])
    clusters = dict(zip(known, _clusters(known, parts, _seen_together(tracks, frames)), strict=True))
    persons: dict[int, int] = {}
    numbers: dict[tuple[bool, int], int] = {}
    for track in dict.fromkeys(tracks):
        key = (track in clusters, clusters.get(track, track))
        persons[track] = numbers.setdefault(key, len(numbers))
    return persons


def _seen_together(tracks: Sequence[int], frames: Sequence[int]) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    for _, group in groupby(zip(frames, tracks, strict=True), key=lambda each: each[0]):
        found.update(combinations(sorted({track for _, track in group}), 2))
    return found


def _clusters(
    known: Sequence[int], parts: Mapping[int, Sequence[np.ndarray]], apart: set[tuple[int, int]]
) -> Sequence[int]:
    """The cluster of each of these tracks."""
    if len(known) < 2:
        return list(range(len(known)))
    from sklearn.cluster import AgglomerativeClustering  # An extra.

    means = np.stack([np.mean(parts[track], axis=0, dtype=np.float64) for track in known])
    squares = (means**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * means @ means.T, 0))
    np.fill_diagonal(distances, 0)
    places = {track: place for place, track in enumerate(known)}
    for a, b in apart:
        if a in places and b in places:
            distances[places[a], places[b]] = distances[places[b], places[a]] = _FAR
    found = AgglomerativeClustering(
        n_clusters=None,  # pyright: ignore[reportArgumentType]
        metric="precomputed",
        linkage="average",
        distance_threshold=MAX_DISTANCE,
    )
    return found.fit_predict(distances).tolist()
