"""What a child process does with a video for the viewer and the exports: tasks in, plain values out."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator
from dataclasses import asdict
from typing import Any

from pipeline.storage.asked import AskedFile
from pipeline.video.annotate import crops_at, drawn_video
from pipeline.video.boxes import tracks_of
from pipeline.video.convert import converted, picture_at, video_facts

PART_BYTES = 8 * 2**20
BUFFER_BYTES = 2**17


def build_media() -> Callable[[Any, Any], Generator[Any, None, Any]]:
    """The work: `facts`, `picture`, `convert`, `draw` or `crops`, each with the arguments of its function.

    A task names a local `path`, or the `file` (its name and size in bytes) that is asked of the parent. Tracks are
    given as plain values (`hidden`, `step_seconds`; see `boxes.tracks_of`).
    """

    def work(task: dict[str, Any], stage: Any) -> Generator[Any, None, Any]:
        what, options = task["what"], dict(task["options"])
        path: Any = task.get("path")
        if path is None:
            name, size_bytes = task["file"]
            path = io.BufferedReader(AskedFile(stage, size_bytes, name=name), BUFFER_BYTES)
        stage(what)
        if "hidden" in options:
            options["hidden"] = tracks_of(options["hidden"], step_seconds=options.pop("step_seconds"))
        if what == "facts":
            yield asdict(video_facts(path))
        elif what == "picture":
            yield picture_at(path, **options)
        elif what == "convert":
            yield converted(path, **options)
        elif what == "draw":
            tracks = options.pop("hidden")
            made = drawn_video(path, tracks=tracks, tell=lambda _: stage("draw"), **options)
            for start in range(0, len(made), PART_BYTES):
                yield bytes(made[start : start + PART_BYTES])
        elif what == "crops":
            yield from crops_at(path, **options)
        return None

    return work
