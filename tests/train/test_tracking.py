import io
import os
import sys

import pytest
from rich.console import Console

from pipeline.records.vocabulary import UsageError
from pipeline.train.training_log import MlflowRun, TrainingDisplay, import_mlflow

STEP = {
    "event": "step",
    "step": 120,
    "total_steps": 5000,
    "epoch": 2,
    "epochs": 50,
    "loss": 1.23456,
    "examples_per_second": 812.34,
    "seconds_left": 3725.2,
}
EPOCH = {
    "event": "epoch",
    "epoch": 2,
    "epochs": 50,
    "train_loss": 1.5,
    "validation_loss": 1.25,
    "validation_top1_accuracy": 0.5,
    "lr": 0.01,
    "train_examples_per_second": 800.0,
}


def test_bar_in_a_terminal_tells_epoch_loss_speed_and_time_left():
    told = io.StringIO()
    with TrainingDisplay(Console(file=told, force_terminal=True, width=120)) as display:
        display.show(STEP)
    for part in ("epoch 2/50", "loss 1.2346", "812.3 examples/s", "1:02:06 left"):
        assert part in told.getvalue()


def test_without_a_terminal_epochs_are_lines_and_steps_rarely_are(capsys, monkeypatch):
    with TrainingDisplay(Console(file=io.StringIO(), force_terminal=False)) as display:
        display.show({"event": "start", "epoch": 1, "step": 0, "steps_per_epoch": 10, "world_size": 2, "device": "cpu"})
        display.show(
            {"event": "start", "epoch": 2, "step": 13, "steps_per_epoch": 10, "world_size": 2, "device": "cpu"}
        )
        display.show(STEP)  # less than a minute after the start
        display.show(EPOCH)
        monkeypatch.setattr("pipeline.train.training_log.LINE_SECONDS", 0)
        display.show(STEP)
    assert capsys.readouterr().err.splitlines() == [
        "training on 2 x cpu from epoch 1",
        "training on 2 x cpu from epoch 2, step 14",
        "epoch 2/50  train loss 1.5000  validation loss 1.2500  top-1 50.00%  lr 0.01  800.0 examples/s",
        "step 120/5000  loss 1.2346  812.3 examples/s  1:02:06 left",
    ]


def test_missing_mlflow_names_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # what an import finds where it is not installed
    with pytest.raises(UsageError, match="--tracking mlflow: MLflow is not installed: pip install mlflow"):
        import_mlflow()


def test_resumed_run_goes_on_in_its_mlflow_run_with_every_epoch_once(tmp_path, monkeypatch):
    # Where it is installed: MLflow is the user's choice and no dependency.
    mlflow = pytest.importorskip("mlflow")
    for name, value in (
        ("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns"),
        ("MLFLOW_ALLOW_FILE_STORE", "true"),
        ("MLFLOW_EXPERIMENT_NAME", "emotions"),
    ):
        monkeypatch.setitem(os.environ, name, value)
    rows = [{"step": 10 * epoch, "epoch": epoch, "train_loss": 1 / epoch, "note": None} for epoch in (1, 2, 3)]
    first = MlflowRun(str(tmp_path / "run"), parameters={"lr": 0.1})
    first.log(rows[0])
    first.close(finished=False)
    second = MlflowRun(str(tmp_path / "run"), parameters={"lr": 0.1}, history=rows[:2])  # one that was not logged
    second.log(rows[2])
    second.close(finished=True)
    assert second.run_id == first.run_id
    run = mlflow.get_run(first.run_id)
    assert run.data.params == {"lr": "0.1"}
    assert run.info.status == "FINISHED"
    metrics = mlflow.MlflowClient().get_metric_history(first.run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in metrics] == [(10, 1.0), (20, 0.5), (30, 1 / 3)]
