"""Shards of examples come in, batches of tensors go out: exact random access, a fixed order, seeded augmentation.

At the start the shards of a split are copied once per node, checked against the manifest, into Arrow files that are
memory-mapped: a row is then read without decoding Parquet, and memory stays flat however large the corpus is. What a
batch holds is a function of (seed, step, rank) alone, so that training resumes at any step and sees the same global
batches on any number of workers. Besides records and `storage` this room imports `crops`: it knows the masked pixels.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.crops import decode_image, masked_region
from pipeline.records import EMOTIONS, EXAMPLE_SCHEMA, SCHEMA_VERSION, SPLITS, Box, Example, UsageError
from pipeline.storage import Storage

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
AUGMENTATIONS = ("crop", "colour")
ROWS_AT_ONCE = 256  # decoded and not yet written, 80 MB at 224 px
COPY_THREADS = 4  # shards copied at once: hides the latency of an object store and holds 4 shards in memory


class Batch(NamedTuple):
    """Examples as tensors. face and context: (B, 3, H, W) uint8 RGB, see `normalised`. labels, rows: (B,) int64."""

    face: Tensor
    context: Tensor
    labels: Tensor
    rows: Tensor


class Sample(NamedTuple):
    """One example. face and context: (3, H, W) float32, normalised. label: index in EMOTIONS."""

    face: Tensor
    context: Tensor
    label: int
    clip_id: str
    frame_index: int
    face_index: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The trusted shards of a preprocessed corpus. sha256: of the manifest's bytes, the identity of the data set."""

    data_url: str
    sha256: str
    config: dict[str, Any]
    shards: tuple[dict[str, Any], ...]

    def shards_of(self, split: str) -> list[dict[str, Any]]:
        """The shards of one split that hold rows, in order. UsageError for an unknown or an empty split."""
        if split not in SPLITS:
            raise UsageError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        shards = [shard for shard in self.shards if shard["split"] == split and shard["rows"] > 0]
        if not shards:
            found = {name: sum(s["rows"] for s in self.shards if s["split"] == name) for name in (*SPLITS, None)}
            told = ", ".join(f"{name or 'no split'} {rows}" for name, rows in found.items())
            raise UsageError(
                f"data {self.data_url}: split {split} holds no examples (examples by split: {told});"
                " give the corpus that split, or set --split-fractions in jobs/preprocess.py"
            )
        return shards


