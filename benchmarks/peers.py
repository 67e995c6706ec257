"""jobs/preprocess.py beside what one would write with Daft or with Ray Data alone: the same clips, decoding, detector
and crops on two processes each, from the command to its end.

Two sizes tell what starting costs and what a clip costs. Then with broken files among the clips, and with one whose
decoder dies: what each leaves.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
from rich.console import Console

from benchmarks.clips import usable_clips
from benchmarks.machine import machine
from benchmarks.peer import NUM_PROCESSES
from benchmarks.poison import CRASH, PoisonedActor
from benchmarks.preprocess import run_timed
from benchmarks.tables import shown, table
from benchmarks.timing import spread, tree_cpu_seconds, tree_memory_bytes
from pipeline.corpus.read import read_corpus
from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.detectors import resolved
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.config import PoolConfig
from pipeline.runtime.console import log_status
from pipeline.storage.remote import local_path
from pipeline.storage.scratch import ScratchFolder
from pipeline.storage.store import Storage
from pipeline.synthetic.corpus import make_corpus

REPOSITORY = Path(__file__).resolve().parents[1]
OURS, OURS_WITHOUT_RAY, DAFT, RAY = "jobs/preprocess.py", "jobs/preprocess.py --no-ray", "Daft", "Ray Data"
BOTH_OF_OURS = (OURS, OURS_WITHOUT_RAY)
CONTENDERS = (*BOTH_OF_OURS, DAFT, RAY)
LIMIT_SECONDS = 1800.0
# With bad files a contender is given so many times what it took without, and a minute at least: one starts a process
# that dies anew, and would for ever.
PATIENCE = 5
LOOK_SECONDS, MEMORY_SECONDS = 0.1, 1.0
MEASURED = ("seconds", "core_seconds", "memory_mib")
COLUMNS = ["path", "frame_index", "box", "face_jpeg", "context_jpeg"]


@dataclass(frozen=True, kw_only=True)
class PeersConfig:
    """Measures jobs/preprocess.py against Daft and Ray Data with the same detector and crops, and with broken files."""

    study: str
    """peers."""
    output: str = "build/peers"
    """Folder of peers.json; a path or any fsspec URL."""
    clips: str | None = None
    """Videos to measure on (folder, manifest, glob or file; local); default: a small SYNTHETIC corpus of 712x400."""
    sizes: tuple[int, ...] = (80, 320)
    """Clips of a run (counts, the smallest first): the same ones again under other names where there are fewer."""
    rounds: int = 3
    """Times that every contender runs at each size (count)."""
    frames_per_clip: int = 8
    """Frames sampled from each clip (count)."""
    broken_share: float = 0.05
    """Share of files that do not decode, in the run with broken ones."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.frames_per_clip < 1 or not self.sizes or min(self.sizes) < 1:
            raise ValueError("--rounds, --frames-per-clip, --sizes: give 1 or more")
        if not 0 <= self.broken_share < 1:
            raise ValueError(f"--broken-share is {self.broken_share}; give a share from 0 to below 1")


def peers(config: PeersConfig) -> dict[str, Any]:
    """Run every contender at every size in turn, and once with each kind of bad file; writes peers.json.

    Raises UsageError without the extra [peers].
    """
    if importlib.util.find_spec("daft") is None:
        raise UsageError("peers needs daft, which is not installed: pip install 'emotion-pipeline[peers]'")
    storage = Storage(config.output)
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        folder = Path(name)
        good = _good_clips(config, folder)
        rounds: list[dict[str, dict[int, dict[str, Any]]]] = []
        for number in range(config.rounds):
            rounds.append({contender: {} for contender in CONTENDERS})
            for size in config.sizes:
                corpus = _corpus(folder / f"corpus-{number}-{size}", good, num=size)
                for contender in CONTENDERS:
                    log_status(f"    round {number + 1}: {size} clips, {contender}")
                    found = _run(contender, corpus, folder / "out", frames_per_clip=config.frames_per_clip)
                    rounds[-1][contender][size] = found
        results = {
            "machine": machine(),
            "sizes": list(config.sizes),
            "frames_per_clip": config.frames_per_clip,
            "processes": NUM_PROCESSES,
            "rows_equal": len({found["rows"] for each in rounds for by in each.values() for found in by.values()})
            == len(config.sizes),
            "contenders": {contender: _figures(rounds, contender, config.sizes) for contender in CONTENDERS},
            "with_bad_files": _with_bad_files(config, good, folder, rounds=rounds),
        }
    storage.put("peers.json", (json.dumps(results, indent=1) + "\n").encode())
    log_status(f"output: {storage.path('peers.json')}")
    return results


