"""Persons over time on drawn boxes, and every figure against one worked out by hand."""

import math

import numpy as np
import pytest

from pipeline.faces.persons import linked, numbered
from pipeline.records.clips import Clip
from pipeline.records.faces import Box, Example
from pipeline.records.outcomes import Outcome, State
from pipeline.records.vocabulary import EMOTIONS
from pipeline.score.labels import UnitLabels, predictions_of, track_labels_of
from pipeline.score.shots import joined_cuts, shots_of
from pipeline.score.tracks import ABSTAINED, STRAY, emotion_of, entropies, num_changes, summarised
from pipeline.video.frames import Cuts

STEP_SECONDS = 0.4


def faces_of(*frames, step=STEP_SECONDS):
    """Examples of frames that are lists of (x, y) or (x, y, px): the left upper corner and side of each face."""
    found = []
    for number, frame in enumerate(frames):
        for face_index, (x, y, *px) in enumerate(frame):
            side = px[0] if px else 100
            found.append(
                Example(
                    clip_id="a",
                    frame_index=number * 10,
                    pts_seconds=number * step,
                    face_index=face_index,
                    box=Box(x, y, x + side, y + side),
                    face_score=1.0,
                    frame_width=1000,
                    frame_height=500,
                    face_jpeg=b"",
                    context_jpeg=b"",
                )
            )
    return found


def test_one_person_who_moves_is_one_track():
    assert linked(faces_of([(100, 100)], [(170, 110)], [(240, 90)], [(250, 100)])) == [0, 0, 0, 0]


def test_no_face_is_no_track():
    assert linked([]) == []


def test_two_people_keep_their_numbers_whatever_the_order_of_their_faces():
    assert linked(faces_of([(100, 100), (600, 100)], [(590, 100), (110, 100)], [(120, 100), (580, 100)])) == [
        *(0, 1),
        *(1, 0),
        *(0, 1),
    ]


def test_two_people_who_cross_keep_their_numbers():
    frames = [[(100 + 60 * t, 100), (520 - 60 * t, 130)] for t in range(8)]
    assert linked(faces_of(*frames)) == [0, 1] * 8
    swapped = [frame[::-1] if t > 3 else frame for t, frame in enumerate(frames)]
    assert linked(faces_of(*swapped)) == [0, 1] * 4 + [1, 0] * 4


def test_a_person_hidden_behind_another_while_they_cross_is_found_again():
    frames = [[(100 + 60 * t, 100), (520 - 60 * t, 130)] for t in range(8)]
    frames[3], frames[4] = frames[3][:1], frames[4][:1]
    assert linked(faces_of(*frames)) == [0, 1, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 1]


def test_who_leaves_ends_and_who_comes_elsewhere_is_new():
    frames = [[(100, 100), (600, 100)], [(100, 100), (600, 100)], [(100, 100)], [(100, 100), (350, 300)]]
    assert linked(faces_of(*frames)) == [0, 1, 0, 1, 0, 0, 2]


def test_a_face_missed_in_two_frames_is_the_same_person_and_in_three_a_new_one():
    def away(num_frames):
        return faces_of([(100, 100), (600, 100)], *[[(600, 100)]] * num_frames, [(100, 100), (600, 100)])

    assert linked(away(2)) == [0, 1, 1, 1, 0, 1]
    assert linked(away(3)) == [0, 1, 1, 1, 1, 2, 1]


@pytest.mark.parametrize("cut", [11, 15, 20])
def test_a_cut_ends_a_track_though_the_next_face_is_at_its_place(cut):
    faces = faces_of(*[[(100, 100), (600, 100)]] * 4)
    assert linked(faces, cuts=[cut]) == [0, 1, 0, 1, 2, 3, 2, 3]
    assert linked(faces, cuts=[0]) == linked(faces, cuts=[31]) == [0, 1] * 4
    assert linked(faces, cuts=[5, 15, 25]) == list(range(8))


def test_a_cut_between_frames_without_faces_ends_tracks_too():
    faces = faces_of([(100, 100)], [], [(100, 100)])
    assert linked(faces) == [0, 0]
    assert linked(faces, cuts=[10]) == [0, 1]


