"""What a training shows to people: epochs and steps come in; tables, TensorBoard, MLflow and a progress bar go out.

RUN/metrics.csv    one row per epoch              RUN/steps.csv    loss and learning rate of every step
RUN/tensorboard/   both                           RUN/mlflow.json  the run's id in the user's MLflow
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch.utils.tensorboard.writer import SummaryWriter

from pipeline.models.checkpoint_info import best_of, put, write_best
from pipeline.records.documents import parse_json
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import is_json, log_event, log_status
from pipeline.storage.scratch import PREFIX, ScratchFolder
from pipeline.storage.store import Storage

LINE_SECONDS = 60  # between two lines on the progress where there is no terminal for a bar


JSON_SECONDS = 1  # between two steps of --json-logs


class RunLogs:
    """The tables and TensorBoard's files of a run; on a remote RUN these are written locally and copied.

    first_step: steps done before; what a killed worker wrote past them is hidden, not drawn twice. lr_of: the
    learning rate of a step.
    """

    def __init__(self, run_url: str, *, first_step: int, lr_of: Callable[[int], float]) -> None:
        self.run_url, self._step, self._lr_of = run_url, first_step, lr_of
        storage = Storage(run_url)
        self._local = storage.is_local
        self._scratch = None if self._local else ScratchFolder(f"{PREFIX}tensorboard-")
        parent = Path(storage.path()) if self._scratch is None else self._scratch.path
        self._folder = parent / "tensorboard"
        self._writer = SummaryWriter(str(self._folder), purge_step=first_step + 1)

    def write_epoch(self, history: Sequence[Mapping[str, Any]], losses: Sequence[float]) -> None:
        """After an epoch: `history` has a row for each, `losses` one of every step of the run, in nats."""
        self.write_tables(history, losses)
        for name, value in history[-1].items():
            if name not in ("epoch", "step") and value is not None:
                self._writer.add_scalar(name, value, history[-1]["step"])
        self._write_tensorboard(losses)

    def write_steps(self, losses: Sequence[float]) -> None:
        """After a resume point within an epoch."""
        self._write_steps_table(losses)
        self._write_tensorboard(losses)

    def write_tables(self, history: Sequence[Mapping[str, Any]], losses: Sequence[float]) -> None:
        """best.json, metrics.csv and steps.csv, as the newest checkpoint has them."""
        if history:
            write_history(self.run_url, history)
        self._write_steps_table(losses)

    def close(self) -> None:
        self._writer.close()
        if self._scratch is not None:
            self._scratch.close()

    def _write_steps_table(self, losses: Sequence[float]) -> None:
        rows = [{"step": i + 1, "train_loss": loss, "lr": self._lr_of(i)} for i, loss in enumerate(losses)]
        _put_table(self.run_url, "steps.csv", rows=rows)

    def _write_tensorboard(self, losses: Sequence[float]) -> None:
        for i in range(self._step, len(losses)):
            self._writer.add_scalar("train_loss_of_step", losses[i], i + 1)
        self._step = len(losses)
        self._writer.flush()
        if not self._local:
            for file in sorted(self._folder.iterdir()):
                put(self.run_url, f"tensorboard/{file.name}", content=file.read_bytes())


def write_history(run_url: str, history: Sequence[Mapping[str, Any]]) -> None:
    """best.json and metrics.csv of the epochs so far."""
    best = best_of(history)
    write_best(run_url, epoch=best["epoch"], top1_accuracy=best["validation_top1_accuracy"])
    _put_table(run_url, "metrics.csv", rows=history)


def _put_table(run_url: str, name: str, *, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[-1]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    put(run_url, name, content=text.getvalue().encode())


def import_mlflow() -> Any:
    """The user's MLflow. Raises UsageError where it is not installed."""
    try:
        import mlflow  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise UsageError("--tracking mlflow: MLflow is not installed: pip install mlflow, or --tracking none") from None
    return mlflow


class MlflowRun:
    """A run in the MLflow that MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME name; a resumed RUN goes on in it.

    parameters: the config. history: rows of the epochs that are committed; those that a killed driver did not log are
    logged first.
    """

    def __init__(
        self, run_url: str, *, parameters: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._mlflow = import_mlflow()
        storage = Storage(run_url)
        try:
            run_id = (
                parse_json(storage.read("mlflow.json"), "mlflow.json")["run_id"]
                if storage.exists("mlflow.json")
                else None
            )
            run = self._mlflow.start_run(run_id=run_id, run_name=None if run_id else run_url)
        except self._mlflow.MlflowException as error:
            raise UsageError(f"--tracking mlflow: {' '.join(str(error).split())}; check MLFLOW_TRACKING_URI") from None
        self.run_id: str = run.info.run_id
        if run_id is None:
            self._mlflow.log_params(parameters)
            put(run_url, "mlflow.json", content=json.dumps({"run_id": self.run_id}).encode())
        known = {metric.step for metric in self._mlflow.MlflowClient().get_metric_history(self.run_id, "train_loss")}
        for row in history:
            if row["step"] not in known:
                self.log(row)

    def log(self, row: Mapping[str, Any]) -> None:
        """One epoch's row of numbers."""
        metrics = {name: value for name, value in row.items() if isinstance(value, int | float)}
        self._mlflow.log_metrics(metrics, step=row["step"])

    def close(self, *, finished: bool) -> None:
        self._mlflow.end_run("FINISHED" if finished else "FAILED")


class TrainingDisplay(AbstractContextManager["TrainingDisplay"]):
    """The progress of a training: a bar with loss, examples/s and the time left in a terminal, else lines."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
        self._bar = (
            Progress(*columns, console=console, transient=True) if console.is_terminal and not is_json() else None
        )
        self._task: Any = None
        self._told_at = time.monotonic()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, event: Mapping[str, Any]) -> None:
        """An event that rank 0 announced: start, step or epoch."""
        if is_json():
            if event["event"] != "step" or time.monotonic() - self._told_at > JSON_SECONDS:
                self._told_at = time.monotonic()
                log_event(**event)
            return
        if event["event"] != "step":
            log_status(_line(event))
            return
        minutes, seconds = divmod(math.ceil(event["seconds_left"]), 60)
        left = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        told = f"loss {event['loss']:.4f}  {event['examples_per_second']:.1f} examples/s  {left} left"
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("", total=event["total_steps"], told="")
            description = f"epoch {event['epoch']}/{event['epochs']}"
            self._bar.update(self._task, description=description, completed=event["step"], told=told)
        elif time.monotonic() - self._told_at > LINE_SECONDS:
            self._told_at = time.monotonic()
            log_status(f"step {event['step']}/{event['total_steps']}  {told}")


def _line(event: Mapping[str, Any]) -> str:
    if event["event"] == "start":
        where = f"training on {event['world_size']} x {event['device']} from epoch {event['epoch']}"
        return f"{where}, step {event['step'] + 1}" if event["step"] % event["steps_per_epoch"] else where
    return (
        f"epoch {event['epoch']}/{event['epochs']}  train loss {event['train_loss']:.4f}"
        f"  validation loss {event['validation_loss']:.4f}  top-1 {event['validation_top1_accuracy']:.2%}"
        f"  lr {event['lr']:.2g}  {event['train_examples_per_second']:.1f} examples/s"
    )
