import csv
import json
import shutil
import signal
import threading
import time
from dataclasses import replace

import psutil
import pytest
import torch
import yaml

from pipeline.checkpoint import committed_epochs, load_checkpoint, read_checkpoint_info
from pipeline.models import PAIR_MODELS
from pipeline.records import UsageError
from pipeline.storage import Storage
from pipeline.train import (
    TrainConfig,
    TrainingStopped,
    best_of,
    cosine_lr,
    flood_gradients,
    saved_run,
    train,
    train_worker,
)
from tests.example_shards import write_corpus, write_manifest


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder / "data", train=140)
    return folder


def config_of(corpus, output, **changes):
    """CAER-Net-S at 16 px, 10 steps an epoch: the smallest network there is."""
    fields = {
        "data": str(corpus / "data"),
        "output": str(output),
        "cache_dir": str(corpus / "cache"),
        "model": "caer-net-s",
        "input_px": 16,
        "batch_size": 14,
        "epochs": 2,
        "lr": 0.03,
        "keep": 4,
    }
    return TrainConfig(**(fields | changes))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """Four epochs without a stop, in this process."""
    config = config_of(corpus, tmp_path_factory.mktemp("run"), epochs=4)
    events = []
    train_worker(config, announce=events.append)
    return config, events


def test_training_learns_and_counts_every_validation_example(trained):
    config, events = trained
    history = read_checkpoint_info(config.output, "last")["history"]
    assert [event["event"] for event in events if event["event"] != "step"] == ["start", *["epoch"] * 4]
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.5
    assert best_of(history)["validation_top1_accuracy"] > 0.7  # chance is 1 in 7
    assert {row["validation_examples"] for row in history} == {23}