def test_shots_cover_a_clip_and_those_of_segments_are_the_whole_clips():
    def seen(*cuts, start=0, end=100):
        times = tuple(0.5 + each / 10 for each in (start, *cuts, end))
        return Cuts(start_frame=start, start_seconds=times[0], end_seconds=times[-1], frames=cuts, times=times[1:-1])

    whole = shots_of(seen(30, 60, 80), clip_id="a", path="a.mp4")
    assert [(each.first_frame_index, each.begins_with_cut) for each in whole] == [
        (0, False),
        (30, True),
        (60, True),
        (80, True),
    ]
    assert [each.end_pts_seconds for each in whole[:-1]] == [each.start_pts_seconds for each in whole[1:]]
    assert sum(each.seconds for each in whole) == pytest.approx(10.0)
    parts = [seen(30, end=45), seen(start=45, end=60), seen(60, start=60, end=75), seen(80, start=75)]
    shots = [shot for part in parts for shot in shots_of(part, clip_id="a", path="a.mp4")]
    assert [shot.first_frame_index for shot in shots] == [0, 30, 45, 60, 75, 80]
    joined = joined_cuts(shots)
    assert joined is not None
    assert shots_of(joined, clip_id="a", path="a.mp4") == whole
    assert joined_cuts([]) is None


def test_in_a_dense_clip_a_second_counts_and_not_frames():
    frames = [[(100, 100), (600, 100)], *[[(600, 100)]] * 20, [(100, 100), (600, 100)]]
    assert linked(faces_of(*frames, step=0.04))[-2:] == [0, 1]


def test_between_frames_that_are_close_a_jump_is_somebody_else():
    near = faces_of([(100, 100)], [(210, 100)], step=0.04)
    assert linked(near) == [0, 1]
    assert linked(faces_of([(100, 100)], [(210, 100)], step=0.5)) == [0, 0]


def test_a_face_of_another_size_is_somebody_else():
    assert linked(faces_of([(100, 100, 200)], [(175, 175, 50)])) == [0, 1]


def test_equal_overlaps_go_to_the_older_track_then_to_the_earlier_face():
    assert linked(faces_of([(100, 100), (200, 100)], [(150, 100)])) == [0, 1, 0]
    assert linked(faces_of([(150, 100)], [(100, 100), (200, 100)])) == [0, 0, 1]


def row(**probabilities):
    """Seven probabilities: those named, the rest shared alike."""
    rest = (1 - sum(probabilities.values())) / (7 - len(probabilities))
    return [probabilities.get(emotion, rest) for emotion in EMOTIONS]


CALM, GLAD, TORN = row(Neutral=0.8), row(Happy=0.7, Neutral=0.2), row(Happy=0.4, Neutral=0.3)


def test_shares_agreement_and_mean_are_those_worked_out_by_hand():
    summary = summarised(np.array([CALM, CALM, GLAD, TORN]), abstain_below=0.0)
    assert dict(zip(EMOTIONS, summary.emotion_shares, strict=True)) == dict.fromkeys(EMOTIONS, 0.0) | {
        "Neutral": 0.5,
        "Happy": 0.5,
    }
    assert (summary.emotion, summary.reason) == ("Neutral", None)
    mean = dict(zip(EMOTIONS, summary.probabilities, strict=True))
    assert mean["Neutral"] == pytest.approx((0.8 + 0.8 + 0.2 + 0.3) / 4)
    assert mean["Happy"] == pytest.approx((0.2 / 6 * 2 + 0.7 + 0.4) / 4)
    assert summary.agreement == 0.5
    assert summary.mean_entropy == pytest.approx(np.mean([hand_entropy(p) for p in (CALM, CALM, GLAD, TORN)]))


def hand_entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities)


def test_entropy_runs_from_nothing_to_ln_7():
    assert entropies(np.array([[1, 0, 0, 0, 0, 0, 0], [1 / 7] * 7, [0.5, 0.5, 0, 0, 0, 0, 0]])) == pytest.approx(
        [0, math.log(7), math.log(2)]
    )


def test_what_is_not_sure_abstains_and_keeps_its_probabilities():
    summary = summarised(np.array([CALM, GLAD, TORN]), abstain_below=0.5)
    assert (summary.emotion, summary.reason) == (None, ABSTAINED)  # Neutral's mean is 0.43.
    assert sum(summary.emotion_shares) == pytest.approx(2 / 3)
    assert max(summary.probabilities) == pytest.approx(1.3 / 3)
    assert summary.agreement == pytest.approx(1 / 3)
    assert emotion_of(np.array(GLAD), abstain_below=0.7) == ("Happy", None)
    assert emotion_of(np.array(GLAD), abstain_below=0.71) == (None, ABSTAINED)


def test_changes_are_counted_along_a_track_and_abstaining_is_none():
    assert num_changes([]) == num_changes(["Sad"]) == num_changes([None, "Sad", None, "Sad"]) == 0
    assert num_changes(["Sad", "Happy", "Happy", "Sad"]) == 2
    assert num_changes(["Sad", None, "Happy"]) == 1


