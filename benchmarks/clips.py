"""The clips that are measured on: those given that decode, read in a sandbox."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.read import read_corpus
from pipeline.preprocess.examples import IMAGE_SUFFIXES
from pipeline.records.clips import Clip
from pipeline.records.vocabulary import UsageError
from pipeline.sandbox.limits import SandboxError
from pipeline.sandbox.supervisor import Sandbox
from pipeline.storage.remote import local_path
from pipeline.video.frames import Sampling
from pipeline.video.open import open_clip


def usable_clips(source: str, *, most: int) -> list[Clip]:
    """Up to `most` local videos of the input that decode. Raises UsageError if there is none."""
    clips = []
    with Sandbox(build_middle_frame, {}) as sandbox:
        for clip in read_corpus(source, split_fractions=None).clips:
            if clip.path.lower().endswith(IMAGE_SUFFIXES):
                continue
            if local_path(clip.url) is None:
                raise UsageError(f"--clips: {clip.url} is not on this machine; copy the clips here first")
            with contextlib.suppress(SandboxError):
                sandbox.run(local_path(clip.url))
                clips.append(clip)
            if len(clips) == most:
                break
    if not clips:
        raise UsageError(f"--clips: no video at {source} decodes; give others, or leave it out")
    return clips


def repeated(clips: Sequence[Clip], folder: Path, *, num: int) -> list[Clip]:
    """`num` clips with ids of their own: the given ones again and again, linked into `folder` under other names."""
    folder.mkdir()
    copies = []
    for number in range(num):
        name = f"{number:06d}{Path(clips[number % len(clips)].path).suffix}"
        if number < len(clips):
            copies.append(shutil.copyfile(local_path(clips[number].url) or "", folder / name))
        else:
            os.link(copies[number % len(clips)], folder / name)
    return list(read_corpus(str(folder), split_fractions=None).clips)


def middle_frames(clips: Sequence[Clip]) -> list[np.ndarray]:
    """The middle frame of each clip, which decodes: (H, W, 3) uint8 RGB."""
    with Sandbox(build_middle_frame, {}) as sandbox:
        return [sandbox.run(local_path(clip.url))[1] for clip in clips]


def build_middle_frame() -> Callable[..., Generator[Any, None, np.ndarray]]:
    """The sandboxed child's work: a path to the middle frame of its clip."""

    def work(path: str, stage: Callable[[str], None]) -> Generator[Any, None, np.ndarray]:
        stage("decode")
        yield from ()
        (frame,) = open_clip(Path(path), Sampling(frames_per_clip=1))
        return frame.image

    return work
