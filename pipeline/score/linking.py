"""Persons of a clip over its cuts: the embeddings of a few faces of each track, and where those of segments lie."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from pipeline.faces.persons import linked
from pipeline.faces.same_person import faces_to_embed
from pipeline.ledger.files import arrow_bytes
from pipeline.ledger.forget import table_in
from pipeline.records.clips import whole_id
from pipeline.records.columns import table_of
from pipeline.records.faces import EMBEDDING_SCHEMA, AlignedExample, Example, FaceEmbedding, Prediction
from pipeline.runtime.console import log_status
from pipeline.storage.store import Storage

# Embeddings of the segments of films that are not joined yet. No table of the ledger: they are deleted with the join.
FOLDER = "segment_embeddings"

EMBEDDED = np.dtype("<f4")

# Number of the frame, and of the face in it.
FaceKey = tuple[int, int]


class PersonEmbedder:
    """Embeds a few of the sharpest faces of each track."""

    def __init__(self, *, device: str) -> None:
        from pipeline.faces.embedding import FaceEmbedder  # PyTorch

        self._embedder = FaceEmbedder(device=device)

    def embeddings(self, examples: Sequence[Example], *, cuts: Sequence[int]) -> dict[FaceKey, np.ndarray]:
        """The embeddings, (128,) each. examples: all faces of a clip in order of time, with their chips."""
        places = faces_to_embed(linked(examples, cuts=cuts), [example.sharpness for example in examples])
        chosen = [examples[place] for place in places]
        chips = [
            np.asarray(Image.open(io.BytesIO(each.chip_jpeg))) for each in chosen if isinstance(each, AlignedExample)
        ]
        found = self._embedder.embed(chips)
        return {key_of(example): embedding for example, embedding in zip(chosen, found, strict=True)}


def key_of(face: Example | Prediction | FaceEmbedding) -> FaceKey:
    """What tells a face from the others of its clip."""
    return face.frame_index, face.face_index


def rows_of(
    faces: Sequence[Example | Prediction], embeddings: Mapping[FaceKey, np.ndarray], *, path: str, model: str | None
) -> Iterator[FaceEmbedding]:
    """The rows of the faces that are embedded."""
    for face in faces:
        if (embedding := embeddings.get(key_of(face))) is not None:
            is_labelled = isinstance(face, Prediction)
            yield FaceEmbedding(
                clip_id=whole_id(face.clip_id),
                path=path,
                frame_index=face.frame_index,
                pts_seconds=face.pts_seconds,
                face_index=face.face_index,
                box=face.box,
                embedding=embedding.astype(EMBEDDED).tobytes(),
                track_index=face.track_index if is_labelled else None,
                person_index=face.person_index if is_labelled else None,
                model=model,
            )


def keep_for_join(storage: Storage, unit_id: str, rows: Sequence[FaceEmbedding]) -> None:
    """Write the embeddings of a segment where its film's join finds them."""
    if rows:
        table = table_of(rows, EMBEDDING_SCHEMA).drop_columns(["model"])  # Arrow files here have no dictionaries.
        storage.put(f"{FOLDER}/{rows[0].clip_id}/{unit_id}.arrow", arrow_bytes(table))


def kept_for_join(storage: Storage, clip_id: str) -> dict[FaceKey, np.ndarray]:
    """The embeddings of the segments of a film."""
    found: dict[FaceKey, np.ndarray] = {}
    for name in sorted(storage.sizes(f"{FOLDER}/{clip_id}")):
        if (table := table_in(name, storage.read(name))) is None:
            log_status(f"{storage.url}/{name} can't be read: persons of its segment are not linked by it")
            continue
        for row in table.select(["frame_index", "face_index", "embedding"]).to_pylist():
            found[row["frame_index"], row["face_index"]] = np.frombuffer(row["embedding"], EMBEDDED)
    return found


def drop_joined(storage: Storage, *, waiting: set[str]) -> None:
    """Delete the embeddings of segments of all films but those that wait to be joined. waiting: their ids."""
    for name in storage.sizes(FOLDER):
        if name.split("/")[1] not in waiting:
            storage.delete(name)
