"""Labels of drawn clips, committed by the real ledger: what jobs/score.py leaves, without a network or Ray.

Each clip is a dark frame with a bright square for each person, whose box the labels hold exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from pipeline.corpus.read import read_corpus
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.planning import plan_clips
from pipeline.records.faces import Box, Example
from pipeline.records.outcomes import Outcome, State
from pipeline.records.vocabulary import EMOTIONS
from pipeline.score.labels import UnitLabels
from pipeline.video.frames import MAX_PACKETS, MAX_PIXELS, Cuts
from pipeline.video.index import index_of

WIDTH, HEIGHT, FPS = 320, 240, 25
SHA256 = "0123456789ab" + "c" * 52
DAY = "2026-11-20"
COLOURS = ((255, 255, 255), (255, 255, 0))


@dataclass(frozen=True)
class MadeClip:
    """num_frames at 25 a second, of which every `every` from `first` on is sampled. emotions: of each person, changing
    half way. cut: the frame at which its labels have a second shot begin."""

    path: str
    codec: str = "mpeg4"
    num_frames: int = 50
    every: int = 5
    first: int = 0
    emotions: tuple[tuple[str, str], ...] = (("Happy", "Sad"),)
    sureness: float = 0.8
    has_sound: bool = False
    cut: int | None = None


CLIPS = [
    MadeClip("show/one.avi", codec="mpeg4", emotions=(("Happy", "Sad"), ("Anger", "Anger"))),
    MadeClip("show/two.mp4", codec="libx264", sureness=0.4, has_sound=True),
    MadeClip("other/three.mp4", codec="libx264", emotions=(("Fear", "Neutral"),), sureness=0.6),
    MadeClip("other/nobody.mp4", codec="libx264", emotions=()),
    MadeClip("other/broken.mp4", codec=""),
]


def box_at(person: int, frame_index: int) -> Box:
    """The square of a person moves 2 pixels a frame to the right, the second below the first."""
    x, y = 20 + 2 * (frame_index % 110), 30 + 110 * person
    return Box(x, y, x + 60, y + 60)


def draw_clip(folder: Path, clip: MadeClip) -> None:
    """Encode the clip as a video file, with a tone where it has sound."""
    target = folder / clip.path
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(target), "w") as writer:
        stream = writer.add_stream(clip.codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 2_000_000
        sound = writer.add_stream("aac", rate=48_000, layout="mono") if clip.has_sound else None
        for number in range(clip.num_frames):
            image = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
            for person in range(len(clip.emotions)):
                box = box_at(person, number)
                image[box.y_min : box.y_max, box.x_min : box.x_max] = COLOURS[person]
            writer.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        writer.mux(stream.encode())
        if sound is not None:
            num_samples = 48_000 * clip.num_frames // FPS
            wave = (8000 * np.sin(np.arange(num_samples) / 48_000 * 2 * np.pi * 440)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48_000, 0
            writer.mux(sound.encode(frame))
            writer.mux(sound.encode())


def times_of(path: Path) -> np.ndarray:
    """The times of a video's frames in its own timeline, seconds (N,)."""
    with path.open("rb") as file:
        return index_of(file, max_pixels=MAX_PIXELS, max_packets=MAX_PACKETS).seconds


def predicted(
    clip: MadeClip, clip_id: str, times: np.ndarray, classes: tuple[str, ...] = EMOTIONS
) -> tuple[list[Example], np.ndarray]:
    """The faces of the sampled frames and the probabilities that the model is made to give them."""
    faces, rows = [], []
    for frame_index in range(clip.first, clip.num_frames, clip.every):
        for person, (before, after) in enumerate(clip.emotions):
            emotion = before if frame_index < clip.num_frames / 2 else after
            row = np.full(len(classes), (1 - clip.sureness) / (len(classes) - 1), np.float32)
            row[classes.index(emotion)] = clip.sureness
            rows.append(row)
            faces.append(
                Example(
                    clip_id=clip_id,
                    frame_index=frame_index,
                    pts_seconds=float(times[frame_index]) if frame_index < len(times) else frame_index / FPS,
                    face_index=person,
                    box=box_at(person, frame_index),
                    face_score=1.0,
                    frame_width=WIDTH,
                    frame_height=HEIGHT,
                    face_jpeg=b"",
                    context_jpeg=b"",
                )
            )
    return faces, np.array(rows).reshape(-1, len(classes))


def make_labels(
    videos: Path,
    output: Path,
    clips: list[MadeClip],
    *,
    day: str = DAY,
    sha256: str = SHA256,
    draw: bool = True,
    classes: tuple[str, ...] = EMOTIONS,
    abstain_below: float = 0.0,
) -> Path:
    """Draw the clips into `videos` and commit their labels to `output`; the model's folder. A clip without persons
    has no face, and one of codec "" is quarantined."""
    by_path = {clip.path: clip for clip in clips}
    for clip in clips:
        if not clip.codec:
            (videos / clip.path).parent.mkdir(parents=True, exist_ok=True)
            (videos / clip.path).write_bytes(b"no video")
        elif draw:
            draw_clip(videos, clip)
    ledger = Ledger(f"{output}/model={sha256[:12]}")
    snapshot, _ = plan_clips(
        ledger,
        read_corpus(str(videos), split_fractions=None).table,
        kind="labels",
        config={"checkpoint_sha256": sha256, "box_margin": 0.0, "sample_fps": 5.0}
        | ({} if classes == EMOTIONS else {"classes": list(classes)})
        | ({"abstain_below": abstain_below} if abstain_below else {}),
        versions={},
        clips_per_shard=2,
    )
    for unit in snapshot.pending().of("compute"):
        rows, outcomes = UnitLabels(sha256, abstain_below=abstain_below, day=day, classes=classes), []
        for each in unit.clips:
            clip = by_path[each.path]
            faces, probabilities, cuts = [], np.zeros((0, len(classes))), None
            if clip.codec:
                times = times_of(videos / each.path)
                faces, probabilities = predicted(clip, each.clip_id, times, classes)
                if clip.cut is not None:
                    frames, places = (clip.cut,), (float(times[clip.cut]),)
                    start, end = float(times[0]), float(times[-1]) + 1 / FPS
                    cuts = Cuts(start_frame=0, start_seconds=start, end_seconds=end, frames=frames, times=places)
            state = State.DONE if faces else State.NO_FACE if clip.codec else State.QUARANTINED
            reason = {State.NO_FACE: "no_face_found", State.QUARANTINED: "not_a_video"}.get(state)
            counts = {"num_frames": len(faces), "num_examples": len(faces)}
            outcome = Outcome(clip_id=each.clip_id, path=each.path, state=state, reason=reason, stage="x", **counts)
            rows.add(each, outcome, faces, probabilities, cuts=cuts)
            outcomes.append(outcome)
        ledger.commit(unit, tables=rows.tables(), outcomes=outcomes, facts=rows.night_facts(), partition=f"day={day}")
    return Path(ledger.storage.url)
