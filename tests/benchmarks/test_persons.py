"""The study of persons: films of known persons are counted as they are linked, and cuts as they are found."""

import numpy as np
import pytest

from benchmarks.films_of_faces import FACES_A_SHOT, NUM_SHOTS, Seen, chosen_threshold, linked_films
from benchmarks.films_of_shots import shots_found
from benchmarks.persons import PersonsConfig, persons
from pipeline.records.faces import Box
from pipeline.records.vocabulary import UsageError

PICTURE = np.zeros((2, 2, 3), np.uint8)


def seen(spread: float) -> list[Seen]:
    """Three persons one apart, each in two clips; faces of one person are about `spread` apart."""
    random, found = np.random.default_rng(0), []
    for number, person in enumerate(("anna", "ben", "eva")):
        for clip in ("one", "two"):
            for _ in range(6):
                embedding = np.zeros(128)
                embedding[number] = 0.7
                embedding[3:] = random.normal(0, spread / 16, 125)
                found.append(Seen(clip, person, PICTURE, Box(0, 0, 1, 1), PICTURE, embedding, 1.0))
    return found


def test_films_of_persons_are_counted_as_they_are_linked():
    faces = seen(0.2)
    found = linked_films(faces, threshold=0.5, num_films=10, seed=0)
    assert found["same"] + found["other"] == 10 * NUM_SHOTS * (NUM_SHOTS - 1) // 2
    assert found["splits"] == found["joins"] == found["switches"] == 0
    apart = linked_films(faces, threshold=1e-9, num_films=10, seed=0)
    assert apart["joins"] == 0
    assert apart["splits"] > 0.9 * apart["same"]  # the same faces may be drawn twice
    assert apart["returns"] >= apart["switches"] > 50
    alike = linked_films(faces, threshold=3.0, num_films=10, seed=0)
    assert (alike["splits"], alike["joins"]) == (0, alike["other"])
    anna = linked_films(faces, threshold=3.0, num_films=10, seed=0, only="anna")
    assert 0 < anna["joins"] == anna["other"] < alike["other"]
    assert FACES_A_SHOT <= 6


def test_a_threshold_is_chosen_between_persons():
    assert 0.3 < chosen_threshold(seen(0.2), num_films=20, seed=0) < 0.95


@pytest.mark.lengthy
def test_cuts_of_made_films_are_counted():
    random = np.random.default_rng(1)
    clips = [
        [np.clip(picture.astype(int) + random.integers(-3, 4), 0, 255).astype(np.uint8) for _ in range(60)]
        for picture in (random.integers(0, 256, (36, 64, 3), np.uint8) for _ in range(3))
    ]
    found = shots_found(clips, num_films=4, seed=0)
    ours = found["finders"]["ours"]
    assert ours["found"] + ours["missed"] == found["num_cuts"]
    assert ours["found"] > 0.7 * found["num_cuts"]
    assert ours["wrong"] <= 2


def test_a_folder_without_the_clips_is_told(tmp_path):
    with pytest.raises(UsageError, match="none of asl_book"):
        persons(PersonsConfig(study="persons", clips=str(tmp_path)))