def test_valence_and_arousal_are_means_of_persons_and_clips_and_null_where_none_are_given():
    faces = faces_of([(100, 100), (600, 100)], [(100, 100), (600, 100)])
    affect = np.array([[0.5, 0.1], [-1, 0.3], [0.1, 0.3], [0, 0.5]], np.float32)
    clip = Clip(clip_id="a", path="a.mp4", url="/a.mp4", size_bytes=1, content_id="x")
    outcome = Outcome(clip_id="a", path="a.mp4", state=State.DONE, num_frames=2)

    def tables(given):
        labels = UnitLabels("ab" * 32, abstain_below=0.0, day="2026-11-22")
        labels.add(clip, outcome, faces, np.full((4, 7), 1 / 7, np.float32), affect=given)
        found = labels.tables()
        return {
            name: [(row["valence"], row["arousal"]) for row in found[name].to_pylist()]
            for name in ("frames", "tracks", "clips")
        }

    found = tables(affect)
    np.testing.assert_allclose(found["frames"], affect)
    np.testing.assert_allclose(found["tracks"], [[0.3, 0.2], [-0.5, 0.4]], atol=1e-6)
    np.testing.assert_allclose(found["clips"], [[-0.1, 0.3]], atol=1e-6)
    nothing = (None, None)
    assert tables(None) == {"frames": [nothing] * 4, "tracks": [nothing] * 2, "clips": [nothing]}
    affect[:, 1] = np.nan
    assert tables(affect)["clips"] == [(pytest.approx(-0.1), None)]


def test_two_persons_of_a_clip_have_a_row_each():
    examples = faces_of([(100, 100), (600, 100)], [(600, 100), (100, 100)], [(100, 100)])
    faces = predictions_of(examples, np.array([CALM, GLAD, GLAD, GLAD, CALM]), abstain_below=0.0)
    first, second = track_labels_of(faces, abstain_below=0.0)
    assert [face.track_index for face in faces] == [0, 1, 1, 0, 0]
    assert (first.num_faces, first.num_changes, first.emotion) == (3, 2, "Neutral")
    assert (first.first_pts_seconds, first.last_pts_seconds) == (0.0, 2 * STEP_SECONDS)
    assert (second.num_faces, second.num_changes, second.emotion, second.agreement) == (2, 0, "Happy", 1.0)
    assert second.last_pts_seconds == STEP_SECONDS
    assert second.mean_entropy == pytest.approx(hand_entropy(GLAD))


def test_a_face_seen_once_among_many_frames_is_no_person():
    assert numbered([0, 1, 2, 1], num_frames=8) == ([1, 0, 2, 0], 1)
    assert numbered([0, 1, 0, 1], num_frames=8) == ([0, 1, 0, 1], 2)
    assert numbered([0, 1], num_frames=4) == ([0, 1], 2)  # Too few frames to tell.
    assert numbered([], num_frames=8) == ([], 0)


def labelled(faces, *, num_frames, abstain_below=0.0):
    """The tables of a clip in which these faces show GLAD."""
    clip = Clip(clip_id="a", path="x/a.mp4", url="a", size_bytes=1, content_id="c")
    outcome = Outcome(clip_id="a", path="x/a.mp4", state=State.DONE, num_frames=num_frames, num_examples=len(faces))
    labels = UnitLabels("0123456789abcdef", abstain_below=abstain_below, day="2026-11-20")
    labels.add(clip, outcome, faces, np.array([GLAD] * len(faces), np.float32))
    return {name: table.to_pylist() for name, table in labels.tables().items()}


def test_a_stray_stays_among_the_faces_and_counts_nowhere_else():
    found = labelled(faces_of([(100, 100)], [(100, 100), (700, 300)], [(105, 100)]), num_frames=8)
    assert [(row["person"], row["track_index"], row["stray"]) for row in found["frames"]] == [
        *((1, 0, False), (1, 0, False)),
        *((None, 1, True), (1, 0, False)),
    ]
    (person,) = found["tracks"]
    (clip,) = found["clips"]
    assert (person["person"], person["num_faces"]) == (1, 3)
    assert (clip["num_faces"], clip["num_tracks"], clip["num_strays"], clip["emotion"]) == (4, 1, 1, "Happy")


def test_a_clip_of_nothing_but_strays_has_no_emotion():
    found = labelled(faces_of([(100, 100)], [(700, 300)]), num_frames=8)
    (clip,) = found["clips"]
    assert found["tracks"] == []
    assert (clip["emotion"], clip["reason"], clip["num_tracks"], clip["num_strays"]) == (None, STRAY, 0, 2)


def test_rows_say_whose_they_are_and_hold_flat_probabilities():
    found = labelled(faces_of([(100, 100)], [(100, 100)]), num_frames=2)
    for row in (row for rows in found.values() for row in rows):
        assert (row["path"], row["model"]) == ("x/a.mp4", "0123456789ab")
        assert [row[f"p_{name}"] for name in EMOTIONS] == list(row["probabilities"].values())
