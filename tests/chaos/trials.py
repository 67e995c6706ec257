"""`make chaos N=100`: jobs on a Ray cluster lose a part at a seeded random moment, N times; JSON lines and a table.

A trial starts a job, kills one thing while it runs, lets it go on (or starts it again where the driver died) and
compares what it leaves with an undisturbed run's: rows, outcomes, checkpoints, what was committed before the kill byte
for byte, units begun again, processes left over. Every job meets every kind in turn. Each trial is a line of the output
file; the same command given again goes on after the last one. The end is code 1 if anything was lost, doubled or
otherwise wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import harness
from chaos_cluster import ChaosCluster, wait_until_idle
from example_shards import write_corpus
from ledgers import audited

from pipeline.ledger.ledger import Ledger
from pipeline.models.build import build_model
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.models.checkpoint_info import committed_epochs, newest_checkpoint, write_best
from pipeline.records.vocabulary import EMOTIONS
from pipeline.runtime.describe import describe_audit
from pipeline.synthetic.corpus import make_corpus

ACTORS = 2
NUM_CLIPS = 8
NUM_EPOCHS = 3
LONGEST_SECONDS = 900  # of a job, on a machine that is busy with other things; longer is a hang
KINDS = {
    "preprocess": ("driver", "actor", "sandboxed child", "raylet", "node", "object store", "SIGTERM"),
    "score": ("driver", "actor", "sandboxed child", "raylet", "node", "object store", "SIGTERM"),
    "train": ("driver", "actor", "raylet", "node", "object store", "SIGTERM"),
}
CUT_OFF = ("driver", "SIGTERM")  # the job must be started again


@dataclass(kw_only=True)
class Trial:
    """The kills of one run and what came of it.

    lost, doubled: rows (epochs in training). in_flight: units that were begun and not committed at the kills; training
    has one until its last is committed. redone: units begun again; finished_redone: those of them that had been
    committed before the kill.
    """

    job: str
    kind: str
    seed: int
    kills: int = 0
    moments: list[str] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    in_flight: int = 0
    redone: int = 0
    finished_redone: int = 0
    audit: str = ""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        return not (self.lost or self.doubled or self.problems)


@dataclass(frozen=True, kw_only=True)
class Kill:
    """What stood when something was killed: what was committed, and the units that had been begun, in order."""

    committed: dict[str, bytes]
    begun: list[str]


class Job(Protocol):
    """A job that trials disturb. What it commits is a mapping from a name to bytes that nobody may change again."""

    @property
    def name(self) -> str: ...
    @property
    def num_units(self) -> int: ...
    def start(self, output: Path, *, log: Path, environment: Mapping[str, str]) -> subprocess.Popen: ...
    def committed(self, output: Path) -> dict[str, bytes]: ...
    def begun(self, output: Path, *, log: Path) -> list[str]: ...
    def num_in_flight(self, output: Path, *, log: Path) -> int: ...
    def num_redone(self, output: Path, *, log: Path) -> int: ...
    def compare(self, output: Path, undisturbed: Path) -> tuple[int, int, list[str]]: ...
    def audit(self, output: Path) -> str: ...


@dataclass(frozen=True)
class LedgerJob:
    """preprocess or score: units are shards, and rows are compared."""

    name: str
    arguments: tuple[str, ...]
    tables: tuple[str, ...]
    num_units: int = NUM_CLIPS

    def start(self, output: Path, *, log: Path, environment: Mapping[str, str]) -> subprocess.Popen:
        given = (self.name, *self.arguments, "--output", str(output))
        return harness.start_script(Path(__file__).with_name("counted.py"), *given, log=log, environment=environment)

    def committed(self, output: Path) -> dict[str, bytes]:
        return harness.entries_of(ledger_of(output))

    def begun(self, output: Path, *, log: Path) -> list[str]:  # noqa: ARG002 - training reads its log
        """The entry that each unit begun was to have, in order; one begun again is there again."""
        attempts = Path(f"{ledger_of(output)}.attempts")
        return [f"{unit}.json" for unit in attempts.read_text().splitlines()] if attempts.exists() else []

    def num_in_flight(self, output: Path, *, log: Path) -> int:
        return len(set(self.begun(output, log=log)) - set(self.committed(output)))

    def num_redone(self, output: Path, *, log: Path) -> int:
        return len(self.begun(output, log=log)) - self.num_units

    def audit(self, output: Path) -> str:
        return describe_audit(audited(Ledger(str(ledger_of(output)))))

    def compare(self, output: Path, undisturbed: Path) -> tuple[int, int, list[str]]:
        """Rows lost and doubled against the undisturbed run, by the manifest and by the folder; what else is wrong."""
        output, undisturbed = ledger_of(output), ledger_of(undisturbed)
        lost = doubled = 0
        for table in self.tables:
            wanted, found = (Counter(harness.rows_of(each, table)) for each in (undisturbed, output))
            lost += (wanted - found).total()
            doubled += (found - wanted).total() + abs(harness.rows_by_glob(output, table) - found.total())
        problems = []
        audit = audited(Ledger(str(output)))
        if not audit.holds:
            problems.append(describe_audit(audit))
        if not (output / "_SUCCESS").exists():
            problems.append("no _SUCCESS")
        if harness.outcomes_of(output) != harness.outcomes_of(undisturbed):
            problems.append("the outcomes differ")
        return lost, doubled, problems


def ledger_of(output: Path) -> Path:
    """The folder of the ledger: scoring has one for each model."""
    return next((path for path in output.glob("model=*") if path.is_dir()), output)


@dataclass(frozen=True)
class TrainJob:
    """train: units are epochs, and weights, momentum and losses are compared, bit for bit."""

    arguments: tuple[str, ...]
    num_units: int
    name: str = "train"

    def start(self, output: Path, *, log: Path, environment: Mapping[str, str]) -> subprocess.Popen:
        given = (*self.arguments, "--output", str(output), "--resume")
        return harness.start_script(harness.REPOSITORY / "jobs/train.py", *given, log=log, environment=environment)

    def committed(self, output: Path) -> dict[str, bytes]:
        """checkpoint.json of every epoch, which holds its seconds: an epoch done again would change it."""
        paths = sorted(output.glob("checkpoints/epoch-*/checkpoint.json"))
        return {path.parent.name: path.read_bytes() for path in paths}

    def begun(self, output: Path, *, log: Path) -> list[str]:  # noqa: ARG002 - units of a ledger lie in a file
        """The epoch at which each start of the workers began, in order."""
        return [f"epoch-{int(epoch):04d}" for epoch in re.findall(r"training on .* from epoch (\d+)", log.read_text())]

    def num_in_flight(self, output: Path, *, log: Path) -> int:  # noqa: ARG002
        return int(len(self.committed(output)) < self.num_units)

    def num_redone(self, output: Path, *, log: Path) -> int:
        """Each start of the workers after the first meets at most one epoch that was begun before, and none where all
        were done."""
        last = f"epoch-{self.num_units:04d}"
        return sum(epoch <= last for epoch in self.begun(output, log=log)[1:])

    def audit(self, output: Path) -> str:
        return f"{len(committed_epochs(str(output))) - len(self.unreadable(output))} of {self.num_units} epochs load"

    def compare(self, output: Path, undisturbed: Path) -> tuple[int, int, list[str]]:
        epochs = {each: committed_epochs(str(each)) for each in (undisturbed, output)}
        lost = len(set(epochs[undisturbed]) - set(epochs[output]))
        doubled = 0
        problems = self.unreadable(output)
        for epoch in epochs[output]:
            one, other = (read_commit(each, epoch) for each in (undisturbed, output))
            if one["sha256"] != other["sha256"]:
                problems.append(f"epoch {epoch}: weights or momentum differ")
        histories = [read_commit(each, self.num_units)["info"]["history"] for each in (undisturbed, output)]
        curves = [[(row["epoch"], row["train_loss"], row["validation_loss"]) for row in each] for each in histories]
        if curves[0] != curves[1]:
            problems.append(f"the losses differ: {curves[1]} instead of {curves[0]}")
        rows = (output / "metrics.csv").read_text().splitlines()[1:]
        doubled += max(0, len(rows) - self.num_units)
        if len(rows) < self.num_units:
            problems.append(f"metrics.csv has {len(rows)} rows of {self.num_units}")
        if (output / "best.json").read_bytes() != (undisturbed / "best.json").read_bytes():
            problems.append("best.json differs")
        if not (output / "summary.json").exists():
            problems.append("no summary.json")
        return lost, doubled, problems

    def unreadable(self, output: Path) -> list[str]:
        """Every checkpoint that is said to be committed loads, its sha256 checked."""
        problems = []
        newest: list[Any] = ["newest"] if newest_checkpoint(str(output)) else []
        for which in (*committed_epochs(str(output)), *newest):
            try:
                load_checkpoint(str(output), which)
            except Exception as error:  # noqa: BLE001 - any of them is a finding
                problems.append(f"checkpoint {which} is committed and does not load: {error}")
        return problems


def read_commit(run: Path, epoch: int) -> dict[str, Any]:
    return json.loads((run / f"checkpoints/epoch-{epoch:04d}/checkpoint.json").read_text())


def make_preprocess(folder: Path) -> LedgerJob:
    """HOG at twice the size keeps an actor a while at each clip, which leaves moments to be killed in."""
    if not (folder / "corpus").exists():
        made = make_corpus(folder / "made", clips_per_class=(3, 0, 0), seed=0)
        for clip in made[-NUM_CLIPS:]:  # the last two are a broken file and one without a face
            target = folder / "corpus" / clip.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "made" / clip.path, target)
    flags = ("--detector", "dlib-hog", "--upsample", "1", "--frames-per-clip", "4", "--face-px", "32")
    pool = ("--context-px", "32", "--clips-per-shard", "1", "--actors", str(ACTORS), "--page=false")
    return LedgerJob("preprocess", ("--input", str(folder / "corpus"), *flags, *pool), ("examples",))


def make_score(folder: Path, preprocessed: Path) -> LedgerJob:
    """An untrained network that reads clips as `preprocessed` was made."""
    if not (folder / "checkpoint/best.json").exists():
        save_checkpoint(
            str(folder / "checkpoint"),
            epoch=1,
            step=1,
            model=build_model("caer-net-s"),
            optimizer_state={},
            config={
                "model": {"name": "caer-net-s", "options": {}, "face_px": 32, "context_px": 32},
                "training": {},
                "preprocessing": json.loads((preprocessed / "manifest.json").read_text())["config"],
            },
            info={"metrics": {}, "manifest_sha256": ""},
        )
        write_best(str(folder / "checkpoint"), epoch=1, top1_accuracy=1 / len(EMOTIONS))
    given = ("--input", str(folder / "corpus"), "--checkpoint", str(folder / "checkpoint"), "--page=false")
    pool = ("--clips-per-shard", "1", "--actors", str(ACTORS))
    return LedgerJob("score", (*given, *pool), ("predictions", "clips"))


def make_train(folder: Path, *, epochs: int = NUM_EPOCHS) -> TrainJob:
    """Two workers, the smallest network at 32 px, 8 steps an epoch, and every third step one to resume from."""
    if not (folder / "data").exists():
        write_corpus(folder / "data", train=112)
    given = ("--data", str(folder / "data"), "--cache-dir", str(folder / "cache"), "--model", "caer-net-s")
    flags = ("--input-px", "32", "--batch-size", "14", "--lr", "0.03", "--epochs", str(epochs), "--workers", "2")
    return TrainJob((*given, *flags, "--keep", str(epochs)), epochs)


def undisturbed_run(job: Job, cluster: ChaosCluster, folder: Path) -> Path:
    """The output of the job when nothing is killed; one that lies there already is taken."""
    output, log = folder / f"{job.name}-undisturbed", folder / f"{job.name}-undisturbed.log"
    if (ledger_of(output) / "summary.json").exists():
        return output
    process = job.start(output, log=log, environment=cluster.environment)
    assert process.wait(timeout=LONGEST_SECONDS) == 0, log.read_text()
    assert job.num_redone(output, log=log) == 0, log.read_text()
    return output


def run_trial(
    job: Job, kind: str, seed: int, *, num_kills: int, cluster: ChaosCluster, folder: Path, undisturbed: Path
) -> Trial:
    """Up to `num_kills` kills of `kind` in one run, at moments that `seed` chooses, and all that must hold after it.

    Where the job is done before its first moment comes, the same is tried with the next seeds.
    """
    started = time.monotonic()
    trial = Trial(job=job.name, kind=kind, seed=seed)
    output, log = folder / "out", folder / "log"
    kills: list[Kill] = []
    for attempt in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        trial.moments.clear()
        chance = random.Random(f"{job.name} {kind} {seed} {attempt}")
        try:
            kills = _disturb(trial, job, output, num_kills=num_kills, log=log, cluster=cluster, chance=chance)
        finally:
            cluster.restore()
        if kills:
            break
    trial.kills = len(kills)
    if not kills:
        trial.problems.append("the moment of the kill never came")
    now, begun = job.committed(output), job.begun(output, log=log)
    again: set[str] = set()
    for kill in kills:
        again |= {name for name, content in kill.committed.items() if now.get(name) != content}
        again |= kill.committed.keys() & set(begun[len(kill.begun) :])
    trial.finished_redone = len(again)
    if again:
        trial.problems.append(f"done again after it was committed: {', '.join(sorted(again))}")
    if not trial.problems:
        trial.audit = job.audit(output)
        trial.lost, trial.doubled, problems = job.compare(output, undisturbed)
        trial.problems += problems
        trial.redone = job.num_redone(output, log=log)
        if trial.redone > trial.in_flight:
            trial.problems.append(f"{trial.redone} units were begun again, {trial.in_flight} were in flight")
    left = wait_until_idle(cluster, seconds=120)
    if left:
        trial.problems.append(f"still at work after the end: {left}")
    if trial.problems:
        trial.problems.append(log.read_text()[-3000:])
    trial.seconds = round(time.monotonic() - started, 1)
    return trial


def _disturb(
    trial: Trial,
    job: Job,
    output: Path,
    *,
    num_kills: int,
    log: Path,
    cluster: ChaosCluster,
    chance: random.Random,
) -> list[Kill]:
    """Start the job, kill, and see it to its end; what stood at each kill."""
    kills: list[Kill] = []
    with contextlib.ExitStack() as stack:

        def start() -> subprocess.Popen:
            process = job.start(output, log=log, environment=cluster.environment)
            stack.callback(_end, process)
            return process

        num_lines = 0  # of the log, when this driver started
        filler = None
        if trial.kind == "object store" and chance.random() < 0.5:
            filler = stack.enter_context(cluster.filled())  # full from the start, and suddenly free
        process = start()
        for first in sorted(chance.sample(range(job.num_units), min(num_kills, job.num_units))):
            at_the_start = chance.random() < 0.2
            num_before, pause = (0, chance.uniform(0, 12)) if at_the_start else (first, chance.uniform(0, 1.5))
            trial.moments.append(f"{num_before} committed, then {pause:.1f} s")
            while process.poll() is None and len(job.committed(output)) < num_before:
                time.sleep(0.05)
            time.sleep(pause)
            kill = _kill(
                trial.kind,
                job,
                output,
                process,
                cluster=cluster,
                chance=chance,
                filler=filler,
                log=log,
                num_lines=num_lines,
            )
            if kill is None:
                break
            kills.append(kill)
            in_flight = job.num_in_flight(output, log=log)
            if trial.kind in CUT_OFF:
                code = _wait(process)
                if trial.kind == "SIGTERM" and code == 0:  # It came when the job had done all and was ending.
                    kills.pop()
                    break
                _require(-signal.SIGKILL if trial.kind == "driver" else 130, code, trial)
                if trial.kind == "SIGTERM":
                    trial.problems += _not_one_line(log)
                if isinstance(job, TrainJob):
                    trial.problems += job.unreadable(output)
                in_flight = job.num_in_flight(output, log=log)  # After SIGTERM units may be begun and ended.
                # At once or after a while: what the killed driver started may still be there.
                time.sleep(chance.choice((0.0, 3.0)))
                num_lines = len(log.read_text().splitlines())
                process = start()
            else:
                cluster.restore()
                # A worker outlives its node for a moment, and may begin a unit that then is begun again.
                in_flight = max(in_flight, job.num_in_flight(output, log=log))
            trial.in_flight += in_flight
        _require(0, _wait(process), trial)
    return kills


def _kill(
    kind: str,
    job: Job,
    output: Path,
    process: subprocess.Popen,
    *,
    cluster: ChaosCluster,
    chance: random.Random,
    filler: subprocess.Popen | None,
    log: Path,
    num_lines: int,
) -> Kill | None:
    """Kill one thing as soon as it is there; what stood just before, or None if the job ended first."""
    while process.poll() is None:
        stood = Kill(committed=job.committed(output), begun=job.begun(output, log=log))
        if kind in CUT_OFF:
            # Until it has imported Ray a driver has no handler for SIGTERM; it has nothing to lose either.
            if kind == "driver" or len(log.read_text().splitlines()) > num_lines:
                process.send_signal(signal.SIGKILL if kind == "driver" else signal.SIGTERM)
                return stood
        elif kind == "object store":
            if filler is not None and filler.poll() is None:
                filler.kill()
            else:
                with cluster.filled():
                    time.sleep(chance.uniform(0, 5))
            return stood
        elif (kill := getattr(cluster, kind.replace(" ", "_"))(chance)) is not None:
            kill()
            return stood
        time.sleep(0.05)
    return None


def _require(wanted: int, code: int | None, trial: Trial) -> None:
    if code is None:
        trial.problems.append(f"it still ran after {LONGEST_SECONDS} s")
    elif code != wanted:
        trial.problems.append(f"exit code {code}, not {wanted}")


def _wait(process: subprocess.Popen) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=LONGEST_SECONDS)
    return None


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def _not_one_line(log: Path) -> list[str]:
    """What the log says after a SIGTERM besides one last line that names the way to resume."""
    last = log.read_text().splitlines()[-1:]
    is_said = (
        last and "interrupted; what was committed is kept" in last[0] and "SIGTERM received" not in log.read_text()
    )
    return [] if is_said else [f"the last line is {last}"]


def table_of(trials: Sequence[Trial]) -> str:
    """The trials by job and kind, as Markdown."""
    columns = (
        "job, killed, trials, lost, doubled, redone / in flight, finished units redone, other faults, median seconds"
    )
    lines = [columns.split(", "), ["---"] * (columns.count(",") + 1)]
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.job, trial.kind), []).append(trial)
    for (job, kind), group in [*sorted(groups.items()), (("all", ""), list(trials))]:
        sums = {name: sum(getattr(trial, name) for trial in group) for name in ("lost", "doubled", "finished_redone")}
        redone = f"{sum(trial.redone for trial in group)} / {sum(trial.in_flight for trial in group)}"
        others = sum(bool(trial.problems) for trial in group)
        seconds = statistics.median(trial.seconds for trial in group)
        counts = (len(group), sums["lost"], sums["doubled"], redone, sums["finished_redone"], others, f"{seconds:.0f}")
        lines.append([job, kind, *map(str, counts)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="in all, those in OUTPUT included")
    parser.add_argument("--kills-per-run", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--kinds", nargs="+", help="default: all")
    parser.add_argument("--output", type=Path, default=Path("build/chaos.jsonl"), help="a JSON line a trial")
    parser.add_argument("--folder", type=Path, help="keeps corpora and undisturbed runs for the next time")
    asked = parser.parse_args()
    pairs = [(job, kind) for job in asked.jobs for kind in KINDS[job] if not asked.kinds or kind in asked.kinds]
    random.Random(asked.seed).shuffle(pairs)
    for number in (signal.SIGINT, signal.SIGTERM):  # `nohup` ignores the one, Ray takes the other
        signal.signal(number, signal.default_int_handler)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.touch()
    trials = [Trial(**json.loads(line)) for line in asked.output.read_text().splitlines()]
    if trials:
        print(f"{len(trials)} trials stand in {asked.output}", flush=True)
    if len(trials) < asked.trials:
        _run_trials(trials, pairs, asked=asked)
    print(table_of(trials))
    return 0 if all(trial.holds for trial in trials) else 1


def _run_trials(trials: list[Trial], pairs: Sequence[tuple[str, str]], *, asked: argparse.Namespace) -> None:
    """Add trials until there are as many as asked for, each to the output file too."""
    with tempfile.TemporaryDirectory(prefix="chaos-work-") as name, ChaosCluster() as cluster:
        folder = asked.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        jobs: dict[str, Job] = {}
        undisturbed: dict[str, Path] = {}

        def prepare(job: Job) -> None:
            jobs[job.name] = job
            undisturbed[job.name] = undisturbed_run(job, cluster, folder)

        if {"preprocess", "score"} & set(asked.jobs):
            prepare(make_preprocess(folder))
        if "score" in asked.jobs:
            prepare(make_score(folder, undisturbed["preprocess"]))
        if "train" in asked.jobs:
            prepare(make_train(folder))
        for number in range(len(trials), asked.trials):
            (job, kind), seed = pairs[number % len(pairs)], asked.seed + number
            where = {"cluster": cluster, "folder": folder / "trial", "undisturbed": undisturbed[job]}
            try:
                trial = run_trial(jobs[job], kind, seed, num_kills=asked.kills_per_run, **where)
            except Exception:  # noqa: BLE001 - the next trials shall run
                trial = Trial(job=job, kind=kind, seed=seed, problems=[traceback.format_exc()])
            trials.append(trial)
            line = json.dumps(asdict(trial))
            print(line, flush=True)
            with asked.output.open("a") as file:
                file.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
