"""Which tracks of a clip are one person."""

import sys

import numpy as np
import pytest

from pipeline.faces.same_person import MAX_DISTANCE, NUM_FACES, check_linking, faces_to_embed, joined
from pipeline.records.vocabulary import UsageError


def face(person, *, turned=0.0):
    """Embeddings of made persons: of two 0.9 apart, of one `turned` from its usual look."""
    found = np.zeros(128, np.float32)
    found[person] = 0.9 / np.sqrt(2)
    found[100] = turned
    return found


def linked(*shots, known=None):
    """Track -> person. shots: the persons in each shot, all in two frames of it; every one is a track."""
    tracks, frames, embeddings, number = [], [], {}, 0
    for shot, persons in enumerate(shots):
        for frame in (2 * shot, 2 * shot + 1):
            for place, person in enumerate(persons):
                if known is None or person in known:
                    embeddings[len(tracks)] = face(person, turned=0.05 * frame)
                tracks.append(number + place)
                frames.append(frame)
        number += len(persons)
    return joined(tracks, frames, embeddings)


def test_a_person_is_the_same_after_a_cut():
    assert linked([5], [3], [5], [3], [8], [5]) == {0: 0, 1: 1, 2: 0, 3: 1, 4: 2, 5: 0}


def test_persons_are_numbered_in_the_order_in_which_they_appear():
    assert linked([9, 2], [2, 9, 1]) == {0: 0, 1: 1, 2: 1, 3: 0, 4: 2}


def test_who_is_seen_together_is_not_one_person():
    """Twins, or a face and its mirror: also where each looks like somebody else's track."""
    assert linked([4, 4]) == {0: 0, 1: 1}
    persons = linked([4, 4], [4])
    assert persons[0] != persons[1]
    assert persons[2] in (persons[0], persons[1])


def test_a_track_without_an_embedding_is_a_person_of_its_own():
    assert linked([5], [3], [5], [3], known={5}) == {0: 0, 1: 1, 2: 0, 3: 2}
    assert linked([5], [5], known=set()) == {0: 0, 1: 1}
    assert joined([], [], {}) == {}
    assert joined([0], [0], {0: face(1)}) == {0: 0}


@pytest.mark.parametrize(("apart", "is_one"), [(MAX_DISTANCE - 0.01, True), (MAX_DISTANCE + 0.01, False)])
def test_the_distance_decides(apart, is_one):
    embeddings = {0: face(1), 1: face(1, turned=apart)}
    assert (joined([0, 1], [0, 9], embeddings)[1] == 0) is is_one


def test_the_mean_of_a_tracks_faces_counts():
    """One odd face among several does not split a person."""
    embeddings = {0: face(1), 1: face(1, turned=0.6), 2: face(1), 3: face(1), 4: face(1)}
    assert joined([0, 0, 0, 1, 1], [0, 1, 2, 9, 10], embeddings) == {0: 0, 1: 0}


def test_the_sharpest_faces_of_each_track_are_embedded():
    tracks = [0] * 8 + [1, 2, 2]
    sharpness = [0.1, 0.9, None, 0.8, 0.7, 0.6, 0.5, 0.1, None, 0.2, 0.2]
    assert faces_to_embed(tracks, sharpness) == [1, 3, 4, 5, 6, 8, 9, 10]
    assert NUM_FACES == 5


def test_a_missing_library_is_told_before_the_work(monkeypatch):
    check_linking()
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(UsageError, match=r"--link-persons needs sklearn.*: pip install scikit-learn.*\[persons\]"):
        check_linking()
