"""Three nights on real clips and archives of them, and a film of an hour beside one of a minute: what each costs.

Every night is `python jobs/score.py` as a user starts it, so that its seconds hold the start of Python and Ray. The
network is untrained: what is measured is time, memory and what was done, never how well people are read.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import torch
from PIL import Image
from rich.console import Console

from benchmarks.clips import middle_frames, usable_clips
from benchmarks.machine import machine
from benchmarks.soak import memory_by_role
from benchmarks.tables import table
from pipeline.models.build import build_model
from pipeline.models.checkpoint import save_checkpoint
from pipeline.models.checkpoint_info import write_best
from pipeline.records.clips import Clip
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import log_status
from pipeline.storage.remote import local_path
from pipeline.storage.store import Storage

JOB = Path(__file__).resolve().parents[1] / "jobs" / "score.py"
OPTIONS = {"attention_gain": "area", "recalibration_scale": "sqrt", "dropout": 0.5}
WATCHED = ("driver", "actor", "sandboxed child")
FILM_FPS = 5


@dataclass(frozen=True, kw_only=True)
class NightsConfig:
    """Scores a folder that changes for three nights, and films of a minute and an hour; on this machine."""

    study: str
    """nights."""
    clips: str
    """Videos to upload (folder, manifest, glob or file; local)."""
    output: str = "build/nights"
    """Folder of nights.json and of the nights' pages; a local path."""
    px: int = 224
    """Side of faces and contexts, pixels, a multiple of 16."""
    frames_per_clip: int = 8
    """Frames sampled from each uploaded clip (count)."""
    film_minutes: tuple[int, ...] = (1, 60)
    """Lengths of the films, minutes; each shows one middle frame of the clips at 320x240."""
    sample_fps: float = 0.2
    """Frames sampled from a film a second."""
    segment_seconds: float = 60.0
    """Length of the films' segments (seconds)."""

    def __post_init__(self) -> None:
        if self.px < 16 or self.px % 16:
            raise UsageError(f"--px {self.px}: give a multiple of 16 pixels")
        if not Storage(self.output).is_local:
            raise UsageError(f"--output {self.output}: give a local folder")


def nights(config: NightsConfig) -> dict[str, Any]:
    """Run the nights and the films; writes nights.json and returns what it holds."""
    clips = usable_clips(config.clips, most=10_000)
    top = Path(config.output).absolute()
    top.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(), "settings": asdict(config)}
    with tempfile.TemporaryDirectory(prefix="nights-") as folder:
        here = Path(folder)
        _save_untrained(here / "model", config, frames_per_clip=config.frames_per_clip)
        results["nights"] = _nights(named_apart(clips, here / "clips"), here, top)
        _save_untrained(here / "film-model", config, sample_fps=config.sample_fps)
        picture = middle_frames(clips[:1])[0]
        results["films"] = []
        for minutes in config.film_minutes:
            film = here / f"films-{minutes}" / "film.mp4"
            write_film(film, picture, seconds=60 * minutes)
            flags = ["--segment-seconds", config.segment_seconds]
            found = _scored(film.parent, here / "film-model", here / f"film-labels-{minutes}", *flags)
            results["films"].append({"minutes": minutes, **found})
            log_status(f"a film of {minutes} minutes: {found['seconds']:.1f} s")
    Storage(config.output).put("nights.json", (json.dumps(results, indent=1) + "\n").encode())
    log_status(f"output: {top}")
    return results


def _nights(clips: Sequence[Path], folder: Path, top: Path) -> list[dict[str, Any]]:
    """Upload and score for three nights; the pages go to `top`."""
    uploads, found = folder / "uploads", []
    for number, upload in enumerate((upload_first, upload_second, None), 1):
        if upload is not None:
            upload(clips, uploads)
        night = _scored(uploads, folder / "model", folder / "labels", "--day", f"2026-01-{number:02d}")
        (partition,) = (folder / "labels").iterdir()
        page = (partition / "report.html").read_bytes()
        if upload is not None:
            (top / f"night-{number}.html").write_bytes(page)
        found.append({**night, "page_bytes": len(page)})
        log_status(f"night {number}: {night['scored']} scored in {night['seconds']:.1f} s")
    return found


def named_apart(clips: Sequence[Clip], folder: Path) -> list[Path]:
    """Copies of local clips under names that no two share, as those of CAER's folders do."""
    folder.mkdir()
    return [
        Path(shutil.copyfile(local_path(clip.url) or "", folder / f"{number:04d}-{Path(clip.path).name}"))
        for number, clip in enumerate(clips)
    ]


def upload_first(clips: Sequence[Path], uploads: Path) -> None:
    """A third of the clips as they are, one of them twice, and a third in a zip."""
    uploads.mkdir()
    loose, packed = clips[::3], clips[1::3]
    for clip in loose:
        (uploads / clip.name).write_bytes(clip.read_bytes())
    (uploads / f"again-{loose[0].name}").write_bytes(loose[0].read_bytes())
    with zipfile.ZipFile(uploads / "monday.zip", "w") as archive:
        for clip in packed:
            archive.write(clip, clip.name)


