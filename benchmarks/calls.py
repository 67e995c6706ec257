"""How far a reader walks: changes of file on a clip's way to its shard, and on a night's, by a profile of calls."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from rich.table import Table

import pipeline
from benchmarks.clips import repeated
from benchmarks.config import BenchmarkConfig
from benchmarks.tables import table
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.planning import plan_clips
from pipeline.ledger.units import Unit
from pipeline.models.checkpoint_info import read_checkpoint_info
from pipeline.preprocess.config import KIND, PreprocessConfig, extract_config_of, plan_config_of, versions
from pipeline.preprocess.detectors import resolved
from pipeline.preprocess.job import PreprocessActor, preprocess
from pipeline.preprocess.sandboxed import build_work
from pipeline.records.clips import Clip, clip_table
from pipeline.score.actor import ScoreActor
from pipeline.score.config import ScoreConfig
from pipeline.score.job import score
from pipeline.score.reading import reading_config
from pipeline.storage.remote import local_path

DETECTOR = "dlib-hog"  # The one that starts at once; every other is called alike.
BASELINE = "baseline"
NUM_SHOWN = 5
SHOWN = ("functions", "files", "changes", "straight_back", "folder_changes", "folder_straight_back")


class Walk:
    """The files of the package in the order in which their functions run, each function where it is called first.

    root: folder of the package. files: of the caller, of what it calls, and of the caller again once that returns or
    yields, below `root`.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self.files: list[str] = []
        self._seen: set[CodeType] = set()
        self._stack: list[tuple[str, bool]] = []

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow what this thread calls."""
        before = sys.getprofile()
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(before)
            self._stack.clear()

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if (
            event not in ("call", "return")
            or not code.co_filename.startswith(f"{self._root}/")
            or code.co_name == "<module>"
        ):
            return
        if event == "call":
            file, is_new = code.co_filename[len(self._root) + 1 :], code not in self._seen
            self._seen.add(code)
            if is_new:
                self.files += [*([self._stack[-1][0]] if self._stack else []), file]
            self._stack.append((file, is_new))
        elif self._stack:
            _, was_new = self._stack.pop()
            if was_new and self._stack:
                self.files.append(self._stack[-1][0])

    def counts(self) -> dict[str, Any]:
        """Functions and files; changes of file and of folder, and those that go back at once; the files that are left
        straight back most often, with the file that they go back to."""
        stations = _stations(self.files)
        folders = _stations([file.rpartition("/")[0] for file in self.files])
        back = _straight_back(stations)
        return {
            "functions": len(self._seen),
            "files": len(set(stations)),
            "changes": max(len(stations) - 1, 0),
            "straight_back": len(back),
            "folder_changes": max(len(folders) - 1, 0),
            "folder_straight_back": len(_straight_back(folders)),
            "most_often": [[*pair, count] for pair, count in Counter(back).most_common(NUM_SHOWN)],
        }


def _stations(places: Sequence[str]) -> list[str]:
    """The places without those that follow themselves."""
    return [place for number, place in enumerate(places) if number == 0 or place != places[number - 1]]


def _straight_back(stations: Sequence[str]) -> list[tuple[str, str]]:
    """Each station from which the way goes on to the one before it, and that one."""
    return [
        (there, here) for here, there, again in zip(stations, stations[1:], stations[2:], strict=False) if here == again
    ]


def measure(clips: Sequence[Clip], folder: Path, *, config: BenchmarkConfig) -> dict[str, Any]:
    """Follow one clip through preprocess, and through a night of score: the job's process, an actor, and its child."""
    (clip,) = repeated(clips[:1], folder / "calls", num=1)
    return {
        "frames_per_clip": config.frames_per_clip,
        "ways": {
            "a clip to its shard": _way(partial(_preprocess, clip, folder, config=config)),
            "a night": _way(partial(_score, clip, folder)),
        },
    }


def _way(follow: Callable[[Walk], None]) -> dict[str, Any]:
    walk = Walk(str(Path(pipeline.__file__).parent))
    follow(walk)
    return walk.counts()


def _preprocess(clip: Clip, folder: Path, walk: Walk, *, config: BenchmarkConfig) -> None:
    job = PreprocessConfig(
        input=str(folder / "calls"),
        output=str(folder / "calls-examples"),
        detector=DETECTOR,
        frames_per_clip=config.frames_per_clip,
        page=False,
    )
    with walk.followed():
        preprocess(job)
    extract = resolved(extract_config_of(job))
    output = str(folder / "calls-actor")
    actor = PreprocessActor(ledger_url=output, config=extract, limits=job.limits)
    _follow_actor(walk, actor, _unit_of(clip, output, plan_config_of(extract)))
    _follow_child(walk, clip, extract)


def _score(clip: Clip, folder: Path, walk: Walk) -> None:
    job = ScoreConfig(input=str(folder / "calls"), output=str(folder / "calls-labels"), checkpoint=BASELINE, page=False)
    with walk.followed():
        score(job)
    info = read_checkpoint_info(BASELINE, job.epoch)
    asked = replace(reading_config(job, info), detector=DETECTOR, detector_precision="auto", retry_upsample=False)
    extract = resolved(asked)
    output = str(folder / "calls-night")
    actor = ScoreActor(
        ledger_url=output,
        config=extract,
        limits=job.limits,
        checkpoint=BASELINE,
        which=info["epoch"],
        device="cpu",
        batch_size=job.batch_size,
        abstain_below=0.0,
        day="2026-01-01",
    )
    _follow_actor(walk, actor, _unit_of(clip, output, plan_config_of(extract)))
    _follow_child(walk, clip, extract)


def _unit_of(clip: Clip, output: str, plan_config: Mapping[str, Any]) -> Unit:
    options = {"kind": KIND, "config": plan_config, "versions": versions(), "clips_per_shard": 1}
    snapshot, _ = plan_clips(Ledger(output), clip_table([clip]), **options)
    (unit,) = snapshot.pending()
    return unit


def _follow_actor(walk: Walk, actor: PreprocessActor | ScoreActor, unit: Unit) -> None:
    with walk.followed():
        actor.run(unit)
    actor._extractor.sandbox.close()  # Else its child lives as long as this process.


def _follow_child(walk: Walk, clip: Clip, config: Any) -> None:
    """What the sandboxed child does, in this process: the clip is one of ours."""
    work = build_work(config)
    task = {"clip": clip, "path": local_path(clip.url), "boxes": []}
    with walk.followed():
        for _ in work(task, lambda _: None):
            pass


def tables(measured: Mapping[str, Any]) -> list[Table]:
    """A row a way, and where it goes back and forth most."""
    ways = measured["ways"]
    rows = [[name, *(str(way[key]) for key in SHOWN)] for name, way in ways.items()]
    turns = [[name, there, here, str(count)] for name, way in ways.items() for there, here, count in way["most_often"]]
    return [
        table("Each function where it is called first", ["way", *(name.replace("_", " ") for name in SHOWN)], rows),
        table("Left straight back most often", ["way", "file", "back to", "times"], turns),
    ]
