"""What a child process does with a video for the viewer and the exports: tasks in, plain values out."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import asdict
from typing import Any

from pipeline.video.annotate import crops_at, drawn_video
from pipeline.video.boxes import tracks_of
from pipeline.video.convert import converted, picture_at, video_facts

PART_BYTES = 8 * 2**20


def build_media() -> Callable[[Any, Callable[[str], None]], Generator[Any, None, Any]]:
    """The work: `facts`, `picture`, `convert`, `draw` or `crops`, each with the arguments of its function.

    Tracks are given as plain values (`hidden`, `step_seconds`; see `boxes.tracks_of`).
    """

    def work(task: dict[str, Any], stage: Callable[[str], None]) -> Generator[Any, None, Any]:
        path, what, options = task["path"], task["what"], dict(task["options"])
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
                yield made[start : start + PART_BYTES]
        elif what == "crops":
            yield from crops_at(path, **options)
        return None

    return work
