"""A night's figures from the entries of its units, and what counts as a jump against the nights before."""

import json

import numpy as np
import pytest

from pipeline.ledger.snapshot import Snapshot
from pipeline.records.vocabulary import EMOTIONS
from pipeline.score.drift import drift, night_record, unit_facts

CALM = {"Neutral": 0.6, "Happy": 0.3, "Sad": 0.1}


def night(day, *, emotions=CALM, clips=200, **figures):
    figures = {"mean_entropy": 1.2, "face_rate": 0.9, "decode_integrity": 1.0, **figures}
    shares = dict.fromkeys(EMOTIONS, 0.0) | emotions
    return {"day": f"2026-11-{day:02d}", "labelled_clips": clips, "emotions": shares, **figures}


EARLIER = [night(day, mean_entropy=1.2 + 0.01 * (day % 2), face_rate=0.88 + 0.02 * (day % 2)) for day in range(1, 8)]


def outcome(*, frames, faceless, integrity, seconds):
    counts = {"num_frames": frames, "num_faceless_frames": faceless, "decode_integrity": integrity}
    return {"clip_id": "a", "path": "a.avi", "state": "done", **counts, "seconds": seconds}


def record_of(units):
    """The record of the only night in a ledger of units with these facts and outcomes."""
    entries = (
        {"unit": f"g000-u{number:06d}", "facts": facts, "shards": [], "outcomes": outcomes}
        for number, (facts, outcomes) in enumerate(units)
    )
    snapshot = Snapshot()
    snapshot.add_entries({entry["unit"]: json.dumps(entry).encode() for entry in entries})
    (figures,) = snapshot.database.rows("night_figures")
    return night_record(figures)


def test_a_nights_figures_are_those_worked_out_by_hand():
    shares = np.zeros((3, 7))
    shares[0, 3], shares[1, 3], shares[1, 4], shares[2, 4] = 1.0, 0.5, 0.5, 1.0
    one = [
        outcome(frames=8, faceless=0, integrity=1.0, seconds=1.0),
        outcome(frames=8, faceless=4, integrity=0.5, seconds=2.0),
        outcome(frames=4, faceless=1, integrity=None, seconds=0.5),
    ]
    other = [outcome(frames=0, faceless=0, integrity=None, seconds=0.25)]
    record = record_of(
        [
            (unit_facts(shares[:2], np.array([0.5, 1.0, 1.5]), day="2026-11-22"), one),
            (unit_facts(shares[2:], np.array([2.0]), day="2026-11-22"), other),
            ({"peak_child_memory_bytes": 5}, one),  # Of no night.
        ]
    )
    assert record["day"] == "2026-11-22"
    assert record["emotions"] == dict.fromkeys(EMOTIONS, 0.0) | {"Happy": 0.5, "Neutral": 0.5}
    assert (record["clips"], record["labelled_clips"], record["frames"], record["faces"]) == (4, 3, 20, 4)
    assert (record["mean_entropy"], record["face_rate"], record["decode_integrity"]) == (1.25, 0.75, 0.75)
    assert record["core_seconds"] == 3.75


def test_a_night_without_anything_has_no_figures():
    nothing = outcome(frames=0, faceless=0, integrity=None, seconds=0.0)
    record = record_of([(unit_facts(np.zeros((0, 7)), np.zeros(0), day="2026-11-22"), [nothing])])
    assert [record[name] for name in ("emotions", "mean_entropy", "face_rate", "decode_integrity")] == [None] * 4


def test_a_night_like_the_others_raises_nothing():
    found = drift(night(8), EARLIER)
    assert found["nights"] == 7
    assert found["warnings"] == []
    assert set(found["figures"]) == {"emotions", "mean_entropy", "face_rate", "decode_integrity"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"emotions": {"Neutral": 0.4, "Happy": 0.4, "Sad": 0.2}}, "the share of Neutral is 0.40, 0.60"),
        ({"mean_entropy": 1.5}, "mean_entropy is 1.500, 1.206"),
        ({"face_rate": 0.5}, "face_rate is 0.500, 0.891"),
        ({"decode_integrity": 0.95}, "decode_integrity is 0.950, 1.000"),
    ],
)
def test_a_figure_that_jumps_is_one_line(changes, told):
    [line] = drift(night(8, **changes), EARLIER)["warnings"]
    assert line.startswith(f"drift: {told} in 7 nights before")


def test_under_the_floor_nothing_jumps_however_steady_the_nights_were():
    assert drift(night(8, emotions={"Neutral": 0.46, "Happy": 0.44, "Sad": 0.1}), EARLIER)["warnings"] == []
    assert drift(night(8, decode_integrity=0.981, mean_entropy=1.35), EARLIER)["warnings"] == []


def test_what_always_varied_may_go_on_to():
    """Entropies of 1.0 and 1.4 in turn have a standard deviation of 0.2: 0.59 from their mean is no jump, 0.61 is."""
    unsteady = [night(day, mean_entropy=1.0 + 0.4 * (day % 2)) for day in range(1, 7)]
    assert drift(night(8, mean_entropy=1.79), unsteady)["warnings"] == []
    assert len(drift(night(8, mean_entropy=1.81), unsteady)["warnings"]) == 1
    assert drift(night(8, mean_entropy=1.81), unsteady)["figures"]["mean_entropy"]["limit"] == pytest.approx(0.6)


def test_few_nights_and_few_clips_are_not_compared():
    strange = {"emotions": {"Sad": 1.0}}
    assert drift(night(8, **strange), EARLIER[:2])["figures"] == {}
    assert drift(night(8, clips=29, **strange), EARLIER)["figures"] == {}
    small = [night(day, clips=29) for day in range(1, 6)]
    assert drift(night(8, **strange), [*small, *EARLIER[:2]])["nights"] == 2
