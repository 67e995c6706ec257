"""Drawn frames come in, a preprocessed corpus goes out: shards, ledger and manifest as jobs/preprocess.py leaves them.

Without video and without a detector: the boxes are known, which makes thousands of examples in a minute.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from pipeline.faces.crops import crop_face, encode_image, make_context
from pipeline.ledger.audit import audit
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.planning import plan_clips
from pipeline.records.clips import Clip, clip_table
from pipeline.records.columns import table_of
from pipeline.records.faces import EXAMPLE_SCHEMA, Example
from pipeline.records.outcomes import Outcome, State
from pipeline.records.vocabulary import SPLITS
from pipeline.synthetic.corpus import EXPRESSIONS, MadeCorpus, MadeFrame, draw_frames
from pipeline.synthetic.scenes import SCENES

NUM_PAIRS = len(EXPRESSIONS) * len(SCENES)
ROWS_PER_SHARD = 512


def write_made_examples(
    output: str,
    *,
    frames_per_pair: Mapping[str, int],
    num_people: int,
    places_per_scene: int,
    px: int,
    seed: int,
    corpus: MadeCorpus = "scenes",
) -> str:
    """A corpus of `draw_frames`, each frame a clip of its own; the manifest's sha256. What is there is kept.

    frames_per_pair, by split: examples are 21 times that. num_people, places_per_scene: of each split, all its own.
    px: side of the stored faces and contexts. corpus: see `draw_frames`. UsageError where `output` holds another.
    """
    config = {
        "made": {"frames_per_pair": dict(frames_per_pair), "num_people": num_people, "places": places_per_scene},
        "seed": seed,
        "face_px": px,
        "context_px": px,
        "box_margin": 0.0,
        "image_format": "jpeg",
    }
    if corpus != "scenes":
        config["corpus"] = corpus
    clips = [_clip(split, number) for split in SPLITS for number in range(frames_per_pair[split] * NUM_PAIRS)]
    ledger = Ledger(output)
    with ledger.lock():
        options = {"kind": "examples", "config": config, "versions": {}, "clips_per_shard": ROWS_PER_SHARD}
        snapshot, _ = plan_clips(ledger, clip_table(clips), **options)
        pending = list(snapshot.pending())
        for split in SPLITS if pending else ():
            made = draw_frames(
                split,
                frames_per_pair=frames_per_pair[split],
                num_people=num_people,
                places_per_scene=places_per_scene,
                seed=seed,
                corpus=corpus,
            )
            examples = {}
            for number, frame in enumerate(made):
                examples[_clip(split, number).clip_id] = made_example(frame, split=split, number=number, px=px)
            for unit in pending:
                if unit.split == split:
                    rows = [examples[clip.clip_id] for clip in unit.clips]
                    outcomes = [
                        Outcome(clip_id=clip.clip_id, path=clip.path, state=State.DONE, num_frames=1, num_examples=1)
                        for clip in unit.clips
                    ]
                    table = table_of(rows, EXAMPLE_SCHEMA)
                    ledger.commit(unit, tables={"examples": table}, outcomes=outcomes, facts={})
        ledger.refresh(snapshot)
        ledger.store_listing(snapshot)
        ledger.finish(snapshot, audit(snapshot), input_description="SYNTHETIC: drawn people in drawn places")
    return hashlib.sha256(ledger.storage.read("manifest.json")).hexdigest()


def _clip(split: str, number: int) -> Clip:
    path = f"{split}/{number:06d}"
    clip_id = hashlib.sha256(json.dumps(["made", path]).encode()).hexdigest()[:20]
    return Clip(clip_id=clip_id, path=path, url=f"made:{path}", size_bytes=0, content_id="made", split=split)


def made_example(frame: MadeFrame, *, split: str, number: int, px: int) -> Example:
    """A drawn frame as preprocessing would have left it. px: side of face and context."""
    height, width = frame.image.shape[:2]
    return Example(
        clip_id=_clip(split, number).clip_id,
        frame_index=0,
        pts_seconds=0.0,
        face_index=0,
        box=frame.box,
        face_score=0.0,
        frame_width=width,
        frame_height=height,
        face_jpeg=encode_image(crop_face(frame.image, frame.box, face_px=px)),
        context_jpeg=encode_image(make_context(frame.image, frame.box, context_px=px)),
        label=frame.label,
        split=split,
    )
