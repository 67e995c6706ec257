"""What the viewer costs at a size: made-up labels in, seconds until it is open and of each question out.

The labels are a ledger's with a real shard of clips for each unit, and `jobs/view.py` is started as a user starts it;
its faces are not made, so that no clip is opened.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pyarrow as pa
from rich.console import Console

from benchmarks.ledger import made_batches
from benchmarks.machine import machine
from benchmarks.tables import table
from pipeline.ledger.files import parquet_bytes
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.planning import plan
from pipeline.ledger.units import PendingUnits, Unit
from pipeline.records.columns import FLAT_COLUMNS
from pipeline.records.faces import CLIP_LABEL_SCHEMA
from pipeline.records.outcomes import Outcome, State
from pipeline.records.vocabulary import EMOTIONS
from pipeline.runtime.console import log_status
from pipeline.storage.store import Storage

JOB = Path(__file__).resolve().parents[1] / "jobs" / "view.py"
SHA256 = "0123456789ab" + "0" * 52
NUM_NIGHTS, NUM_SHOWS = 30, 200
FILTER = "emotion=Anger&day=2026-01-05&min_persons=2&min_entropy=1.0"
QUESTIONS = {
    "first page": "/api/clips",
    "one emotion": "/api/clips?emotion=Anger",
    "part of a path": "/api/clips?q=00999",
    "several filters": f"/api/clips?{FILTER}",
    "least certain first": "/api/clips?sort=-entropy",
    "least certain of one emotion": "/api/clips?emotion=Fear&sort=-entropy",
    "last page, by path": "/api/clips?start={last}",
    "last page, least agreement first": "/api/clips?sort=agreement&start={last}",
    "not corrected": "/api/clips?corrected=no",
    "what the filters offer": "/api/collection",
    "over nights": "/api/drift",
    "over nights, several filters": f"/api/drift?{FILTER}",
    "clip before and after, by path": "/api/clips/{clip}?q=0",
    "clip before and after, least certain first": "/api/clips/{clip}?sort=-entropy",
}


@dataclass(frozen=True, kw_only=True)
class ViewerConfig:
    """Opens made-up labels in the viewer and asks it what its pages ask."""

    study: str
    """viewer."""
    output: str = "build/viewer"
    """Local folder of viewer.json; the labels are made in it and deleted afterwards."""
    clips: int = 1_000_000
    """Clips (count)."""
    clips_per_shard: int = 32
    """Clips in one unit (count)."""
    rounds: int = 3
    """Times that each question is asked, and that the labels are opened again (count)."""
    night: float = 0.01
    """Clips of a night that is added, as a share of the others."""
    keep: bool = False
    """Leave the labels where they are; the next run opens them again, and none for the first time."""

    def __post_init__(self) -> None:
        if min(self.clips, self.clips_per_shard, self.rounds) < 1:
            raise ValueError("--clips, --clips-per-shard, --rounds: give 1 or more")
        if not 0 < self.night <= 1:
            raise ValueError(f"--night is {self.night}; give a share above 0, up to 1")


def viewer(config: ViewerConfig) -> dict[str, Any]:
    """Make the labels, open them and ask; writes viewer.json and returns what it holds."""
    storage = Storage(config.output)
    folder = Path(storage.path("made"))
    before, first, night = os.getloadavg()[0], None, None
    if not (config.keep and (folder / "whole").exists()):
        shutil.rmtree(folder, ignore_errors=True)
        log_status(f"making the labels of {config.clips:,} clips")
        made_labels(folder / "labels", config.clips, clips_per_shard=config.clips_per_shard)
        first = _opened(folder / "labels", {}, reads_all=True)["opened"]
        (folder / "whole").touch()
        num_after = config.clips + max(1, round(config.clips * config.night))
        log_status(f"making the labels of a night of {num_after - config.clips:,} clips")
        made_labels(folder / "labels", num_after, clips_per_shard=config.clips_per_shard, night=NUM_NIGHTS)
        night = _opened(folder / "labels", {})["opened"]
    again = [_opened(folder / "labels", {})["opened"] for _ in range(config.rounds - 1)]
    last = str(max(0, config.clips - 50))
    asked = _opened(folder / "labels", QUESTIONS, rounds=config.rounds, last=last)
    again.append(asked["opened"])
    results = {
        "machine": machine(),
        "settings": asdict(config),
        "load_average": {"before": before, "after": os.getloadavg()[0]},
        "opened_first": first,
        "opened_after_night": night,
        "opened_again": _median(again),
        "mib": asked["mib"],
        "questions": {name: _median(each) for name, each in asked["questions"].items()},
    }
    storage.put("viewer.json", (json.dumps(results, indent=1) + "\n").encode())
    if not config.keep:
        shutil.rmtree(folder)
    return results


def _opened(
    labels: Path, questions: Mapping[str, str], *, rounds: int = 1, last: str = "0", reads_all: bool = False
) -> dict[str, Any]:
    """Start the viewer, wait for its first page of rows (`reads_all`: and until it has read the rest), ask the
    questions, end it."""
    started = time.monotonic()
    command = [sys.executable, str(JOB), str(labels), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = urlsplit(process.stdout.readline().strip())
            with closing(http.client.HTTPConnection(address.netloc, timeout=600)) as connection:
                headers = {"Cookie": f"viewer-{address.port}={address.query.removeprefix('token=')}"}
                ask = partial(_ask, connection, headers=headers)
                ask("/api/collection")
                clip = ask("/api/clips")["rows"][0]["clip_id"]
                own = psutil.Process(process.pid)
                opened = {"seconds": time.monotonic() - started, "cpu_seconds": _cpu_seconds(own)}
                while reads_all and ask("/api/reading")["reading"]:
                    time.sleep(1)
                opened["all_seconds"], opened["all_cpu_seconds"] = time.monotonic() - started, _cpu_seconds(own)
                taken: dict[str, list[dict[str, float]]] = {}
                for name, path in questions.items():
                    for _ in range(rounds):
                        before, cpu = time.monotonic(), _cpu_seconds(own)
                        ask(path.format(clip=clip, last=last))
                        row = {"seconds": time.monotonic() - before, "cpu_seconds": _cpu_seconds(own) - cpu}
                        taken.setdefault(name, []).append(row)
            mib = own.memory_info().rss / 2**20
        finally:
            process.terminate()
    return {"opened": opened, "mib": mib, "questions": taken}


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _median(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _ask(connection: http.client.HTTPConnection, path: str, *, headers: dict[str, str]) -> Any:
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    data = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"the viewer answered {path} with {answer.status}: {data[:500]!r}")
    return json.loads(data)


def made_labels(output: Path, num_clips: int, *, clips_per_shard: int, night: int | None = None) -> None:
    """Commit labels of so many made-up clips, those that are new, without the fsync of a commit. night: by default they
    are spread over some."""
    found = Ledger(f"{output}/model={SHA256[:12]}")
    folder = Path(found.storage.path())
    snapshot = found.snapshot()
    snapshot.give(_in_shows(batch) for batch in made_batches(num_clips))
    job: dict[str, Any] = {"kind": "labels", "versions": {}, "clips_per_shard": clips_per_shard}
    plan(found, snapshot, config={"checkpoint_sha256": SHA256, "sample_fps": 5.0}, **job)
    _commit_all(snapshot.pending(), folder, night)
    found.refresh(snapshot, compacts=True)  # As a run leaves it.
    snapshot.database.close()


def _in_shows(batch: pa.RecordBatch) -> pa.RecordBatch:
    paths = [f"show-{int(path[-13:-4]) % NUM_SHOWS:03d}/{path[-13:]}" for path in batch["path"].to_pylist()]
    return batch.set_column(batch.schema.get_field_index("path"), batch.schema.field("path"), pa.array(paths))


def _commit_all(pending: PendingUnits, folder: Path, own_night: int | None) -> None:
    done = asdict(Outcome(clip_id="", path="", state=State.DONE, num_frames=8, num_examples=20, seconds=0.6))
    (folder / "ledger").mkdir(exist_ok=True)
    for number, unit in enumerate(pending):
        night = number % NUM_NIGHTS if own_night is None else own_night
        name = f"clips/day=2026-01-{night + 1:02d}/{unit.unit_id}-made.parquet"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = parquet_bytes(made_rows(unit, seed=number))
        (folder / name).write_bytes(data)
        shard = {"path": name, "table": "clips", "split": None, "unit": unit.unit_id, "rows": len(unit.clips)}
        outcomes = [{**done, "clip_id": clip.clip_id, "path": clip.path} for clip in unit.clips]
        entry = {"unit": unit.unit_id, "attempt": "made", "facts": {}, "outcomes": outcomes}
        entry["shards"] = [{**shard, "bytes": len(data), "sha256": "0" * 64}]
        (folder / "ledger" / f"{unit.unit_id}.json").write_text(json.dumps(entry))


def made_rows(unit: Unit, *, seed: int) -> pa.Table:
    """Rows of CLIP_LABEL_SCHEMA for the clips of a unit, their numbers drawn at random."""
    random, num = np.random.default_rng(seed), len(unit.clips)
    seven = random.dirichlet(np.full(7, 0.5), num).astype(np.float32)
    persons = random.integers(1, 6, num)
    struct = pa.StructArray.from_arrays(list(seven.T), fields=list(CLIP_LABEL_SCHEMA.field("probabilities").type))
    columns: dict[str, Any] = {
        "clip_id": [clip.clip_id for clip in unit.clips],
        "path": [clip.path for clip in unit.clips],
        "content_id": [clip.content_id for clip in unit.clips],
        "state": ["done"] * num,
        "num_frames": np.full(num, 8),
        "num_faces": persons * 8,
        "num_tracks": persons,
        "num_strays": np.zeros(num, np.int64),
        "num_changes": random.integers(0, 4, num),
        "num_shots": np.ones(num, np.int64),
        "probabilities": struct,
        "emotion_shares": struct,
        "emotion": [EMOTIONS[place] for place in seven.argmax(axis=1)],
        "mean_entropy": -(seven * np.log(np.maximum(seven, 1e-9))).sum(axis=1),
        "agreement": random.random(num, np.float32),
        "seconds": np.zeros(num),
        "model": pa.array([SHA256[:12]] * num).cast(CLIP_LABEL_SCHEMA.field("model").type),
        **{flat: seven[:, EMOTIONS.index(name)] for flat, name in FLAT_COLUMNS.items()},
    }
    arrays = [columns.get(name, [None] * num) for name in CLIP_LABEL_SCHEMA.names]
    return pa.table(arrays, schema=CLIP_LABEL_SCHEMA)


def print_viewer(results: Mapping[str, Any]) -> None:
    """Print a row for each opening and question."""
    first = results["opened_first"]
    steps = {
        "opened for the first time": first,
        "until all is read": first and {name: first[f"all_{name}"] for name in ("seconds", "cpu_seconds")},
        "opened after a night": results["opened_after_night"],
        "opened again": results["opened_again"],
    }
    steps |= results["questions"]
    rows = [[name, f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}"] for name, row in steps.items() if row]
    load = results["load_average"]
    title = (
        f"Viewer of {results['settings']['clips']:,} clips; {results['mib']:,.0f} MiB; load average"
        f" {load['before']:.1f} before, {load['after']:.1f} after"
    )
    Console(width=None if sys.stdout.isatty() else 120).print(table(title, ("step", "s", "CPU s"), rows))
