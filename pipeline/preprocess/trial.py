"""A made image through the sandbox, before anything is planned: a fault of our own code shows itself there.

What a clip raises in the sandbox costs that clip alone, because its bytes may be hostile. These bytes are ours, so what
they raise is a fault of the program or of the installation, and it is the same for every clip.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.faces.crops import encode_image
from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.sandboxed import (
    build_decoding,
    build_work,
    child_options,
    example_of,
    facts_of,
    frame_of,
    report_of,
)
from pipeline.records.clips import Clip
from pipeline.records.faces import Box, Example
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import log_status
from pipeline.sandbox.limits import SandboxError, SandboxLimits
from pipeline.sandbox.supervisor import Sandbox
from pipeline.storage.scratch import ScratchFolder

IMAGE_PX = 160
FACE = Box(20, 30, 110, 130)
MAX_TRIES = 3
CURES = {
    "memory": "give --max-worker-memory more, which a worker needs for itself",
    "hang": "give --clip-timeout more seconds",
    "killed": "the machine ends our workers: free memory, or give --actors fewer",
}


class OwnFault(Exception):
    """A fault of our own code on an image of our own; it ends a job with code 1 and the traceback."""


def made_clip(path: Path) -> Clip:
    """The made image as a file, and the clip that it is."""
    path.write_bytes(encode_image(made_image(), image_format="png"))
    return Clip(clip_id="0" * 20, path=path.name, url=str(path), size_bytes=path.stat().st_size, content_id="made")


def made_image() -> np.ndarray:
    """(160, 160, 3) uint8 RGB: waves of colour, no face."""
    x, y = np.meshgrid(np.arange(IMAGE_PX), np.arange(IMAGE_PX))
    waves = (np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11))
    return (128 + 100 * np.stack(waves, axis=2)).astype(np.uint8)


def made_example() -> Example:
    """An example whose face and context are the made image."""
    encoded = encode_image(made_image())
    return Example(
        clip_id="0" * 20,
        frame_index=0,
        pts_seconds=0.0,
        face_index=0,
        box=FACE,
        face_score=1.0,
        frame_width=IMAGE_PX,
        frame_height=IMAGE_PX,
        face_jpeg=encoded,
        context_jpeg=encoded,
    )


def try_extraction(
    config: ExtractConfig,
    *,
    limits: SandboxLimits,
    only_decode: bool = False,
    tell: Callable[[str], None] = log_status,
) -> list[Example]:
    """Decode, detect and crop a made image in the sandbox, as an actor would; its examples, mostly none.

    Args:
        config: with `auto` resolved.
        limits: of the child.
        only_decode: where faces are detected elsewhere.
        tell: takes a line for the terminal, where the child may read more than it should.

    Raises:
        OwnFault: with the traceback of the child, where it failed.
    """
    build = build_decoding if only_decode else build_work
    scratch = ScratchFolder()
    try:
        clip = made_clip(scratch.path / "made.png")
        options = child_options(config, only_decodes=only_decode, folder=scratch.path)
        with Sandbox(build_trial, {"build": build, "config": config}, limits=limits, **options) as sandbox:
            items, told, trace = _answer(sandbox, {"clip": clip, "path": Path(clip.url), "boxes": [FACE]})
            if sandbox.fault_of_build is not None:
                tell(
                    f"the decoding child may read all files of this user: {sandbox.fault_of_build}, where it reads its"
                    " libraries alone; install into the environment of this Python what it needs"
                )
    finally:
        scratch.close()
    if trace is not None:
        raise OwnFault(f"a made image, which has no fault, raised in the sandbox:\n{trace}")
    if only_decode:
        report_of(told)
        for item in items:
            frame_of(item)
        return []
    examples = [example_of(item, clip, config) for item in items]
    facts_of(told, num_examples=len(examples))
    return examples


def _answer(sandbox: Sandbox, task: dict[str, Any]) -> tuple[list[Any], Any, str | None]:
    """The items, what the work returned, and the traceback of what it raised. Raises OwnFault and UsageError."""
    for attempt in range(1, MAX_TRIES + 1):
        try:
            items, (told, trace) = sandbox.run(task)
            return items, told, trace
        except SandboxError as error:
            if error.reason == "killed" and attempt < MAX_TRIES:
                continue  # From outside, which says nothing of our code.
            if error.reason in CURES:
                raise UsageError(f"a made image of {IMAGE_PX} pixels: {error.detail}; {CURES[error.reason]}") from None
            raise OwnFault(f"a made image ended as {error.reason} in {error.stage}: {error.detail}") from error
    raise AssertionError("unreachable")


def build_trial(build: Callable[..., Any], config: ExtractConfig) -> Callable[..., Generator[Any, None, Any]]:
    """The work of `build` that answers what it returned, and the traceback of what it raised or None."""
    work = build(config)

    def tried(task: dict[str, Any], stage: Callable[[str], None]) -> Generator[Any, None, Any]:
        try:
            return (yield from work(task, stage)), None
        except Exception:  # noqa: BLE001 - told with its traceback, which a clip's fault is not
            return None, traceback.format_exc()

    return tried