def _good_clips(config: PeersConfig, folder: Path) -> list[Path]:
    if config.clips is None:
        log_status("drawing a SYNTHETIC corpus")
        make_corpus(folder / "made", clips_per_class=(3, 0, 0))
    source = config.clips or str(folder / "made" / "train")
    clips = [local_path(clip.url) for clip in usable_clips(source, most=max(config.sizes))]
    return [Path(clip) for clip in clips if clip]


def _corpus(folder: Path, good: Sequence[Path], *, num: int, bad: Iterable[tuple[str, bytes]] = ()) -> Path:
    """A folder of `num` files, those that are bad evenly among the good ones."""
    folder.mkdir()
    bad = list(bad)
    places = {(2 * number + 1) * num // (2 * len(bad)): each for number, each in enumerate(bad)}
    for number in range(num):
        if number in places:
            name, content = places[number]
            (folder / f"{number:06d}{name}").write_bytes(content)
        else:
            source = good[number % len(good)]
            shutil.copyfile(source, folder / f"{number:06d}{source.suffix}")
    return folder


def _run(
    contender: str, corpus: Path, output: Path, *, frames_per_clip: int, limit_seconds: float = LIMIT_SECONDS
) -> dict[str, Any]:
    """One contender's run: seconds, core-seconds, memory, exit code, and its rows, counted and as one hash."""
    shutil.rmtree(output, ignore_errors=True)
    listed = output.with_suffix(".txt")
    listed.write_text("\n".join(map(str, sorted(corpus.iterdir()))))
    if contender in BOTH_OF_OURS:
        flags = ["--actors", str(NUM_PROCESSES), "--frames-per-clip", str(frames_per_clip), "--page=false"]
        flags += ["--no-ray"] if contender == OURS_WITHOUT_RAY else []
        command = [str(REPOSITORY / "jobs" / "preprocess.py"), "--input", str(corpus), "--output", str(output), *flags]
    else:
        name = {DAFT: "daft", RAY: "ray"}[contender]
        command = ["-m", "benchmarks.peer", name, str(listed), str(output), str(frames_per_clip)]
    figures = _watched([sys.executable, *command], limit_seconds=limit_seconds)
    rows = _rows(output / "examples" if contender in BOTH_OF_OURS else output)
    told = "\n".join(sorted(map(str, rows)))
    return {**figures, "num_rows": len(rows), "rows": hashlib.sha256(told.encode()).hexdigest(), "clips": _clips(rows)}


def _watched(command: Sequence[str], *, limit_seconds: float) -> dict[str, Any]:
    """A command with all that it starts: wall seconds, core-seconds, the most proportional memory, the exit code, which
    is None where it was stopped for its time."""
    paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    # A plain ray.init is an open door: to whoever has its token, and its files, alone. Short, for Ray's sockets.
    closed = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **closed}
    started = time.monotonic()
    with tempfile.TemporaryFile() as log, contextlib.closing(ScratchFolder("ep-")) as folder:
        environment["RAY_TMPDIR"] = str(folder.path)
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=REPOSITORY)
        cpu, memory, looked, is_over = 0.0, 0, 0.0, False
        while process.poll() is None:
            now = time.monotonic()
            if now - started > limit_seconds:
                is_over = True
                for each in (process, *psutil.Process(process.pid).children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        each.kill()
            with contextlib.suppress(psutil.Error):  # It may end meanwhile.
                cpu = max(cpu, tree_cpu_seconds(process.pid))
                if now - looked > MEMORY_SECONDS:
                    looked = now
                    memory = max(memory, tree_memory_bytes(process.pid))
            time.sleep(LOOK_SECONDS)
    seconds = time.monotonic() - started
    return {
        "seconds": seconds,
        "core_seconds": cpu,
        "memory_mib": memory / 2**20,
        "exit_code": None if is_over else process.returncode,
    }


def _rows(folder: Path) -> list[tuple[Any, ...]]:
    """Path, frame, box and the hashes of both images of every row below a folder."""
    files = [str(path) for path in folder.rglob("*.parquet") if path.stat().st_size]
    if not files:
        return []
    found: pa.Table = ds.dataset(files).to_table(columns=COLUMNS)
    rows = []
    for row in found.to_pylist():
        box = tuple(row["box"].values()) if isinstance(row["box"], dict) else tuple(row["box"] or ())
        images = (hashlib.sha256(row[name] or b"").hexdigest()[:16] for name in ("face_jpeg", "context_jpeg"))
        rows.append((row["path"], row["frame_index"], box, *images))
    return [row for row in rows if row[0]]  # Daft's explode leaves a row of nothing for a clip without faces.


def _clips(rows: Iterable[tuple[Any, ...]]) -> int:
    return len({row[0] for row in rows})


def _figures(
    rounds: Sequence[Mapping[str, Mapping[int, Mapping[str, Any]]]], contender: str, sizes: Sequence[int]
) -> dict[str, Any]:
    """Spreads by size; of the smallest and the largest what a clip takes more, and what is left of it: the start."""
    runs = [each[contender] for each in rounds]
    found: dict[str, Any] = {
        str(size): {name: spread(run[size][name] for run in runs) for name in MEASURED} for size in sizes
    }
    least, most = min(sizes), max(sizes)
    if least < most:
        a_clip = [(run[most]["seconds"] - run[least]["seconds"]) / (most - least) for run in runs]
        found["seconds_a_clip"] = spread(a_clip)
        found["start_seconds"] = spread(
            run[least]["seconds"] - least * each for run, each in zip(runs, a_clip, strict=True)
        )
    return found


def _with_bad_files(
    config: PeersConfig, good: Sequence[Path], folder: Path, *, rounds: Sequence[Any]
) -> dict[str, Any]:
    """What each leaves of a corpus with files that do not decode, and of one in which a decoder dies once."""
    num = min(config.sizes)
    broken = [("-broken.mp4", good[0].read_bytes()[:4096])] * max(1, round(config.broken_share * num))
    deadly = [(f"{CRASH}mp4", good[0].read_bytes())]
    found: dict[str, Any] = {}
    for kind, bad in (("broken files", broken), ("a decoder that dies", deadly)):
        corpus = _corpus(folder / kind.replace(" ", "-"), good, num=num, bad=bad)
        found[kind] = {"clips": num, "bad": len(bad), "left": {}}
        for contender in CONTENDERS:
            log_status(f"    {kind}: {contender}")
            if contender in BOTH_OF_OURS and bad is deadly:
                options = {"frames_per_clip": config.frames_per_clip, "no_ray": contender == OURS_WITHOUT_RAY}
                left = _ours_with_a_crash(corpus, folder / "out", **options)
            else:
                limit = max(60.0, PATIENCE * max(each[contender][num]["seconds"] for each in rounds))
                left = _run(
                    contender, corpus, folder / "out", frames_per_clip=config.frames_per_clip, limit_seconds=limit
                )
            found[kind]["left"][contender] = {name: left[name] for name in ("exit_code", "clips", "num_rows")}
    return found


def _ours_with_a_crash(corpus: Path, output: Path, *, frames_per_clip: int, no_ray: bool) -> dict[str, Any]:
    """As jobs/preprocess.py runs it, but for a child that dies where a clip named so begins to decode."""
    shutil.rmtree(output, ignore_errors=True)
    clips = list(read_corpus(str(corpus), split_fractions=None).clips)
    config = resolved(ExtractConfig(frames_per_clip=frames_per_clip))
    run_timed(clips, str(output), config, PoolConfig(actors=NUM_PROCESSES, no_ray=no_ray), actor=PoisonedActor)
    rows = _rows(output / "examples")
    return {"exit_code": 0, "clips": _clips(rows), "num_rows": len(rows)}


def print_peers(results: Mapping[str, Any]) -> None:
    """The two tables in a terminal."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    for size in map(str, results["sizes"]):
        rows = [
            [
                name,
                shown(found[size]["seconds"], 1),
                shown(found[size]["core_seconds"], 1),
                shown(found[size]["memory_mib"], 0),
                shown(found.get("start_seconds"), 1),
                shown(found.get("seconds_a_clip"), 3),
            ]
            for name, found in results["contenders"].items()
        ]
        columns = ("", "s", "core-seconds", "most memory, MiB", "start, s", "s a clip")
        equal = "equal rows" if results["rows_equal"] else "ROWS DIFFER"
        console.print(table(f"{size} clips of {results['frames_per_clip']} frames, {equal}", columns, rows))
    rows = [
        [
            f"{kind}: {name}",
            "does not end" if left["exit_code"] is None else str(left["exit_code"]),
            f"{left['clips']} of {case['clips'] - case['bad']}",
        ]
        for kind, case in results["with_bad_files"].items()
        for name, left in case["left"].items()
    ]
    console.print(table("With bad files", ("", "exit code", "good clips with rows"), rows))
