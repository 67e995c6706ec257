"""Starts jobs as users do, kills parts of them with SIGKILL at seeded random moments, and compares what is left."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).resolve().parents[2]
# Facts of a try, not of the result.
UNCOMPARED = ("attempts", "seconds")


def start_job(job: str, *arguments: str, log: Path) -> subprocess.Popen:
    """`python jobs/JOB ARGUMENTS` in a process group of its own, its output appended to `log`."""
    return start_script(REPOSITORY / "jobs" / job, *arguments, log=log)


def start_script(
    script: Path, *arguments: str, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen:
    """Any script in the same way. environment: in place of this process's."""
    command = [sys.executable, str(script), *arguments]
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=file, stderr=file, start_new_session=True
        )


def finish_job(job: str, *arguments: str, log: Path) -> int:
    """Run a job to its end; its exit code."""
    return start_job(job, *arguments, log=log).wait(timeout=600)


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def workers(process: subprocess.Popen) -> set[psutil.Process]:
    """What a job started that could still write or compute: all but Ray's own agents, which outlive a killed Ray by
    some minutes and touch no data."""
    return {each for each in descendants(process) if "agent" not in command_of(each).lower()}


def sandboxed_children(process: subprocess.Popen) -> list[psutil.Process]:
    """The decoding children of a job's actors: children of a fork server."""
    found = descendants(process)
    servers = {each.pid for each in found if is_fork_server(each)}
    return [each for each in found if parent_of(each) in servers]


def actors(process: subprocess.Popen) -> list[psutil.Process]:
    """The Ray workers of a job that hold a fork server, which are its actors at work."""
    found = descendants(process)
    servers = {each.pid for each in found if is_fork_server(each)}
    parents = {parent_of(each) for each in found if each.pid in servers} - servers
    return [each for each in found if each.pid in parents]


def is_fork_server(process: psutil.Process) -> bool:
    return "multiprocessing.forkserver" in command_of(process)


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()  # Ray pads the names of its workers.
    except psutil.Error:
        return ""


def parent_of(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.Error:
        return -1


def kill_some(process: subprocess.Popen, find, *, num_kills: int, seed: int, pause: tuple[float, float]) -> int:
    """SIGKILL `num_kills` of the processes that `find(process)` sees, after random pauses, while the job runs."""
    chance = random.Random(seed)
    kills = 0
    while process.poll() is None and kills < num_kills:
        time.sleep(chance.uniform(*pause))
        targets = find(process)
        if targets:
            victim = chance.choice(targets)
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
            kills += 1
    return kills


def kill_job(process: subprocess.Popen) -> None:
    """SIGKILL the driver alone; what it started must go by itself."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def wait_for_orphans(processes: set[psutil.Process], *, seconds: float = 30.0) -> list[str]:
    """The commands of a killed job's processes that are still there after `seconds`; [] as soon as all are gone."""
    deadline = time.monotonic() + seconds
    while True:
        # An agent may have been seen before it took its name.
        alive = [command_of(each) for each in processes if each.is_running()]
        alive = [command for command in alive if command and "agent" not in command.lower()]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.1)


def rows_of(output: Path, table: str = "examples") -> list[tuple]:
    """Every row of the committed shards, images as digests, sorted; what a reader of the manifest sees."""
    manifest = json.loads((output / "manifest.json").read_text())
    rows = []
    for shard in manifest["shards"]:
        if shard["table"] != table:
            continue
        data = (output / shard["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        for row in pq.read_table(output / shard["path"]).to_pylist():
            rows.append(tuple((name, _comparable(value)) for name, value in sorted(row.items())))
    return sorted(rows, key=repr)


def rows_by_glob(output: Path, table: str = "examples") -> int:
    """The number of rows that a reader sees who knows nothing of a manifest."""
    return sum(pq.read_metadata(path).num_rows for path in (output / table).rglob("*.parquet"))


def outcomes_of(output: Path) -> list[dict]:
    lines = (output / "outcomes.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in UNCOMPARED} for line in lines]


def entries_of(output: Path) -> dict[str, bytes]:
    """The ledger entries, byte for byte: a unit that was done again would have another attempt in it."""
    folder = output / "ledger"
    return {path.name: path.read_bytes() for path in folder.glob("*.json")} if folder.exists() else {}


def _comparable(value):
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, dict):
        return tuple(sorted(value.items()))
    return value


def num_kills_asked(default: int) -> int:
    return int(os.environ.get("CHAOS_KILLS", default))