def test_every_epoch_leaves_a_checkpoint_and_a_row(trained):
    config, _ = trained
    assert committed_epochs(config.output) == [1, 2, 3, 4]
    history = read_checkpoint_info(config.output, "last")["history"]
    with open(f"{config.output}/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "10"), ("2", "20"), ("3", "30"), ("4", "40")]
    assert [float(row["train_loss"]) for row in rows] == [row["train_loss"] for row in history]
    with open(f"{config.output}/best.json") as file:
        assert json.load(file)["epoch"] == best_of(history)["epoch"]


def test_checkpoint_says_what_it_was_trained_on(trained, corpus):
    config, _ = trained
    loaded = load_checkpoint(config.output, "best")
    assert loaded.config["model"]["name"] == "caer-net-s"
    assert loaded.config["model"]["face_px"] == loaded.config["model"]["context_px"] == 16
    assert loaded.config["preprocessing"] == json.loads((corpus / "data" / "manifest.json").read_text())["config"]
    assert loaded.info["metrics"]["num_examples"] == sum(map(sum, loaded.info["metrics"]["confusion_matrix"])) == 23


def test_stopped_and_resumed_equals_undisturbed_bit_for_bit(trained, tmp_path):
    undisturbed, _ = trained

    def stop_at_epoch_2(event):
        if event.get("epoch") == 2 and event["event"] == "epoch":
            raise KeyboardInterrupt

    config = replace(undisturbed, output=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        train_worker(config, announce=stop_at_epoch_2)
    assert committed_epochs(config.output) == [1, 2]
    torch.manual_seed(12345)  # whatever else the process did
    train_worker(config)
    one, other = (read_checkpoint_info(run.output, "last") for run in (undisturbed, config))
    assert one["sha256"] == other["sha256"]  # weights and momentum
    losses = [[row["train_loss"] for row in info["history"]] for info in (one, other)]
    assert losses[0] == losses[1]


def test_other_seed_trains_otherwise(trained, tmp_path):
    config, _ = trained
    other = replace(config, output=str(tmp_path / "run"), seed=1, epochs=1)
    train_worker(other)
    losses = [read_checkpoint_info(run.output, 1)["history"][0]["train_loss"] for run in (config, other)]
    assert losses[0] != losses[1]


def test_decoding_processes_change_nothing(trained, tmp_path):
    config, _ = trained
    # The cosine is that of 4 epochs, so the loop is left after the first.
    other = replace(config, output=str(tmp_path / "run"))

    def leave(event):
        if event["event"] == "epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_worker(other, loader_processes=1, announce=leave)
    one, two = (read_checkpoint_info(run.output, 1) for run in (config, other))
    assert one["sha256"] == two["sha256"]


def test_run_is_written_to_a_url(trained):
    config, _ = trained
    remote = replace(config, output="memory://runs/remote", epochs=1)
    train_worker(remote)
    written = set(Storage(remote.output).sizes(""))
    folder = "checkpoints/epoch-0001"
    assert {f"{folder}/checkpoint.json", f"{folder}/model.safetensors", "best.json", "metrics.csv"} <= written
    assert any(name.startswith("tensorboard/events.out.tfevents") for name in written)


def test_cosine_goes_from_the_learning_rate_to_zero():
    rates = [cosine_lr(step, 100, 0.2) for step in range(101)]
    assert rates[0] == 0.2
    assert rates[50] == pytest.approx(0.1)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert rates == sorted(rates, reverse=True)


def gradient_of(loss, weight):
    (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
    return gradient


@pytest.mark.parametrize(("level", "sign"), [(0.05, 1.0), (3.0, -1.0)])
def test_flooding_turns_the_gradient_below_its_level(level, sign):
    logits = torch.nn.Parameter(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 1]))
    plain, ishida = gradient_of(loss, logits), gradient_of((loss - level).abs() + level, logits)
    logits.grad = plain.clone()
    flood_gradients([logits], loss.detach(), level=level)
    assert torch.equal(logits.grad, sign * plain)
    assert torch.equal(logits.grad, ishida)


def test_flooding_of_two_ranks_is_that_of_their_mean():
    """One rank above the level and one below: each alone would pull its own way."""
    weight = torch.nn.Parameter(torch.tensor(1.0))
    losses = [weight * 0.01, weight * 0.2]
    mean = (losses[0] + losses[1]) / 2
    whole = gradient_of((mean - 0.05).abs() + 0.05, weight)
    weight.grad = (gradient_of(losses[0], weight) + gradient_of(losses[1], weight)) / 2  # DDP's
    flood_gradients([weight], mean.detach(), level=0.05)
    assert weight.grad == whole
    assert sum(gradient_of((loss - 0.05).abs(), weight) for loss in losses) / 2 != whole


def test_loss_that_is_not_finite_stops_and_keeps_what_was(trained, tmp_path):
    config = replace(trained[0], output=str(tmp_path / "run"), lr=1e30)
    with pytest.raises(TrainingStopped, match=r"the loss is (nan|inf) at step \d.*lower --lr \(now 1e\+30\)"):
        train_worker(config)
    assert committed_epochs(config.output) == []


def test_run_with_checkpoints_is_not_overwritten(trained):
    config, _ = trained
    with pytest.raises(UsageError, match="already holds checkpoints up to epoch 4, step 40; add --resume"):
        train(config)


def test_finished_run_resumes_to_its_summary_without_ray(trained):
    config, _ = trained
    summary = train(replace(config, resume=True))
    assert summary["epochs"] == 4
    assert summary["steps"] == 40
    with open(f"{config.output}/summary.json") as file:
        assert json.load(file) == summary


def test_run_killed_after_its_last_commit_resumes_to_its_best_and_all_its_rows(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0].output, run)
    whole = {name: (run / name).read_bytes() for name in ("best.json", "metrics.csv")}
    (run / "best.json").unlink()
    (run / "metrics.csv").write_bytes(b"".join(whole["metrics.csv"].splitlines(keepends=True)[:-1]))
    train(replace(trained[0], output=str(run), resume=True))
    assert {name: (run / name).read_bytes() for name in whole} == whole


def test_resume_under_another_config_prints_the_difference(trained):
    config, _ = trained
    with pytest.raises(UsageError, match=r"--lr is 0.5 here and 0.03 there; --seed is 9 here and 0 there"):
        train(replace(config, resume=True, lr=0.5, seed=9))


def test_resume_on_other_data_is_refused(trained, tmp_path):
    config, _ = trained
    manifest = write_corpus(tmp_path / "data", train=140)
    write_manifest(tmp_path / "data", manifest | {"input": "another corpus"})
    with pytest.raises(UsageError, match=r"the data's manifest is \w+… here and \w+… there"):
        train(replace(config, resume=True, data=str(tmp_path / "data")))


