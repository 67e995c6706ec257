"""Shards of examples come in, batches of tensors go out: exact random access, a fixed order, seeded augmentation.

At the start the shards of a split are copied once per node, checked against the manifest, into Arrow files that are
memory-mapped: a row is then read without decoding Parquet, and memory stays flat however large the corpus is. What a
batch holds is a function of (seed, step, rank) alone, so that training resumes at any step and sees the same global
batches on any number of workers. `faces.crops` knows which pixels are masked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.dataset.shards import copy_shards, default_cache_dir, locked, read_manifest, require_space
from pipeline.dataset.views import augmented, context_view, resized
from pipeline.faces.crops import decode_image, masked_region
from pipeline.records.columns import classes_in
from pipeline.records.evolution import with_columns
from pipeline.records.faces import EXAMPLE_SCHEMA, Box, Example
from pipeline.records.vocabulary import ContextCrop, UsageError, class_named

IMAGENET_MEAN = (0.485, 0.456, 0.406)


IMAGENET_STD = (0.229, 0.224, 0.225)


ROWS_AT_ONCE = 256  # decoded and not yet written, 80 MB at 224 px


class Batch(NamedTuple):
    """Examples as tensors. face and context: (B, 3, H, W) uint8 RGB, see `normalised`. labels, rows: (B,) int64."""

    face: Tensor
    context: Tensor
    labels: Tensor
    rows: Tensor


class Sample(NamedTuple):
    """One example. face and context: (3, H, W) float32, normalised. label: index of its class."""

    face: Tensor
    context: Tensor
    label: int
    clip_id: str
    frame_index: int
    face_index: int


class ExampleDataset(Dataset[Sample]):
    """The examples of one split, by row number: shards in the manifest's order, rows in theirs.

    face_px, context_px: side of the squares given out, pixels; None is as stored, another size is resized to.
    context_crop: which part of the frame the context is, see `context_view`.
    classes: which labels are indices of, in this order; None: those that the data was made with.
    cache_dir: local folder for the copies (about the size of the shards; may be deleted whenever nothing reads it).
    cache_decoded: keep the decoded images of the split there too, 3 (face_px² + context_px²) bytes an example as
    stored; what is given out is the same. Raises UsageError for a missing or damaged manifest or shard, an empty split,
    unlabelled rows, labels that are no class, and a disk too small for the copies.
    """

    def __init__(
        self,
        data_url: str,
        *,
        split: str,
        face_px: int | None = None,
        context_px: int | None = None,
        context_crop: ContextCrop = "none",
        classes: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
        cache_decoded: bool = False,
    ) -> None:
        self.manifest = read_manifest(data_url)
        self.split = split
        self.classes = classes_in({"config": self.manifest.config}) if classes is None else tuple(classes)
        self.stored_face_px: int = self.manifest.config["face_px"]
        self.stored_context_px: int = self.manifest.config["context_px"]
        self.face_px = face_px or self.stored_face_px
        self.context_px = context_px or self.stored_context_px
        self.context_crop: ContextCrop = context_crop
        self._shards = self.manifest.shards_of(split)
        folder = (Path(cache_dir) if cache_dir else default_cache_dir()) / self.manifest.sha256[:32]
        self._paths = copy_shards(self.manifest, self._shards, folder)
        self._tables: dict[int, pa.Table] = {}
        self._pixel_paths: tuple[Path, Path] | None = None
        self._pixels: tuple[np.ndarray, np.ndarray] | None = None
        self._starts = np.cumsum([0, *(shard["rows"] for shard in self._shards)])
        self.labels = np.concatenate([self._labels(shard) for shard in range(len(self._shards))])
        if cache_decoded:
            self._pixel_paths = self._decoded_copies(folder)

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}, "_pixels": None}  # a loader's process maps the files itself

    def __getitem__(self, row: int) -> Sample:
        table, at = self._locate(row)
        face, context = self._images(row)
        key = {name: table.column(name)[at].as_py() for name in ("clip_id", "frame_index", "face_index")}
        return Sample(_one_normalised(face), _one_normalised(context), int(self.labels[row]), **key)

    def place_of(self, row: int) -> str:
        """Where an example was seen, for people: the clip's path, or its id where the data is older than paths, and
        the time in it."""
        table, at = self._locate(row)
        path, clip_id, seconds, face = (
            table.column(name)[at].as_py() for name in ("path", "clip_id", "seconds", "face_index")
        )
        when = f" at {seconds:.1f} s" if seconds is not None else ""
        return f"{path or f'clip {clip_id}'}{when}{f', face {face + 1}' if face else ''}"

    def column(self, name: str) -> list[Any]:
        """One column of all examples, such as clip_id, by row number."""
        return [value for shard in range(len(self._shards)) for value in self._table(shard).column(name).to_pylist()]

    def read_batch(
        self,
        rows: np.ndarray,
        *,
        flips: np.ndarray | None = None,
        augment_face: tuple[str, ...] = (),
        crop_at_random: bool = False,
        seed: tuple[int, ...] = (0,),
    ) -> Batch:
        """The examples of `rows`; where `flips` is true the face and its context are mirrored together.

        augment_face: any of AUGMENTATIONS, done to the face alone, chosen by (seed, row). crop_at_random: place the
        crop of the context by (seed, row) too, not in the middle.
        """
        crop_at_random = crop_at_random and self.context_crop != "none"
        face = np.empty((len(rows), self.face_px, self.face_px, 3), dtype=np.uint8)
        context = np.empty((len(rows), self.context_px, self.context_px, 3), dtype=np.uint8)
        for i, row in enumerate(rows):
            random = np.random.default_rng([*seed, int(row)]) if augment_face or crop_at_random else None
            pair = self._images(int(row), random=random, augment_face=augment_face, crop_at_random=crop_at_random)
            if flips is not None and flips[i]:
                pair = pair[0][:, ::-1], pair[1][:, ::-1]
            face[i], context[i] = pair
        return Batch(
            face=torch.from_numpy(face).permute(0, 3, 1, 2),  # (B, 3, H, W), in channels-last order in memory
            context=torch.from_numpy(context).permute(0, 3, 1, 2),
            labels=torch.from_numpy(self.labels[rows]),
            rows=torch.from_numpy(np.asarray(rows)),
        )

    def require_every_class(self, *, learned: Sequence[str] = ()) -> None:
        """Raise UsageError where a class has no example: a network can't learn what it never sees.

        learned: classes that it knows already.
        """
        counts = np.bincount(self.labels, minlength=len(self.classes))
        missing = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        missing = [name for name in missing if class_named(name, learned) is None]
        if missing:
            raise UsageError(
                f"data {self.manifest.data_url}: split {self.split} has no example of {', '.join(missing)} among"
                f" {len(self)}; training needs all its {len(self.classes)} classes: add clips of the missing ones,"
                " or preprocess without them (--classes)"
            )

    def _labels(self, shard: int) -> np.ndarray:
        labels = self._table(shard).column("label")
        if labels.null_count:
            raise UsageError(
                f"data {self.manifest.data_url}: {self._shards[shard]['path']} holds {labels.null_count} unlabelled"
                f" examples of split {self.split}; label them in the corpus or its manifest, or leave them out"
            )
        named = {name: class_named(name, self.classes) for name in labels.unique().to_pylist()}
        if unknown := sorted(name for name, found in named.items() if found is None):
            raise UsageError(
                f"data {self.manifest.data_url}: {self._shards[shard]['path']} has the labels {', '.join(unknown)},"
                f" and the classes are {', '.join(self.classes)}; use a model and data of the same classes"
            )
        indices = {name: self.classes.index(str(found)) for name, found in named.items()}
        return np.array([indices[name] for name in labels.to_pylist()], np.int64)

    def _table(self, shard: int) -> pa.Table:
        if shard not in self._tables:
            table = pa.ipc.open_file(pa.memory_map(str(self._paths[shard]))).read_all()
            self._tables[shard] = with_columns(table, Example, EXAMPLE_SCHEMA)  # a copy may be an older version's
        return self._tables[shard]

    def _locate(self, row: int) -> tuple[pa.Table, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is not one of 0 to {len(self) - 1}")
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._table(shard), row - int(self._starts[shard])

    def _images(
        self,
        row: int,
        *,
        random: np.random.Generator | None = None,
        augment_face: tuple[str, ...] = (),
        crop_at_random: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Face and context of one row, each (H, W, 3) uint8."""
        face, context = self._stored_images(row)
        if random is not None:
            face = augmented(face, augment_face, px=self.face_px, random=random)
        table, at = self._locate(row)
        aspect = table.column("frame_width")[at].as_py() / table.column("frame_height")[at].as_py()
        context = context_view(
            context,
            px=self.context_px,
            crop=self.context_crop,
            aspect=aspect,
            random=random if crop_at_random else None,
        )
        return resized(face, self.face_px), context

    def _stored_images(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Face and context of one row at their stored sizes, the face in the context zero again."""
        if self._pixel_paths is not None:
            if self._pixels is None:
                faces, contexts = (np.load(path, mmap_mode="r") for path in self._pixel_paths)
                self._pixels = faces, contexts
            return np.array(self._pixels[0][row]), np.array(self._pixels[1][row])
        table, at = self._locate(row)
        face = self._decoded(row, "face_jpeg", px=self.stored_face_px)
        context = self._decoded(row, "context_jpeg", px=self.stored_context_px)
        _zero_face(
            context,
            Box(**table.column("box")[at].as_py()),
            frame_width=table.column("frame_width")[at].as_py(),
            frame_height=table.column("frame_height")[at].as_py(),
        )
        return face, context

    def _decoded_copies(self, folder: Path) -> tuple[Path, Path]:
        """Files of every decoded face and context of the split, (N, px, px, 3) uint8, made where there are none yet."""
        face_path, context_path = (folder / f"{self.split}-{name}.npy" for name in ("faces", "contexts"))
        sizes = {face_path: self.stored_face_px, context_path: self.stored_context_px}
        with locked(folder):
            if face_path.exists() and context_path.exists():
                return face_path, context_path
            require_space(folder, 3 * len(self) * sum(px**2 for px in sizes.values()), what="the decoded images")
            temporary = [path.with_suffix(".tmp") for path in sizes]
            with (
                ThreadPoolExecutor(os.cpu_count()) as threads,
                temporary[0].open("wb") as faces,
                temporary[1].open("wb") as contexts,
            ):
                for file, px in zip((faces, contexts), sizes.values(), strict=True):
                    header = {"descr": "|u1", "fortran_order": False, "shape": (len(self), px, px, 3)}
                    np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(self), ROWS_AT_ONCE):
                    rows = range(start, min(start + ROWS_AT_ONCE, len(self)))
                    for face, context in threads.map(self._stored_images, rows):
                        faces.write(face.data)
                        contexts.write(context.data)
                for file in (faces, contexts):
                    file.flush()
                    os.fsync(file.fileno())
            for path, whole in zip(sizes, temporary, strict=True):
                whole.replace(path)
        return face_path, context_path

    def _decoded(self, row: int, column: str, *, px: int) -> np.ndarray:
        table, at = self._locate(row)
        name = f"data {self.manifest.data_url}: clip {table.column('clip_id')[at].as_py()}: {column}"
        try:
            image = decode_image(table.column(column)[at].as_py())
        except OSError as error:
            raise UsageError(f"{name} can't be decoded ({error}); run jobs/preprocess.py again") from None
        if image.shape != (px, px, 3):
            raise UsageError(f"{name} is {image.shape}, not {px} px square; run jobs/preprocess.py again")
        return image


def batch_of(
    examples: Sequence[Example], *, face_px: int, context_px: int, context_crop: ContextCrop = "none"
) -> Batch:
    """Examples in memory as training reads them. labels: -1, for what is predicted from them is not known."""
    face = np.empty((len(examples), face_px, face_px, 3), dtype=np.uint8)
    context = np.empty((len(examples), context_px, context_px, 3), dtype=np.uint8)
    for i, example in enumerate(examples):
        image, (width, height) = decode_image(example.context_jpeg), (example.frame_width, example.frame_height)
        _zero_face(image, example.box, frame_width=width, frame_height=height)
        face[i] = resized(decode_image(example.face_jpeg), face_px)
        context[i] = context_view(image, px=context_px, crop=context_crop, aspect=width / height)
    return Batch(
        face=torch.from_numpy(face).permute(0, 3, 1, 2),  # (B, 3, H, W), in channels-last order in memory
        context=torch.from_numpy(context).permute(0, 3, 1, 2),
        labels=torch.full((len(examples),), -1),
        rows=torch.arange(len(examples)),
    )


def normalised(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 RGB to float32 by ImageNet's mean and standard deviation, on the device of the images."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1) * 255
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1) * 255
    return (images.float() - mean) / std


def _zero_face(context: np.ndarray, box: Box, *, frame_width: int, frame_height: int) -> None:
    """Zero the masked face again, in place and before any resize: JPEG left up to a dozen grey levels of its rim."""
    region = masked_region(box, frame_width=frame_width, frame_height=frame_height, context_px=context.shape[0])
    if region is not None:
        x_min, y_min, x_max, y_max = region
        context[y_min:y_max, x_min:x_max] = 0


def _one_normalised(image: np.ndarray) -> Tensor:
    return normalised(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
