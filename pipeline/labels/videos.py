"""The videos of labelled clips: found, copied to this machine where they lie elsewhere, and read in the sandbox."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.labels.over_time import by_person
from pipeline.preprocess.local_copies import may_read_without_capabilities, open_archive
from pipeline.records.vocabulary import UsageError
from pipeline.sandbox.limits import SandboxError, SandboxLimits, SandboxStartError
from pipeline.sandbox.supervisor import Sandbox
from pipeline.storage.archives.members import is_member
from pipeline.storage.archives.parts import ArchiveError
from pipeline.storage.archives.reading import MemberReader
from pipeline.storage.asked import MAX_PART_BYTES
from pipeline.storage.contents import UNKNOWN, LocalContents, is_md5
from pipeline.storage.kept import KeptFile, content_id_at, kept_file
from pipeline.storage.remote import absolute_url, fetch, local_path
from pipeline.storage.retry import ContentChangedError, StorageError
from pipeline.storage.scratch import PREFIX, ScratchFolder, sweep
from pipeline.storage.web import let_reach, reach_of
from pipeline.video.work import build_media

LIMITS = SandboxLimits(timeout_seconds=60.0, memory_bytes=2**31)
SCRATCH = f"{PREFIX}videos-"
# A smaller one is copied whole: one request, where ranges would take some ten.
MIN_RANGED_BYTES = 2**23
END_SECONDS = 2.0
# The MD5 of so much takes a tenth of a second.
SOON_HASHED_BYTES = 2**26
OTHER = (
    "{path} is another file than the one that was scored (its bytes differ); give --input, the folder of that one, or"
    " score it again"
)


class VideoMissingError(Exception):
    """A clip's video that cannot be shown; its text is for the reader."""