def upload_second(clips: Sequence[Path], uploads: Path) -> None:
    """The last third in a tar.gz beside a member that is no video; a clip of the first night renamed, other bytes under
    another's name."""
    first, changed = uploads / clips[0].name, uploads / clips[3].name
    first.rename(first.with_name(f"renamed-{first.name}"))
    changed.write_bytes(clips[1].read_bytes() + b"uploaded anew")
    with tarfile.open(uploads / "tuesday.tar.gz", "w:gz") as archive:
        for clip in clips[2::3]:
            archive.add(clip, clip.name)
        broken = random.Random(0).randbytes(100_000)
        member = tarfile.TarInfo("broken.mp4")
        member.size = len(broken)
        archive.addfile(member, io.BytesIO(broken))


def _scored(uploads: Path, checkpoint: Path, labels: Path, *flags: Any) -> dict[str, Any]:
    """Run jobs/score.py to its end: its summary, its wall time, and the most memory that one process of a role held."""
    arguments = ["--input", uploads, "--checkpoint", checkpoint, "--output", labels, "--json-logs", *flags]
    command = [sys.executable, str(JOB), *map(str, arguments)]
    peak = dict.fromkeys(WATCHED, 0.0)
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):  # It has just ended.
                found = memory_by_role(psutil.Process(process.pid))
                peak = {role: max([most, *found[role]]) for role, most in peak.items()}
            time.sleep(0.25)
        seconds = time.monotonic() - started
        log.seek(0)
        events = [json.loads(line) for line in log.read().splitlines()]
    if process.returncode:
        raise UsageError(f"jobs/score.py ended with {process.returncode}: {events[-1:]}")
    summary = next((event for event in reversed(events) if event["event"] == "summary"), None)
    if summary is None:  # Nothing was to be done.
        (partition,) = labels.iterdir()
        summary = json.loads((partition / "summary.json").read_text())
    names = (
        "inputs",
        "scored",
        "same_content",
        "done",
        "no_face",
        "changed",
        "quarantined",
        "retryable",
        "processed",
        "frames",
    )
    kept = {name: summary[name] for name in names}
    kept["skipped"] = kept["inputs"] - kept["processed"] - kept["same_content"]
    return {**kept, "reasons": summary["reasons"], "seconds": round(seconds, 2), "peak_mib": peak}


def write_film(path: Path, picture: np.ndarray, *, seconds: int) -> None:
    """A video of one picture (H, W, 3 uint8 RGB) at 320x240 with a key frame every 10 s."""
    path.parent.mkdir(parents=True)
    image = np.asarray(Image.fromarray(picture).resize((320, 240)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FILM_FPS, options={"g": str(10 * FILM_FPS)})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.thread_count = 1
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
        for number in range(seconds * FILM_FPS):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _save_untrained(folder: Path, config: NightsConfig, **reading: Any) -> None:
    torch.manual_seed(0)
    size = {"face_px": config.px, "context_px": config.px}
    save_checkpoint(
        str(folder),
        epoch=1,
        step=1,
        model=build_model("cahfw", **OPTIONS),
        optimizer_state={},
        config={
            "model": {"name": "cahfw", "options": OPTIONS, **size},
            "training": {},
            "preprocessing": {"detector": "dlib-cnn", **size, **reading},
        },
        info={"metrics": {}, "manifest_sha256": "0" * 64},
    )
    write_best(str(folder), epoch=1, top1_accuracy=0.0)


def print_nights(results: Mapping[str, Any]) -> None:
    """Print a table of the nights and one of the films."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    names = ("inputs", "scored", "same_content", "skipped", "done", "no_face", "changed", "quarantined")
    columns = ("night", *names, "seconds", "MB")
    rows = []
    for number, night in enumerate(results["nights"], 1):
        cells = [*(str(night[name]) for name in names), f"{night['seconds']:.1f}", f"{night['page_bytes'] / 1e6:.1f}"]
        rows.append([str(number), *cells])
    console.print(table("Nights: new uploads in the first two, none in the third; MB of the page", columns, rows))
    for reason, count in results["nights"][-1]["reasons"].items():
        console.print(f"{count:6d}  {reason}")
    settings = results["settings"]
    title = (
        f"Films of 320x240 at {FILM_FPS} frames/s, {settings['sample_fps']:g} of them sampled a second, in segments of "
        f"{settings['segment_seconds']:g} s; the most resident memory of one process, MiB"
    )
    rows = [
        [f"{film['minutes']} min", str(film["frames"]), f"{film['seconds']:.1f}"]
        + [f"{film['peak_mib'][role]:.0f}" for role in WATCHED]
        for film in results["films"]
    ]
    console.print(table(title, ("film", "frames", "seconds", *WATCHED), rows))
