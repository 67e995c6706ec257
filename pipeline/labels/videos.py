"""The videos of labelled clips: found, copied to this machine where they lie elsewhere, and read in the sandbox."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.labels.over_time import by_person
from pipeline.preprocess.local_copies import may_read_without_capabilities, open_archive
from pipeline.records.vocabulary import UsageError
from pipeline.sandbox.limits import SandboxError, SandboxLimits
from pipeline.sandbox.supervisor import Sandbox
from pipeline.storage.archives.members import is_member
from pipeline.storage.archives.parts import ArchiveError
from pipeline.storage.archives.reading import MemberReader
from pipeline.storage.contents import LocalContents
from pipeline.storage.remote import absolute_url, fetch, local_path
from pipeline.storage.retry import StorageError
from pipeline.storage.scratch import PREFIX, ScratchFolder, sweep
from pipeline.video.work import build_media

LIMITS = SandboxLimits(timeout_seconds=60.0, memory_bytes=2**31)
SCRATCH = f"{PREFIX}videos-"


class VideoMissingError(Exception):
    """A clip's video that cannot be shown; its text is for the reader."""


class Videos:
    """The videos of clips, by rows of `Labels.database`'s table `clips`.

    Copies lie in a scratch folder, the oldest of which go where they are more than `cache_bytes` in all. Can be used by
    several threads. input_url: where the videos lie now; by default where they lay when they were scored.
    """

    def __init__(self, input_url: str | None, *, cache_bytes: int = 8 * 2**30, num_children: int = 1) -> None:
        self._root = None if input_url is None else absolute_url(input_url)
        if self._root is not None and local_path(self._root) is not None and not os.path.exists(self._root):
            raise UsageError(f"--input {input_url} is not there; give the folder of the videos that were scored")
        sweep(SCRATCH)
        self._scratch = ScratchFolder(SCRATCH)
        self.folder = self._scratch.path
        self._cache_bytes = cache_bytes
        self._copying = threading.Lock()
        self._locks = [threading.Lock() for _ in range(num_children)]
        self._sandboxes = [
            Sandbox(build_media, {}, limits=LIMITS, preload=("av",), readable=[str(self.folder)])
            for _ in range(num_children)
        ]
        self._members = MemberReader(functools.partial(open_archive, contents=LocalContents()))

    def close(self) -> None:
        """End the children and remove the copies."""
        for lock, sandbox in zip(self._locks, self._sandboxes, strict=True):
            with lock:
                sandbox.close()
        self._members.close()
        self._scratch.close()

    def url_of(self, clip: dict[str, Any]) -> str:
        """Where the clip's bytes should lie. Raises VideoMissingError for a path that leads out of the input."""
        if self._root is None:
            if not clip["url"]:
                raise VideoMissingError("where the videos lie is not known; give --input")
            return clip["url"]
        if local_path(self._root) is not None and os.path.isfile(self._root) and clip["path"] == Path(self._root).name:
            return self._root
        parts = clip["path"].split("/")
        if ".." in parts or clip["path"].startswith("/"):
            raise VideoMissingError(f"{clip['path']} leads out of the input")
        return f"{self._root}/{clip['path']}"

    def local(self, clip: dict[str, Any]) -> Path:
        """The clip's video as a file of this machine, copied there if need be. Raises VideoMissingError."""
        url = self.url_of(clip)
        place = local_path(url)
        try:
            if place is not None and not is_member(url):
                if not os.path.isfile(place):
                    raise VideoMissingError(f"no file at {place}; give --input, the folder of the videos")
                if may_read_without_capabilities(place):
                    return Path(place)
            with self._copying:
                return self._copy(clip, url)
        except ArchiveError as error:
            raise VideoMissingError(str(error)) from None
        except FileNotFoundError:
            raise VideoMissingError(f"no file at {url}; give --input, the folder of the videos") from None
        except (StorageError, OSError) as error:
            raise VideoMissingError(str(error)) from None

    def _copy(self, clip: dict[str, Any], url: str) -> Path:
        target = self.folder / "copies" / clip["clip_id"]
        if target.exists():
            os.utime(target)
            return target
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            made = Path(folder) / "clip"
            if is_member(url):
                self._members.copy(url, made, content_id=clip["content_id"])
            elif (place := local_path(url)) is not None:
                shutil.copyfile(place, made)
            else:
                fetch(url, made, size_bytes=None)
            self.make_room(made.stat().st_size)
            os.replace(made, target)
        return target

    def make_room(self, num_bytes: int) -> None:
        """Delete the copies and conversions that were used longest ago, until as many bytes are free."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.parent != self.folder]
        facts = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in files)
        total = sum(size for _, size, _ in facts) + num_bytes
        for _, size, path in facts:
            if total <= self._cache_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def is_changed(self, clip: dict[str, Any], path: Path) -> bool:
        """Whether the file has another size than what was scored."""
        size = clip.get("size_bytes")
        return bool(size) and not is_member(clip["url"] or "") and path.stat().st_size != size

    def ask(self, what: str, clip: dict[str, Any], *, child: int = 0, **options: Any) -> Any:
        """What a child process says of the clip's video: `facts`, `picture` or `convert` (see video/work.py).

        Raises VideoMissingError.
        """
        items = self.ask_many(what, clip, child=child, **options)
        if len(items) != 1:
            raise VideoMissingError(f"{clip['path']} cannot be shown")
        return items[0]

    def ask_many(self, what: str, clip: dict[str, Any], *, child: int = 0, **options: Any) -> list[Any]:
        """All that a child process says: the parts of a `draw`, or `crops`. Raises VideoMissingError."""
        path = self.local(clip)
        number = child % len(self._sandboxes)
        with self._locks[number]:
            sandbox = self._sandboxes[number]
            sandbox.let_read(str(path), name=clip["path"])
            try:
                items, _ = sandbox.run({"what": what, "path": str(path), "options": options})
            except SandboxError as error:
                raise VideoMissingError(f"{clip['path']} cannot be shown: {error.detail}") from None
        return items


def step_of(faces: pa.Table, config: dict[str, Any]) -> float:
    """Seconds between two sampled frames: as they were asked for, else as they mostly are."""
    if config.get("sample_fps"):
        return 1.0 / float(config["sample_fps"])
    times = sorted(set(faces["pts_seconds"].to_pylist()))
    steps = sorted(after - before for before, after in pairwise(times))
    return steps[len(steps) // 2] if steps else 1.0


def plain_tracks(faces: pa.Table) -> list[dict[str, Any]]:
    """The persons of a clip as plain values for a child process (`video.boxes.tracks_of`).

    faces: rows of FRAME_SCHEMA. What is written at a face is its emotion and probability.
    """
    found = []
    for person, own in by_person(faces).items():
        boxes = own["box"].to_pylist()
        texts = []
        for emotion, seven in zip(own["emotion"].to_pylist(), own["probabilities"].to_pylist(), strict=True):
            texts.append(f"{emotion} {seven[emotion]:.0%}" if emotion else "abstained")
        found.append(
            {
                "number": person + 1,
                "times": own["pts_seconds"].to_pylist(),
                "boxes": [[box["x_min"], box["y_min"], box["x_max"], box["y_max"]] for box in boxes],
                "labels": texts,
            }
        )
    return found


@contextmanager
def opened_videos(input_url: str | None, **options: Any) -> Iterator[Videos]:
    """Videos that are closed at the end."""
    videos = Videos(input_url, **options)
    try:
        yield videos
    finally:
        videos.close()