def test_where_and_how_long_a_run_goes_on_may_change(trained):
    config, _ = trained
    changed = replace(config, epochs=9, workers=2, loader_processes=3, max_failures=0, cache_dir=None)
    manifest_sha256 = read_checkpoint_info(config.output, "last")["manifest_sha256"]
    assert saved_run(changed, manifest_sha256) is not None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": 0}, "--epochs 0: give 1 or more"),
        ({"batch_size": -1}, "--batch-size -1"),
        ({"lr": 0.0}, "--lr 0.0: give a number above 0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"momentum": 0.0}, "or --nesterov false"),
        ({"dropout": 1.0}, "--dropout 1.0"),
        ({"flooding": -0.1}, "--flooding -0.1"),
        ({"precision": "fp8"}, "--precision 'fp8'"),
        ({"input_px": 0}, "--input-px 0"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_wrong_field_is_named_with_its_cure(changes, told):
    with pytest.raises(UsageError, match=told):
        TrainConfig(data="data", output="run", **changes)


def test_model_and_size_are_checked_before_any_process_starts(corpus, tmp_path):
    with pytest.raises(UsageError, match="'resnet-9000' is not known; use one of cahfw"):
        train(config_of(corpus, tmp_path / "run", model="resnet-9000"))
    with pytest.raises(UsageError, match=r"--input-px 20: .*multiples of 16"):
        train(config_of(corpus, tmp_path / "run", input_px=20))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", sorted(set(PAIR_MODELS) - {"caer-net-s"}))
def test_every_model_comes_past_the_check(trained, model):
    config, _ = trained
    with pytest.raises(UsageError, match=f"--model is '{model}' here and 'caer-net-s' there"):
        train(replace(config, model=model, resume=True))


def test_default_network_trains_in_bf16(corpus, tmp_path):
    config = config_of(corpus, tmp_path / "run", model="cahfw", precision="bf16", epochs=1, batch_size=70)
    train_worker(config)
    loaded = load_checkpoint(config.output, "last")
    assert {tensor.dtype for tensor in loaded.model.parameters()} == {torch.float32}
    assert loaded.info["metrics"]["train_loss"] < 2.5


def test_missing_data_is_told_before_any_process_starts(tmp_path):
    with pytest.raises(UsageError, match=r"manifest.json is not there"):
        train(TrainConfig(data=str(tmp_path), output=str(tmp_path / "run")))


def test_killed_worker_is_replaced_and_the_run_goes_on(corpus, tmp_path, capsys):
    config = config_of(corpus, tmp_path / "run", workers=2, max_failures=1)
    killed = []

    def kill_a_worker_after_the_first_commit():
        while not committed_epochs(config.output):
            time.sleep(0.05)
        processes = [(" ".join(each.cmdline()), each) for each in psutil.Process().children(recursive=True)]
        for name in ("RayTrainWorker", "_QueueActor"):  # what carries the progress is no more needed than a worker
            process = next(process for command, process in processes if name in command)
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)

    killer = threading.Thread(target=kill_a_worker_after_the_first_commit, daemon=True)
    killer.start()
    summary = train(config)
    killer.join()
    told = capsys.readouterr().err
    assert len(killed) == 2
    assert "training on 2 x cpu from epoch 1" in told
    assert "training on 2 x cpu from epoch 2" in told
    assert told.count("epoch 2/2") == 1
    assert summary["epochs"] == 2
    history = read_checkpoint_info(config.output, "last")["history"]
    assert [(row["epoch"], row["validation_examples"], row["world_size"]) for row in history] == [
        (1, 23, 2),
        (2, 23, 2),
    ]
    saved_config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert TrainConfig(**saved_config) == config
    assert list((tmp_path / "run" / "tensorboard").iterdir())

    train_worker(replace(config, epochs=3))  # on one worker: the global batches are the same
    history = read_checkpoint_info(config.output, "last")["history"]
    assert [(row["epoch"], row["world_size"]) for row in history] == [(1, 2), (2, 2), (3, 1)]
    assert [row["validation_examples"] for row in history] == [23, 23, 23]
