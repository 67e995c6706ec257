"""One clip in, its examples and its outcome out: decode, detect and crop.

`ClipExtractor` runs in an actor and holds the sandbox. In the sandboxed child, the only place where foreign bytes meet
a decoder, runs all of it (`build_work`) or, where a detector that many actors share is given, the decoding alone
(`build_decoding`). Either way `extracted` chooses frames, boxes and crops. What the child answers is checked before it
is believed (`example_of`, `frame_of`, `facts_of`): it names neither its clip nor the label.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.faces.detector import SHARED_BATCH_PX, Detect, DetectionError
from pipeline.faces.given_boxes import read_boxes
from pipeline.faces.landmarks import Landmarks
from pipeline.faces.spec import detector_spec
from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.examples import extracted, join_words
from pipeline.preprocess.local_copies import SCRATCH_PREFIX, error_in_words, has_grown, local_file, open_archive
from pipeline.preprocess.sandboxed import (
    MAX_LETTERS,
    build_decoding,
    build_work,
    child_options,
    example_of,
    facts_of,
    frame_of,
    report_of,
    shortened,
)
from pipeline.records.clips import Clip, whole_id
from pipeline.records.faces import AlignedExample, Example
from pipeline.records.outcomes import GROWING, Outcome, State
from pipeline.sandbox.limits import SandboxError, SandboxLimits, SandboxStartError
from pipeline.sandbox.supervisor import Sandbox
from pipeline.storage.archives.members import archive_of, is_member
from pipeline.storage.archives.parts import ArchiveError
from pipeline.storage.archives.reading import MemberReader
from pipeline.storage.contents import LocalContents
from pipeline.storage.redaction import redacted
from pipeline.storage.remote import local_path
from pipeline.storage.retry import ContentChangedError, FileGrewError, StoreLostError
from pipeline.storage.scratch import ScratchFolder, sweep
from pipeline.video.frames import Cuts, DecodeReport, Frame

MAX_TRIES = 2


MAX_TRIES_KILLED = 3


# Clips in a row that a store did not give after all tries, half a minute each: then it is down, not the clip.
MAX_UNREACHED = 8


class ClipExtractor:
    """Extracts clips one after the other, each in the sandbox; whatever a clip does, it ends as an Outcome.

    shared_detect: a detector outside this process, for batches of frames; then the sandboxed child only decodes.
    finds_cuts: look at every frame for where shots begin; `cuts` are those of the clip that was extracted last, None
    where they are not known. chips: cut each face out upright too (`Example.chip_jpeg`).
    """

    def __init__(
        self,
        config: ExtractConfig,
        *,
        limits: SandboxLimits,
        shared_detect: Detect | None = None,
        finds_cuts: bool = False,
        chips: bool = False,
    ) -> None:
        self._config = config
        self._finds_cuts = finds_cuts
        self._chips = chips
        self._landmarks = None if shared_detect is None else Landmarks()
        self.cuts: Cuts | None = None
        self._shared_detect = shared_detect
        self._num_unreached = 0
        self._boxes = read_boxes(config.boxes) if config.boxes is not None else {}
        self._contents = LocalContents()
        self._members = MemberReader(functools.partial(open_archive, contents=self._contents))
        self._film = contextlib.ExitStack()
        self._film_of: tuple[str, str] | None = None
        self._film_path: Path | None = None
        sweep(SCRATCH_PREFIX)
        self._scratch = ScratchFolder(SCRATCH_PREFIX)  # For copies of clips, and links to them.
        # A fork server reads these when it starts: one thread a worker, because there is a worker a core. For libraries
        # beside PyTorch, which `build_work` tells.
        os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
        build = build_work if shared_detect is None else build_decoding
        options = child_options(config, only_decodes=shared_detect is not None, folder=self._scratch.path)
        self.sandbox = Sandbox(build, {"config": config}, limits=limits, **options)

    def close(self) -> None:
        """End the sandbox, and remove copies of clips."""
        self._forget_film()
        self.sandbox.close()
        self._scratch.close()

    def facts(self) -> dict[str, Any]:
        """What the sandbox has seen so far: children started, how many in place of one that had grown, the most
        resident memory of one (bytes), the wall time of each stage (seconds), and what they were kept from
        (`confine`)."""
        return {
            "children_started": self.sandbox.num_starts,
            "children_recycled": self.sandbox.num_recycled,
            "peak_child_memory_bytes": self.sandbox.peak_memory_bytes,
            "stage_seconds": {stage: round(each, 3) for stage, each in sorted(self.sandbox.stage_seconds.items())},
            **self.sandbox.confinement,
        }

    def extract(self, clip: Clip) -> tuple[list[Example], Outcome]:
        """The clip's examples in order, and how it ended. Never raises for what the clip's bytes do.

        A clip that kills its child, asks for too much memory or raises something unforeseen is tried again once in a
        fresh child, and is then quarantined. One whose child was killed from outside is tried twice more and is then
        retryable: the next clip would have met the same. Raises StoreLostError for what every other clip would meet
        too: nothing is known against this one.
        """
        started = time.monotonic()
        self.cuts = None

        def ended(state: State, *, detail: str | None = None, **facts: Any) -> Outcome:
            seconds = round(time.monotonic() - started, 3)
            detail = None if detail is None else redacted(detail)
            return Outcome(clip_id=clip.clip_id, path=clip.path, state=state, detail=detail, seconds=seconds, **facts)

        try:
            with self._fetched(clip) as path:
                self._num_unreached = 0
                found = self._run(clip, path, ended)
            self._require_unchanged(clip)
            return found
        except ContentChangedError as error:
            self._forget_film()
            if isinstance(error, FileGrewError) or has_grown(clip):
                detail = "it has grown since it was listed, and is still being written; its whole is read later"
                return [], ended(State.RETRYABLE, reason=GROWING, stage="fetch", detail=detail)
            return [], ended(State.CHANGED, reason="other_bytes", stage="fetch", detail=str(error))
        except ArchiveError as error:
            return [], ended(State.QUARANTINED, reason=error.reason, stage="unpack", detail=str(error))
        except FileNotFoundError:
            return [], ended(State.QUARANTINED, reason="missing", stage="fetch", detail=f"no file at {clip.path}")
        except StoreLostError as error:
            if error.errno != errno.ENOENT or clip.content_id != "missing":
                raise
            # One row of a manifest named a bucket that was never there; a bucket that went away ends the run.
            return [], ended(State.QUARANTINED, reason="missing", stage="fetch", detail=str(error))
        except OSError as error:
            detail = error_in_words(error)
            url = archive_of(clip.url) if is_member(clip.url) else clip.url
            if local_path(url) is not None and isinstance(error, PermissionError | IsADirectoryError):
                return [], ended(State.QUARANTINED, reason="unreadable", stage="fetch", detail=detail)
            # This one may be forbidden and the next be not; and whoever writes a manifest names any web server.
            self._num_unreached += error.errno != errno.EACCES and urlsplit(url).scheme.lower() not in ("http", "https")
            if self._num_unreached >= MAX_UNREACHED:
                raise StoreLostError(f"{detail}; so did the {MAX_UNREACHED - 1} clips before") from None
            return [], ended(State.RETRYABLE, reason="store_failed", stage="fetch", detail=detail)

    @contextlib.contextmanager
    def _fetched(self, clip: Clip) -> Iterator[Path]:
        """The clip as a local file under a neutral name. Raises ArchiveError and OSError."""
        copies = str(self._scratch.path)
        if whole_id(clip.clip_id) != clip.clip_id:
            film = clip.url, clip.content_id
            if self._film_of != film:  # The next segment of this actor is mostly one of the same film.
                self._forget_film()  # Should the next one not be there.
                self._film_path = self._film.enter_context(local_file(clip, copies=copies, contents=self._contents))
                self._film_of = film
            assert self._film_path is not None
            yield self._film_path
            return
        self._forget_film()
        if not is_member(clip.url):
            with local_file(clip, copies=copies, contents=self._contents) as path:
                yield path
            return
        with tempfile.TemporaryDirectory(dir=copies) as folder:
            neutral = Path(folder) / "clip"
            self._members.copy(clip.url, neutral, content_id=clip.content_id)
            yield neutral

    def _forget_film(self) -> None:
        """Let go of the film that the last segment was of."""
        self._film.close()
        self._film_of = None

    def _require_unchanged(self, clip: Clip) -> None:
        """Raise ContentChangedError where the local file that a clip was read from is another by now."""
        local = local_path(archive_of(clip.url) if is_member(clip.url) else clip.url)
        if local is not None:
            self._contents.require_unchanged(local)

    def _run(self, clip: Clip, path: Path, ended: Callable[..., Outcome]) -> tuple[list[Example], Outcome]:
        local = local_path(clip.url)
        if local is not None and not is_member(clip.url):
            self.sandbox.let_read(local, name=clip.path)
        boxes = self._boxes.get(clip.path, [])
        task = {"clip": clip, "path": path, "boxes": boxes, "finds_cuts": self._finds_cuts, "chips": self._chips}
        limits = self.sandbox.limits
        left_seconds = limits.clip_seconds
        for attempt in range(1, MAX_TRIES_KILLED + 1):
            begun = time.monotonic()
            # The child stops by itself, between two frames; where it does not, it is stopped.
            task["budget"] = (max(0.0, left_seconds), limits.clip_pixels)
            seconds = max(0.0, left_seconds) + limits.timeout_seconds
            try:
                self.sandbox.start()
                begun = time.monotonic()
                examples, facts = self._examples(task, seconds=seconds)
            except DetectionError as error:
                facts = {"reason": "detector_failed", "stage": "detect", "detail": str(error)}
                return [], ended(State.RETRYABLE, attempts=attempt, **facts)
            except SandboxError as error:
                left_seconds -= time.monotonic() - begun
                was_killed = error.reason == "killed"
                may_differ = (error.fatal and error.reason != "over_budget") or error.reason in ("exception", "memory")
                if may_differ and attempt < (MAX_TRIES_KILLED if was_killed else MAX_TRIES):
                    self.sandbox.restart()
                    continue
                facts = {"reason": error.reason, "stage": error.stage, "detail": error.detail}
                state = State.RETRYABLE if was_killed else State.QUARANTINED
                return [], ended(state, attempts=attempt, **facts)
            cuts = facts.pop("cuts")
            if facts["decode_integrity"] < self._config.min_decode_integrity:
                return [], ended(State.QUARANTINED, attempts=attempt, **self._dropped(facts))
            self.cuts = cuts
            cut_off = "over_budget" if facts["num_frames_over_budget"] else None
            if examples:
                return examples, ended(State.DONE, attempts=attempt, reason=cut_off, **facts)
            reason = cut_off or ("no_box_given" if self._config.boxes is not None else "no_face_found")
            seen = f"no face in {facts['num_frames']} sampled frames"
            detail = join_words(join_words(seen, facts.pop("detail")), self._untried(), between="; ")
            return [], ended(State.NO_FACE, attempts=attempt, reason=reason, stage="detect", detail=detail, **facts)
        raise AssertionError("unreachable")

    def _untried(self) -> str | None:
        """What was looked for, and what would find more; None where all was tried."""
        config = self._config
        if config.boxes is not None or config.upsample or config.retry_upsample:
            return None
        flag = "--retry-upsample" if detector_spec(config.detector).finds_more_upsampled else "--upsample 1"
        return f"{config.detector} looked for faces of about 80 px and more: {flag} finds those of 40 px"

    def _dropped(self, facts: dict[str, Any]) -> dict[str, Any]:
        """The facts of a clip that decoded too badly for its examples to be kept."""
        integrity, least = facts["decode_integrity"], self._config.min_decode_integrity
        num_dropped = facts["num_examples"]
        detail = (
            f"decode_integrity {integrity:.3f} is below --min-decode-integrity {least:g}: {facts['detail']}; "
            f"{num_dropped} examples dropped"
        )
        counts = {"num_examples": 0, "num_examples_dropped": num_dropped}
        reason = "over_budget" if facts["num_frames_over_budget"] else "low_integrity"
        return {**facts, **counts, "reason": reason, "stage": "decode", "detail": detail}

    def _examples(self, task: dict[str, Any], *, seconds: float) -> tuple[list[Example], dict[str, Any]]:
        """The task's examples and facts. Raises SandboxError and DetectionError."""
        if self._shared_detect is None:
            num_bytes = 0

            def keep(plain: Any) -> Example:
                nonlocal num_bytes
                example = example_of(plain, task["clip"], self._config, chips=self._chips)
                num_bytes += len(example.face_jpeg) + len(example.context_jpeg)
                num_bytes += len(example.chip_jpeg) if isinstance(example, AlignedExample) else 0
                self.sandbox.require_room(num_bytes)
                return example

            with _sound(self.sandbox):
                examples, told = self.sandbox.run(task, keep=keep, seconds=seconds)
                return examples, facts_of(told, num_examples=len(examples))
        assert self._landmarks is not None
        stages = {"now": "start"}
        running = extracted(
            task,
            self._config,
            decode=functools.partial(_frames, self.sandbox, task, seconds=seconds),
            detect=self._shared_detect,
            landmarks=self._landmarks,
            stage=functools.partial(stages.__setitem__, "now"),
            batch_px=SHARED_BATCH_PX,
        )
        examples = []
        try:
            while True:
                examples.append(next(running))
        except StopIteration as end:
            facts = end.value
            return examples, {**facts, "detail": facts["detail"] and shortened(facts["detail"])}
        except (SandboxError, SandboxStartError, DetectionError):
            raise
        except Exception as error:  # one clip's error, as the sandbox tells it of its child
            detail = f"{type(error).__name__}: {error}"[:2000]
            raise SandboxError("exception", detail, stage=stages["now"], fatal=False) from error


def _frames(sandbox: Sandbox, task: dict[str, Any], *, seconds: float) -> Generator[Frame, None, DecodeReport]:
    """The frames that the sandboxed child decodes. Raises SandboxError."""
    with contextlib.closing(sandbox.stream(task, seconds=seconds)) as running:
        while True:
            try:
                item = next(running)
            except StopIteration as end:
                with _sound(sandbox):
                    return report_of(end.value)
            with _sound(sandbox):
                frame = frame_of(item)
            yield frame


@contextlib.contextmanager
def _sound(sandbox: Sandbox) -> Iterator[None]:
    """End a child whose answer proves to be none."""
    try:
        yield
    except ValueError as error:
        sandbox.restart()
        detail = f"what the worker answered is not sound: {error}"[:MAX_LETTERS]
        raise SandboxError("bad_answer", detail, stage="answer", fatal=True) from None