class Videos:
    """The videos of clips, by rows of `Labels.database`'s table `clips`.

    A large one in a store is read by ranges, a smaller one is copied. What was read lies in a scratch folder, and what
    was used longest ago goes where it is more than `cache_bytes` in all. Can be used by several threads. input_url:
    where the videos lie now; by default where they lay when they were scored. allow_private_hosts: also at addresses of
    private networks that a manifest named.
    """

    def __init__(
        self,
        input_url: str | None,
        *,
        cache_bytes: int = 8 * 2**30,
        num_children: int = 1,
        allow_private_hosts: bool = False,
    ) -> None:
        let_reach(reach_of(input_url, allow_private_hosts=allow_private_hosts))
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
        self._ranged: dict[str, KeptFile | None] = {}
        self._contents, self._hashing = LocalContents(), threading.Lock()
        self._copied_as: dict[str, str] = {}
        self._is_closed = False
        self._members = MemberReader(partial(open_archive, contents=LocalContents()))

    def close(self) -> None:
        """End the children and remove the copies. Whoever asks from now on is refused."""
        self._is_closed = True
        for lock, sandbox in zip(self._locks, self._sandboxes, strict=True):
            if not lock.acquire(timeout=END_SECONDS):
                if (pid := sandbox.pid) is not None:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)  # Nobody waits for its answer any more.
                lock.acquire()
            sandbox.close()
            lock.release()
        self._members.close()
        self._scratch.close()

    def start(self) -> None:
        """Start the children before they are needed. What keeps one from starting is said when it is needed."""
        place = None if self._root is None else local_path(self._root)
        for lock, sandbox in zip(self._locks, self._sandboxes, strict=True):
            with lock, suppress(SandboxError, SandboxStartError):
                if place is not None and os.path.isdir(place):
                    sandbox.let_read(os.path.join(place, "clip"), name="clip")
                sandbox.start()

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

    def found(self, clip: dict[str, Any]) -> Path | KeptFile:
        """The clip's video: a file of this machine, copied there if need be, or one that is read by ranges.

        Raises VideoMissingError.
        """
        url = self.url_of(clip)
        place = local_path(url)
        try:
            if place is not None and not is_member(url):
                if not os.path.isfile(place):
                    raise VideoMissingError(f"no file at {place}; give --input, the folder of the videos")
                if may_read_without_capabilities(place):
                    return Path(place)
            with self._copying:
                return self._by_ranges(clip, url) or self._copy(clip, url)
        except ArchiveError as error:
            raise VideoMissingError(str(error)) from None
        except FileNotFoundError:
            raise VideoMissingError(f"no file at {url}; give --input, the folder of the videos") from None
        except (StorageError, OSError) as error:
            raise VideoMissingError(str(error)) from None

    def _by_ranges(self, clip: dict[str, Any], url: str) -> KeptFile | None:
        if is_member(url) or local_path(url) is not None:
            return None
        known = self._ranged.get(url)
        if url not in self._ranged or (known is not None and known.is_stale):
            target = self.folder / "ranges" / f"{clip['clip_id']}-{secrets.token_hex(4)}"
            self._ranged[url] = kept_file(url, target, at_least=MIN_RANGED_BYTES, make_room=self.make_room)
        return self._ranged[url]

    def _copy(self, clip: dict[str, Any], url: str) -> Path:
        target = self.folder / "copies" / clip["clip_id"]
        if target.exists():
            os.utime(target)
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            made = Path(folder) / "clip"
            if is_member(url):
                self._members.copy(url, made, content_id=clip["content_id"])
            elif (place := local_path(url)) is not None:
                shutil.copyfile(place, made)
            else:
                self._copied_as[clip["clip_id"]] = content_id_at(url)
                fetch(url, made, size_bytes=None)
            self.make_room(made.stat().st_size)
            os.replace(made, target)
        return target

    def make_room(self, num_bytes: int) -> None:
        """Delete the copies and conversions that were used longest ago, until as many bytes are free."""
        files = []
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # Another thread has just moved or deleted it.
                status = path.stat()
                if stat.S_ISREG(status.st_mode) and path.parent != self.folder:
                    files.append((path, status))
        facts = sorted((status.st_mtime, 512 * status.st_blocks, path) for path, status in files)
        total = sum(size for _, size, _ in facts) + num_bytes
        for _, size, path in facts:
            if total <= self._cache_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def is_changed(self, clip: dict[str, Any]) -> bool:
        """Whether another file lies there than was scored: boxes of one must not be drawn on the other.

        Raises VideoMissingError.
        """
        video, size = self.found(clip), clip.get("size_bytes")
        if self.has_other_size(clip):
            return True
        url, content_id = self.url_of(clip), clip.get("content_id") or ""
        if is_member(url) or not size or content_id in UNKNOWN:
            return False
        if isinstance(video, KeptFile) or (url == clip["url"] and local_path(url) is None):
            now = video.content_id if isinstance(video, KeptFile) else self._copied_as.get(clip["clip_id"], "")
            return url == clip["url"] and now not in ("", content_id)
        if local_path(clip["url"] or "") is None or not is_md5(content_id):
            return False  # What its store said of it then need not be an MD5: the size has to do.
        with self._hashing:
            try:
                self._contents.verify(str(video), content_id)
            except ContentChangedError:
                return True
            except OSError as error:
                raise VideoMissingError(f"{clip['path']} cannot be read: {error}") from None
        return False

    def has_other_size(self, clip: dict[str, Any]) -> bool:
        """Whether the file has another size than what was scored. Raises VideoMissingError."""
        size, video = clip.get("size_bytes"), self.found(clip)
        return bool(size) and not is_member(clip["url"] or "") and _size_of(video) != size

    def is_long_to_tell(self, clip: dict[str, Any]) -> bool:
        """Whether `is_changed` has to read a large file. Raises VideoMissingError."""
        video = self.found(clip)
        return not isinstance(video, KeptFile) and _size_of(video) > SOON_HASHED_BYTES

    def require_scored(self, clip: dict[str, Any]) -> None:
        """Raise VideoMissingError where the clip's video is not there, or another file in its place."""
        if self.is_changed(clip):
            raise VideoMissingError(OTHER.format(path=clip["path"]))

    def version(self, clip: dict[str, Any]) -> str:
        """What changes when the file does. Raises VideoMissingError."""
        return _version(self.found(clip))

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
        try:
            return self._asked(what, clip, child, options)
        except ContentChangedError:  # Another file lies there since it was opened: now it is read.
            pass
        try:
            return self._asked(what, clip, child, options)
        except ContentChangedError as error:
            raise VideoMissingError(f"{clip['path']} cannot be read: {error}") from None

    def _asked(self, what: str, clip: dict[str, Any], child: int, options: dict[str, Any]) -> list[Any]:
        video = self.found(clip)
        number = child % len(self._sandboxes)
        with self._locks[number]:
            if self._is_closed:
                raise VideoMissingError(f"{clip['path']} is shown no more")
            sandbox = self._sandboxes[number]
            task: dict[str, Any] = {"what": what, "options": options}
            if isinstance(video, KeptFile):
                name = f"{clip['clip_id']} {_version(video)}"
                task["file"], answer = [name, video.size_bytes], partial(_part_of, video)
            else:
                sandbox.let_read(str(video), name=clip["path"])
                task["path"], answer = str(video), None
            try:
                items, _ = sandbox.run(task, answer=answer)
            except SandboxError as error:
                raise VideoMissingError(f"{clip['path']} cannot be shown: {error.detail}") from None
            except ContentChangedError:
                raise
            except OSError as error:
                raise VideoMissingError(f"{clip['path']} cannot be read: {error}") from None
        return items


def _size_of(video: Path | KeptFile) -> int:
    return video.size_bytes if isinstance(video, KeptFile) else video.stat().st_size


def _version(video: Path | KeptFile) -> str:
    if isinstance(video, KeptFile):
        return f"{video.size_bytes} {video.content_id}"
    status = video.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _part_of(video: KeptFile, asked: Any) -> bytes:
    """The bytes that a child asks for. Raises SandboxError for what it cannot ask."""
    match asked:
        case ["read", int(offset), int(num_bytes)] if offset >= 0 and 0 < num_bytes <= MAX_PART_BYTES:
            return video.read(offset, offset + num_bytes)
    raise SandboxError("bad_answer", "what the worker asked for is nothing", stage="answer", fatal=True)


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