def read_manifest(data_url: str) -> Manifest:
    """The manifest that preprocessing writes last. data_url: a folder, or any fsspec URL of one.

    Raises UsageError where it is missing, damaged, or of something else than examples.
    """
    where = f"data {data_url}: manifest.json"
    try:
        content = Storage(data_url).read("manifest.json")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{where} is not there; point at the output of jobs/preprocess.py, and finish that run if it was cut off"
        ) from None
    try:
        manifest = json.loads(content)
        kind, version = manifest["kind"], manifest["schema_version"]
        shards = tuple(
            {**{key: shard[key] for key in ("path", "split", "rows", "sha256")}, "bytes": shard.get("bytes")}
            for shard in manifest["shards"]
        )
        config = {**manifest["config"]}
        face_px, context_px = config["face_px"], config["context_px"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{where} is damaged ({error!r}); run jobs/preprocess.py again") from None
    if kind != "examples" or version != SCHEMA_VERSION:
        raise UsageError(
            f"{where} is of {kind!r}, schema version {version!r}, not of 'examples', schema version {SCHEMA_VERSION};"
            " point at the output of this version's jobs/preprocess.py"
        )
    if not all(isinstance(px, int) and px > 0 for px in (face_px, context_px)):
        raise UsageError(f"{where} says face_px {face_px!r} and context_px {context_px!r}; both must be pixels above 0")
    return Manifest(data_url=data_url, sha256=hashlib.sha256(content).hexdigest(), config=config, shards=shards)


def default_cache_dir() -> Path:
    """Where copies of shards rest on this node: `$XDG_CACHE_HOME`, or `~/.cache`, /emotion-pipeline."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emotion-pipeline"


class ExampleDataset(Dataset[Sample]):
    """The examples of one split, by row number: shards in the manifest's order, rows in theirs.

    face_px, context_px: side of the squares given out, pixels; None is as stored, another size is resized to.
    cache_dir: local folder for the copies (about the size of the shards; may be deleted whenever nothing reads it).
    cache_decoded: keep the decoded images of the split there too, 3 (face_px² + context_px²) bytes an example as
    stored; what is given out is the same. Raises UsageError for a missing or damaged manifest or shard, an empty split,
    unlabelled rows, and a disk too small for the copies.
    """

    def __init__(
        self,
        data_url: str,
        *,
        split: str,
        face_px: int | None = None,
        context_px: int | None = None,
        cache_dir: str | Path | None = None,
        cache_decoded: bool = False,
    ) -> None:
        self.manifest = read_manifest(data_url)
        self.split = split
        self.stored_face_px: int = self.manifest.config["face_px"]
        self.stored_context_px: int = self.manifest.config["context_px"]
        self.face_px = face_px or self.stored_face_px
        self.context_px = context_px or self.stored_context_px
        self._shards = self.manifest.shards_of(split)
        folder = (Path(cache_dir) if cache_dir else default_cache_dir()) / self.manifest.sha256[:32]
        self._paths = _copied_shards(self.manifest, self._shards, folder)
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

    def read_batch(
        self,
        rows: np.ndarray,
        *,
        flips: np.ndarray | None = None,
        augment_face: tuple[str, ...] = (),
        seed: tuple[int, ...] = (0,),
    ) -> Batch:
        """The examples of `rows`; where `flips` is true the face and its context are mirrored together.

        augment_face: any of AUGMENTATIONS, done to the face alone, chosen by (seed, row).
        """
        face = np.empty((len(rows), self.face_px, self.face_px, 3), dtype=np.uint8)
        context = np.empty((len(rows), self.context_px, self.context_px, 3), dtype=np.uint8)
        for i, row in enumerate(rows):
            random = np.random.default_rng([*seed, int(row)]) if augment_face else None
            pair = self._images(int(row), random=random, augment_face=augment_face)
            if flips is not None and flips[i]:
                pair = pair[0][:, ::-1], pair[1][:, ::-1]
            face[i], context[i] = pair
        return Batch(
            face=torch.from_numpy(face).permute(0, 3, 1, 2),  # (B, 3, H, W), in channels-last order in memory
            context=torch.from_numpy(context).permute(0, 3, 1, 2),
            labels=torch.from_numpy(self.labels[rows]),
            rows=torch.from_numpy(np.asarray(rows)),
        )

    def require_every_class(self) -> None:
        """Raise UsageError where a class of EMOTIONS has no example: a network can't learn what it never sees."""
        counts = np.bincount(self.labels, minlength=len(EMOTIONS))
        missing = [emotion for emotion, count in zip(EMOTIONS, counts, strict=True) if count == 0]
        if missing:
            raise UsageError(
                f"data {self.manifest.data_url}: split {self.split} has no example of {', '.join(missing)} among"
                f" {len(self)}; training needs all seven classes: add clips of the missing ones"
            )

    def _labels(self, shard: int) -> np.ndarray:
        labels = self._table(shard).column("label")
        if labels.null_count:
            raise UsageError(
                f"data {self.manifest.data_url}: {self._shards[shard]['path']} holds {labels.null_count} unlabelled"
                f" examples of split {self.split}; label them in the corpus or its manifest, or leave them out"
            )
        indices = pc.index_in(labels, value_set=pa.array(EMOTIONS))  # pyright: ignore[reportAttributeAccessIssue]
        if indices.null_count:
            raise UsageError(
                f"data {self.manifest.data_url}: {self._shards[shard]['path']} has a label that is not one of"
                f" {', '.join(EMOTIONS)}; run jobs/preprocess.py again"
            )
        return indices.to_numpy().astype(np.int64)

    def _table(self, shard: int) -> pa.Table:
        if shard not in self._tables:
            self._tables[shard] = pa.ipc.open_file(pa.memory_map(str(self._paths[shard]))).read_all()
        return self._tables[shard]

    def _locate(self, row: int) -> tuple[pa.Table, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is not one of 0 to {len(self) - 1}")
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._table(shard), row - int(self._starts[shard])

    def _images(
        self, row: int, *, random: np.random.Generator | None = None, augment_face: tuple[str, ...] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Face and context of one row, each (H, W, 3) uint8."""
        face, context = self._stored_images(row)
        if random is not None:
            face = augmented(face, augment_face, px=self.face_px, random=random)
        return _resized(face, self.face_px), _resized(context, self.context_px)

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
        with _locked(folder):
            if face_path.exists() and context_path.exists():
                return face_path, context_path
            _require_space(folder, 3 * len(self) * sum(px**2 for px in sizes.values()), what="the decoded images")
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


class TrainingBatches(Dataset[Batch]):
    """One rank's share of every global batch of a training run: `batches[step]` for any step from 0 on.

    batch_size: examples of a global batch, over all ranks. Each epoch is a permutation seeded by (seed, epoch); its
    last batch is left out if it is not full, and other examples fall to it in the next epoch. flip: mirror half of the
    pairs, augment_face: change the faces, both chosen by (seed, epoch, row). Raises UsageError where the examples make
    no batch or the ranks can't share it.
    """

    def __init__(
        self,
        examples: ExampleDataset,
        *,
        batch_size: int,
        seed: int,
        flip: bool,
        augment_face: tuple[str, ...] = (),
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise UsageError(f"batch size {batch_size} can't be shared by {world_size} workers; use a multiple of them")
        if len(examples) < batch_size:
            raise UsageError(
                f"split {examples.split} holds {len(examples)} examples, too few for one batch of {batch_size};"
                " lower --batch-size"
            )
        self.examples, self.batch_size, self.seed, self.flip = examples, batch_size, seed, flip
        self.augment_face, self.rank, self.world_size = augment_face, rank, world_size
        self.steps_per_epoch = len(examples) // batch_size
        self._epoch, self._order, self._flips = -1, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)

    def __getitem__(self, step: int) -> Batch:
        rows, flips = self.rows_and_flips(step)
        seed = (self.seed, step // self.steps_per_epoch)
        return self.examples.read_batch(rows, flips=flips, augment_face=self.augment_face, seed=seed)

    def rows_and_flips(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of this rank at one step, and which of them are mirrored."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, random.permutation(len(self.examples))
            self._flips = random.random(len(self.examples)) < (0.5 if self.flip else 0.0)
        share = self.batch_size // self.world_size
        start = step_of_epoch * self.batch_size + self.rank * share
        rows = self._order[start : start + share]
        return rows, self._flips[rows]


class EvaluationBatches(Dataset[Batch]):
    """Every example of one rank, once: rows rank, rank + world_size, and so on. No row is repeated to fill a batch.

    batch_size: examples of one batch of one rank; the last may be smaller, and a rank may have no batch at all.
    """

    def __init__(self, examples: ExampleDataset, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.examples, self.batch_size = examples, batch_size
        self.rows = np.arange(rank, len(examples), world_size)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, i: int) -> Batch:
        if not 0 <= i < len(self):
            raise IndexError(f"batch {i} is not one of 0 to {len(self) - 1}")
        return self.examples.read_batch(self.rows[i * self.batch_size : (i + 1) * self.batch_size])


def read_pair(example: Example, *, face_px: int, context_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Face and context of one example as training reads them: (face_px, face_px, 3) and (context_px, context_px, 3)
    uint8."""
    context = decode_image(example.context_jpeg)
    _zero_face(context, example.box, frame_width=example.frame_width, frame_height=example.frame_height)
    return _resized(decode_image(example.face_jpeg), face_px), _resized(context, context_px)


def augmented(face: np.ndarray, augmentations: tuple[str, ...], *, px: int, random: np.random.Generator) -> np.ndarray:
    """A face (H, W, 3) uint8, changed at random: `crop` gives a part of it at `px` pixels square, `colour` its size.

    crop: 70 to 100 % of its area, sides 4:5 to 5:4, anywhere in it. colour: brightness, contrast and saturation each
    times 0.7 to 1.3.
    """
    image = Image.fromarray(face)
    if "crop" in augmentations:
        area, aspect = random.uniform(0.7, 1.0), math.exp(random.uniform(math.log(4 / 5), math.log(5 / 4)))
        width, height = (min(1.0, math.sqrt(area * ratio)) for ratio in (aspect, 1 / aspect))
        left, top = random.uniform(0, 1 - width), random.uniform(0, 1 - height)
        box = (left * image.width, top * image.height, (left + width) * image.width, (top + height) * image.height)
        image = image.resize((px, px), Image.Resampling.BILINEAR, box=box)
    if "colour" in augmentations:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(random.uniform(0.7, 1.3))
    return np.array(image)


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


def _resized(image: np.ndarray, px: int) -> np.ndarray:
    if image.shape[0] == px:
        return image
    return np.array(Image.fromarray(image).resize((px, px), Image.Resampling.BILINEAR))


def _copied_shards(manifest: Manifest, shards: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Local Arrow files of the shards, copied where this node has none yet. Ranks that start together copy once."""
    paths = [folder / f"{shard['sha256']}.arrow" for shard in shards]
    if all(path.exists() for path in paths):
        return paths
    with _locked(folder):
        missing = [(shard, path) for shard, path in zip(shards, paths, strict=True) if not path.exists()]
        with ThreadPoolExecutor(COPY_THREADS) as threads:
            list(threads.map(lambda pair: _copy_shard(manifest, *pair), missing))
    return paths


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of copies, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes, or its process dies
        yield


def _require_space(folder: Path, num_bytes: int, *, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UsageError(
            f"cache {folder}: {free / 1e9:.1f} GB free, {num_bytes / 1e9:.1f} GB needed for {what}; free space, or"
            " choose another folder with --cache-dir"
        )


def _copy_shard(manifest: Manifest, shard: dict[str, Any], path: Path) -> None:
    name = f"data {manifest.data_url}: shard {shard['path']}"
    try:
        content = Storage(manifest.data_url).read(shard["path"], size_bytes=shard["bytes"])
    except FileNotFoundError:
        raise UsageError(f"{name} is missing, though the manifest names it; run jobs/preprocess.py again") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != shard["sha256"]:
        raise UsageError(
            f"{name} is damaged: its sha256 is {digest[:12]}…, the manifest says {shard['sha256'][:12]}…;"
            " restore it, or run jobs/preprocess.py again"
        )
    try:
        table = pq.read_table(io.BytesIO(content))
    except pa.ArrowInvalid as error:
        raise UsageError(f"{name} is not Parquet ({error}); run jobs/preprocess.py again") from None
    if not table.schema.equals(EXAMPLE_SCHEMA) or len(table) != shard["rows"]:
        raise UsageError(
            f"{name} has {len(table)} rows of {', '.join(table.schema.names)}, not {shard['rows']} examples;"
            " run jobs/preprocess.py again"
        )
    temporary = path.with_suffix(".tmp")
    _require_space(path.parent, table.nbytes, what="the next shard")
    with temporary.open("wb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
