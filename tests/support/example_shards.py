"""Small preprocessed corpora for tests: a seed comes in, shards of drawn examples with their manifest go out."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.faces.crops import encode_image, make_context
from pipeline.records.columns import table_of
from pipeline.records.faces import EXAMPLE_SCHEMA, Box, Example
from pipeline.records.vocabulary import EMOTIONS

PX = 32


def drawn_example(
    number: int,
    *,
    label: str | None,
    split: str | None,
    px: int = PX,
    noise: int = 20,
    classes: Sequence[str] = EMOTIONS,
) -> Example:
    """A face whose grey level tells the class, in a frame of noise: learnable in a few steps."""
    random = np.random.default_rng([number, hash_of(str(split))])
    grey = 16 + 252 // len(classes) * classes.index(label or "Neutral")
    face = np.clip(grey + random.integers(-noise, noise + 1, (px, px, 3)), 0, 255).astype(np.uint8)
    frame = random.integers(30, 226, (48, 64, 3), dtype=np.uint8)
    x_min, y_min = int(random.integers(0, 40)), int(random.integers(0, 24))
    box = Box(x_min, y_min, x_min + 22, y_min + 22)
    return Example(
        clip_id=f"{split}-{number:04d}",
        frame_index=number,
        pts_seconds=number / 25,
        face_index=0,
        box=box,
        face_score=0.5,
        frame_width=64,
        frame_height=48,
        face_jpeg=encode_image(face),
        context_jpeg=encode_image(make_context(frame, box, context_px=px)),
        label=label,
        split=split,
    )


def hash_of(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def write_shards(
    folder: Path, shards: list[list[Example]], *, px: int = PX, classes: Sequence[str] = EMOTIONS
) -> dict[str, Any]:
    """Write the shards and manifest.json as preprocessing does; the manifest."""
    (folder / "examples").mkdir(parents=True)
    entries = []
    for number, examples in enumerate(shards):
        buffer = io.BytesIO()
        pq.write_table(table_of(examples, EXAMPLE_SCHEMA), buffer)
        path, content = f"examples/{number:03d}.parquet", buffer.getvalue()
        (folder / path).write_bytes(content)
        entries.append(
            {
                "path": path,
                "unit": f"{number:03d}",
                "split": examples[0].split if examples else "train",
                "rows": len(examples),
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
    own = {} if tuple(classes) == EMOTIONS else {"classes": list(classes)}
    manifest = {
        "schema_version": 1,
        "kind": "examples",
        "config": {"face_px": px, "context_px": px, "box_margin": 0.0, "image_format": "jpeg", **own},
        "versions": {},
        "counts": {"rows": sum(entry["rows"] for entry in entries)},
        "shards": entries,
    }
    write_manifest(folder, manifest)
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write_corpus(folder: Path, *, train: int = 70, validation: int = 23, rows_per_shard: int = 16) -> dict[str, Any]:
    """A learnable corpus with every class in turn, in two splits of several shards."""
    shards = []
    for split, count in (("train", train), ("validation", validation)):
        examples = [drawn_example(i, label=EMOTIONS[i % 7], split=split) for i in range(count)]
        shards += [examples[i : i + rows_per_shard] for i in range(0, count, rows_per_shard)]
    return write_shards(folder, shards)
