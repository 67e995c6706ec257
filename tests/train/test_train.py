import csv
import hashlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
import yaml
from example_shards import drawn_example, write_corpus, write_manifest, write_shards

from pipeline.dataset.batches import EvaluationBatches, TrainingBatches
from pipeline.dataset.dataset import Batch, ExampleDataset
from pipeline.evaluate.job import evaluate as evaluate_run
from pipeline.evaluate.validation import evaluate, fitted_temperature
from pipeline.models.build import PAIR_MODELS, build_model
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.checkpoint_info import best_of, committed_epochs, read_checkpoint_info
from pipeline.models.predict import predict, reads_of
from pipeline.records.vocabulary import EMOTIONS, UsageError
from pipeline.storage.store import Storage
from pipeline.train.config import RECIPES, TrainConfig, least_smoothed_loss, notes_of
from pipeline.train.job import train
from pipeline.train.learner import TrainingStopped, class_weights, cosine_lr, flood_gradients
from pipeline.train.network import with_readings
from pipeline.train.training_log import RunLogs
from pipeline.train.worker import saved_run, train_worker

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_thread", "shared_ray")]

REPOSITORY = Path(__file__).resolve().parents[2]


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


def losses_of(config):
    """The loss of every step so far, as the newest checkpoint has it."""
    return load_checkpoint(config.output, "newest").training_state["losses"]


def run_forked(action, config, argument, folder):
    """What `tests/support/forked_training.py` prints of a training in processes of its own."""
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    command = [
        sys.executable,
        REPOSITORY / "tests/support/forked_training.py",
        action,
        folder / "config.json",
        argument,
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_killed_within_epochs_and_resumed_equals_undisturbed_bit_for_bit(trained, tmp_path):
    undisturbed, _ = trained
    config = replace(undisturbed, output=str(tmp_path / "run"), checkpoint_every_steps=3)
    steps = sorted(random.sample(range(1, 35), 3))
    points = run_forked("kill", config, ",".join(map(str, steps)), tmp_path)
    print(f"killed after the steps {steps}, at the resume points", points)
    one, other = (read_checkpoint_info(run.output, "last") for run in (undisturbed, config))
    assert one["sha256"] == other["sha256"]  # weights, momentum, and the loss of each of the 40 steps
    assert len(losses_of(config)) == 40
    for run in (undisturbed, config):
        with open(f"{run.output}/steps.csv", newline="") as file:
            assert [float(row["train_loss"]) for row in csv.DictReader(file)] == losses_of(config).tolist()
    assert [row["train_loss"] for row in one["history"]] == [row["train_loss"] for row in other["history"]]
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))  # the epoch's checkpoint is newer


def worker_differences(corpus, folder, *, sizes=(1, 2, 4), **changes):
    """The largest difference, in nats, of each of 20 steps' losses between one worker and 2 and 4."""
    fields = {"input_px": 32, "sync_batchnorm": True, "dropout": 0.0}
    config = config_of(corpus, folder / "of", **(fields | changes))
    run_forked("workers", config, ",".join(map(str, sizes)), folder)
    one, *others = (losses_of(replace(config, output=f"{config.output}-{size}"))[:20] for size in sizes)
    assert len(one) == 20
    assert float(one[0] - one.min()) > 0.01  # a hundred times the difference that is allowed: it does learn
    differences = [float((other - one).abs().max()) for other in others]
    print("differences of more workers, nats", differences)
    return differences


def test_losses_do_not_depend_on_the_number_of_workers(corpus, tmp_path):
    """Batch norm over all workers, and no dropout: by default each worker has its own statistics and masks.

    Rounding now and then turns a ReLU or the maximum of a pooling, and a step of 0.01 makes 1e-3 nats of that within
    20 steps of this small network; one of 0.0002 does not, while a wrong sum of gradients would still show.
    """
    fields = {"model": "se-af", "input": "face", "batch_size": 28, "epochs": 4, "lr": 0.0002, "pooled_norm": "none"}
    assert max(worker_differences(corpus, tmp_path, **fields)) < 1e-4


def test_parts_of_a_batch_are_the_same_examples_on_any_number_of_workers(corpus):
    examples = ExampleDataset(str(corpus / "data"), split="train", cache_dir=str(corpus / "cache"))
    for parts, world_size in ((1, 2), (2, 2), (4, 1), (2, 4)):
        shares = [
            TrainingBatches(examples, batch_size=16, seed=0, flip=True, parts=parts, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        rows = np.stack([share.rows_and_flips(3)[0].reshape(parts, -1) for share in shares], axis=1)
        whole = TrainingBatches(examples, batch_size=16, seed=0, flip=True).rows_and_flips(3)[0]
        np.testing.assert_array_equal(rows.reshape(parts, -1), whole.reshape(parts, -1))


def test_losses_of_parts_do_not_depend_on_the_number_of_workers(corpus, tmp_path):
    """The norm of pooled vectors, synchronised too, divides by what little they vary: it makes more of rounding."""
    fields = {"model": "caer-net-s", "input": "face", "batch_size": 28, "epochs": 4, "lr": 0.0002, "accumulate": 2}
    assert max(worker_differences(corpus, tmp_path, sizes=(1, 2), **fields)) < 1e-3


@pytest.mark.slow
def test_losses_of_the_whole_network_do_not_depend_on_the_number_of_workers(corpus, tmp_path):
    assert max(worker_differences(corpus, tmp_path, model="cahfw", batch_size=12, lr=0.01)) < 1e-4


def test_resume_points_and_old_checkpoints_make_room(trained, tmp_path):
    config = replace(trained[0], output=str(tmp_path / "run"), checkpoint_every_steps=4, keep=1, epochs=4)

    def leave(event):
        if event.get("epoch") == 3 and event["event"] == "epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_worker(config, announce=leave)
    best = best_of(read_checkpoint_info(config.output, "newest")["history"])["epoch"]
    folders = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert folders == {f"epoch-{best:04d}", "epoch-0003"}
    assert load_checkpoint(config.output, "best").info["epoch"] == best


def test_average_of_weights_is_what_is_evaluated_and_goes_on_after_a_stop(trained, tmp_path):
    config = replace(trained[0], output=str(tmp_path / "whole"), ema=0.9, epochs=2, checkpoint_every_steps=4)
    train_worker(config)
    saved = load_checkpoint(config.output, "last")
    weights = saved.training_state["weights/face_encoder.0.0.weight"]
    assert not torch.equal(saved.model.get_parameter("face_encoder.0.0.weight"), weights)
    validation = EvaluationBatches(
        ExampleDataset(config.data, split="validation", face_px=16, context_px=16, cache_dir=config.cache_dir),
        batch_size=23,
    )
    metrics = evaluate(saved.model, iter(validation), device=torch.device("cpu"))
    assert metrics["loss"] == pytest.approx(saved.info["metrics"]["loss"], abs=1e-5)

    stopped = replace(config, output=str(tmp_path / "stopped"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLogs, "write_steps", interrupt)  # just after the resume point at step 4
        with pytest.raises(KeyboardInterrupt):
            train_worker(stopped)
    assert read_checkpoint_info(stopped.output, "newest")["step"] == 4
    train_worker(stopped)
    assert read_checkpoint_info(stopped.output, "last")["sha256"] == saved.info["sha256"]


def test_the_average_of_weights_warms_up(trained, tmp_path):
    """A decay of 0.999 over 40 steps would leave 96 % of the first weights in the average, which then knows nothing."""
    config = replace(trained[0], output=str(tmp_path / "averaged"), ema=0.999)
    train_worker(config)
    assert best_of(read_checkpoint_info(config.output, "last")["history"])["validation_top1_accuracy"] > 0.7


def interrupt(*_):
    raise KeyboardInterrupt


def first_losses(trained, folder, **changes):
    """The losses of one epoch of ResNet-50 with a frozen body: 10 steps in which batch norm takes no part."""
    fields = {"model": "resnet50", "input_px": 32, "epochs": 1, "dropout": 0.0, "lr": 0.1, "batch_size": 28}
    weights = folder / "resnet50.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        network = build_model("resnet50").network
        torch.nn.init.zeros_(network.layer4[2].bn3.weight)  # features of a size that a head learns from
        safetensors.torch.save_file(network.state_dict(), weights)
    fields |= {"pretrained": "frozen", "weights": str(weights)}
    number = len(list(folder.iterdir()))
    config = replace(trained[0], output=str(folder / f"run-{number}"), **(fields | changes))
    train_worker(config)
    return config, losses_of(config)


def test_given_weights_stay_but_for_the_head_and_parts_of_a_batch_change_nothing(trained, tmp_path):
    config, whole = first_losses(trained, tmp_path)
    given = safetensors.torch.load_file(tmp_path / "resnet50.safetensors")
    saved = load_checkpoint(config.output, "last")
    changed = {
        name for name, tensor in given.items() if not torch.equal(tensor, saved.model.network.state_dict()[name])
    }
    assert changed == {"fc.weight", "fc.bias"}
    digest = hashlib.sha256((tmp_path / "resnet50.safetensors").read_bytes()).hexdigest()
    assert saved.info["pretrained_from"] == f"sha256 {digest}"
    assert saved.config["model"]["options"]["reads"] == "face"
    _, in_parts = first_losses(trained, tmp_path, accumulate=4)
    torch.testing.assert_close(in_parts, whole, atol=1e-5, rtol=1e-5)


def test_switches_of_the_loss_and_of_the_step_change_the_losses(trained, tmp_path):
    def losses(name, **changes):
        config = replace(trained[0], output=str(tmp_path / name), input="face", epochs=1, **changes)
        train_worker(config)
        return losses_of(config)

    plain = losses("plain")
    switches = ({"label_smoothing": 0.2}, {"clip_grad_norm": 0.01}, {"warmup_steps": 3}, {"augment_face": ("crop",)})
    for changes in switches:
        assert not torch.equal(losses(next(iter(changes)), **changes), plain), changes
    balanced = losses("balanced", class_weights="balanced")
    assert torch.equal(balanced, plain)  # 20 of each class: all weights are 1


def test_blended_examples_and_another_optimizer_resume_bit_for_bit(trained, tmp_path):
    config = replace(trained[0], output=str(tmp_path / "whole"), input="face", epochs=2, checkpoint_every_steps=4)
    fields = {
        "optimizer": "adamw",
        "lr": 0.003,
        "weight_decay": 0.05,
        "decay": "weights",
        "mixup": 0.2,
        "flooding": 0.0,
    }
    config = replace(config, **fields)
    train_worker(config)
    history = read_checkpoint_info(config.output, "last")["history"]
    assert history[1]["train_loss"] < history[0]["train_loss"]
    stopped = replace(config, output=str(tmp_path / "stopped"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLogs, "write_steps", interrupt)  # just after the resume point at step 4
        with pytest.raises(KeyboardInterrupt):
            train_worker(stopped)
    train_worker(stopped)
    assert (
        read_checkpoint_info(stopped.output, "last")["sha256"] == read_checkpoint_info(config.output, "last")["sha256"]
    )


def test_decay_that_is_for_weights_spares_norms_and_biases(trained, tmp_path):
    """At a rate of 1e-9 gradients change nothing, so what changes is decayed: AdamW's decay is 1e6 times the rate."""
    runs = {}
    for decay in ("all", "weights"):
        config = replace(trained[0], output=str(tmp_path / decay), input="face", epochs=1, optimizer="adamw", lr=1e-9)
        train_worker(replace(config, weight_decay=1e6, decay=decay))
        runs[decay] = load_checkpoint(config.output, "last").model.state_dict()
    norm, weight = "encoder.0.1.weight", "encoder.0.0.weight"  # a batch norm's begins at 1
    assert runs["weights"][norm].mean() == pytest.approx(1.0, abs=1e-6)
    left = math.prod(1 - 1e6 * cosine_lr(step, 10, 1e-9) for step in range(10))
    assert left < 0.995
    assert runs["all"][norm].mean() == pytest.approx(left, abs=1e-5)
    torch.testing.assert_close(runs["weights"][weight], runs["all"][weight])


def test_training_ends_early_where_no_epoch_is_better_and_stays_ended(trained, tmp_path):
    config = replace(trained[0], output=str(tmp_path / "run"), lr=1e-9, epochs=9, early_stop=2, keep=1)
    train_worker(config)
    history = read_checkpoint_info(config.output, "last")["history"]
    best = best_of(history)["epoch"]
    assert len(history) == best + 2 < 9
    train_worker(config)
    assert len(read_checkpoint_info(config.output, "last")["history"]) == best + 2
    assert train(replace(config, resume=True))["epochs"] == best + 2  # without Ray


def test_logits_of_a_pair_and_its_mirror_image_are_averaged_where_asked_for(trained, tmp_path):
    config = replace(trained[0], output=str(tmp_path / "run"), epochs=1, flip_at_test=True)
    train_worker(config)
    saved = load_checkpoint(config.output, "last")
    assert saved.config["model"]["flip_at_test"]
    examples = ExampleDataset(
        config.data, split="validation", cache_dir=config.cache_dir, **reads_of(saved.config["model"])
    )
    batch = examples.read_batch(np.arange(len(examples)))
    mirrored = Batch(batch.face.flip(3), batch.context.flip(3), batch.labels, batch.rows)
    plain, other, both = (
        next(predict(saved.model, [each], device="cpu", flip=flip))[1]
        for each, flip in ((batch, False), (mirrored, False), (batch, True))
    )
    np.testing.assert_allclose(both, (plain + other) / 2, atol=1e-5)
    assert np.abs(plain - other).max() > 1e-3
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(both), batch.labels)
    assert saved.info["metrics"]["loss"] == pytest.approx(float(loss), abs=1e-5)


def test_deterministic_training_gives_the_same_bytes_on_any_number_of_threads(trained, tmp_path):
    hashes = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        config = replace(trained[0], output=str(tmp_path / str(threads)), epochs=1, deterministic=True)
        try:
            train_worker(config)
            assert torch.are_deterministic_algorithms_enabled()
        finally:
            torch.use_deterministic_algorithms(False)
            torch.set_num_threads(1)
        hashes.add(read_checkpoint_info(config.output, "last")["checkpoint_sha256"])
    assert len(hashes) == 1


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_trains_and_is_evaluated(corpus, tmp_path, recipe):
    fields = yaml.safe_load(RECIPES[recipe].read_text()) | {"epochs": 1, "batch_size": 28, "input_px": 32}
    fields |= {"warmup_steps": 0, "pretrained": "none"}
    if recipe == "public-84":
        fields["input_px"] = None  # sizes of its own
    config = TrainConfig(
        data=str(corpus / "data"), output=str(tmp_path / "run"), cache_dir=str(corpus / "cache"), **fields
    )
    assert notes_of(config) == []
    train_worker(config)
    saved = load_checkpoint(config.output, "last")
    described = saved.config["model"]
    sizes = (described["face_px"], described["context_px"], described["context_crop"])
    assert sizes == {"paper": (32, 32, "none"), "public-84": (96, 112, "public"), "strong": (32, 32, "aspect")}[recipe]
    options = described["options"]
    readings = {"paper": ("paper", "none"), "public-84": ("paper", "batch"), "strong": ("paper", "batch")}[recipe]
    assert (options["attention_gain"], options["pooled_norm"]) == readings
    found = evaluate_run(config.data, config.output, splits=("validation",), device="cpu", cache_dir=config.cache_dir)
    assert found["splits"]["validation"]["num_examples"] == 23


def test_a_run_that_goes_on_keeps_its_readings_and_a_new_one_has_todays():
    fields = {"data": "data", "output": "run"}
    assert with_readings(TrainConfig(**fields)).pooled_norm == "batch"
    assert with_readings(TrainConfig(**fields)).attention_gain == "paper"
    assert with_readings(TrainConfig(**fields, pooled_norm="none")).attention_gain == "area"
    old = {"model": "cahfw", "attention_gain": "area"}  # as a version before saved it
    assert with_readings(TrainConfig(**fields), old).pooled_norm == "none"
    assert with_readings(TrainConfig(**fields), old).attention_gain == "area"
    assert with_readings(TrainConfig(**fields, model="caer-net-s")).context_crop == "public"
    assert with_readings(TrainConfig(**fields, model="caer-net-s", input_px=32)).context_crop == "none"


@pytest.mark.parametrize(
    ("settings", "saved", "dropout"),
    [
        ({}, None, 0.2),
        ({"model": "se-af"}, None, 0.2),
        ({"pooled_norm": "none"}, None, 0.5),
        ({"model": "caer-net-s"}, None, 0.5),
        ({"model": "resnet50"}, None, 0.5),
        ({"dropout": 0.0}, None, 0.0),
        ({}, {"model": "cahfw", "dropout": 0.5, "pooled_norm": "batch"}, 0.5),
        ({}, {"model": "cahfw", "dropout": 0.0}, 0.0),
        ({"dropout": 0.3}, {"model": "cahfw", "dropout": 0.3}, 0.3),
    ],
)
def test_dropout_is_what_the_networks_learn_at_and_a_run_that_goes_on_keeps_its_own(settings, saved, dropout):
    assert with_readings(TrainConfig(data="data", output="run", **settings), saved).dropout == dropout


def test_settings_that_work_against_each_other_are_told():
    assert least_smoothed_loss(0.05) == pytest.approx(0.254, abs=5e-4)
    assert least_smoothed_loss(0.1) == pytest.approx(0.446, abs=5e-4)
    assert least_smoothed_loss(0.0) == 0.0
    fields = {"data": "data", "output": "run"}
    assert notes_of(TrainConfig(**fields)) == []
    (told,) = notes_of(TrainConfig(**fields, label_smoothing=0.1))
    assert "the loss can't fall under 0.446, so --flooding 0.05 never acts; give --flooding 0" in told
    assert notes_of(TrainConfig(**fields, label_smoothing=0.1, flooding=0.0)) == []
    assert notes_of(TrainConfig(**fields, label_smoothing=0.1, flooding=0.5)) == []
    (told,) = notes_of(TrainConfig(**fields, accumulate=4))
    assert "batch norm's statistics are those of a part of 32 examples" in told
    (told,) = notes_of(TrainConfig(**fields, mixup=0.2))
    assert "give --flooding 0" in told


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


def test_warm_up_grows_to_the_learning_rate_and_ends_at_zero_with_the_cosine():
    rates = [cosine_lr(step, 24, 0.4, warmup_steps=3) for step in range(25)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[3:] == [cosine_lr(step, 21, 0.4) for step in range(22)]


def test_balanced_classes_weigh_the_same_in_sum():
    labels = np.repeat(np.arange(7), [1, 2, 3, 4, 5, 6, 14])
    weights = class_weights(labels).numpy()
    np.testing.assert_allclose(np.bincount(labels) * weights, 5.0, rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1.0)
    some = class_weights(labels[:6]).numpy()
    np.testing.assert_allclose(some, [2.0, 1.0, 2 / 3, 0, 0, 0, 0], rtol=1e-6)


def test_temperature_undoes_what_sharpened_the_logits():
    random_numbers = np.random.default_rng(0)
    logits = random_numbers.normal(size=(4000, 7)) * 1.5
    odds = np.exp(logits)
    labels = np.array([random_numbers.choice(7, p=row / row.sum()) for row in odds])
    assert fitted_temperature(logits, labels) == pytest.approx(1.0, abs=0.06)
    assert fitted_temperature(logits * 4, labels) == pytest.approx(4 * fitted_temperature(logits, labels), rel=1e-6)
    assert fitted_temperature(logits[:0], labels[:0]) == 1.0
    assert fitted_temperature(np.eye(7) * 9, np.arange(7)) == pytest.approx(0.05)  # never wrong: as sharp as allowed


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
        ({"accumulate": 0}, "--accumulate 0: give 1 or more"),
        ({"augment_face": ("crop", "blur")}, r"--augment-face \('crop', 'blur'\): give some of crop, colour"),
        ({"label_smoothing": 1.0}, "--label-smoothing 1.0"),
        ({"ema": 1.0}, "--ema 1.0: give a number between 0 and 1"),
        ({"clip_grad_norm": 0.0}, "--clip-grad-norm 0.0"),
        ({"checkpoint_every_steps": 0}, "--checkpoint-every-steps 0"),
        ({"keep": 0}, "--keep 0"),
        ({"pooled_norm": "layer"}, "--pooled-norm 'layer': give batch or none"),
        ({"optimizer": "lion"}, "--optimizer 'lion': give sgd or adamw"),
        ({"early_stop": 0}, "--early-stop 0"),
        ({"mixup": -1.0}, "--mixup -1.0"),
        ({"pretrained": "frozen", "encoder": "resnet18"}, "--pretrained 'frozen': .*finetune with --encoder resnet18"),
        ({"pretrained": "frozen"}, "--pretrained 'frozen': give none with --model cahfw"),
        ({"model": "vgg16", "weights": "file"}, "--weights 'file': give --pretrained frozen or finetune too"),
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


def test_impossible_steps_are_told(corpus, tmp_path):
    with pytest.raises(TrainingStopped, match="--accumulate 4: a worker's share of 14 examples"):
        train_worker(config_of(corpus, tmp_path, accumulate=4))
    with pytest.raises(TrainingStopped, match="--warmup-steps 20: the run has 20 steps; give fewer"):
        train_worker(config_of(corpus, tmp_path, warmup_steps=20))
    with pytest.raises(TrainingStopped, match=r"--batch-size 1: .*batch norm would see one example at a time"):
        train_worker(config_of(corpus, tmp_path, batch_size=1))
    with pytest.raises(TrainingStopped, match=r"--batch-size 14: .*--accumulate 14 batch norm would see one example"):
        train_worker(config_of(corpus, tmp_path, accumulate=14))
    with pytest.raises(TrainingStopped, match="batch norm needs more than the 1 example that this network sees"):
        train_worker(config_of(corpus, tmp_path, model="se-af", pooled_norm="none", batch_size=1))


def test_unequal_sizes_are_one_line_before_any_process_starts(corpus, tmp_path):
    manifest = json.loads((corpus / "data" / "manifest.json").read_text())
    manifest["config"]["face_px"] = 48
    shutil.copytree(corpus / "data", tmp_path / "data")
    write_manifest(tmp_path / "data", manifest)
    config = config_of(corpus, tmp_path / "run", data=str(tmp_path / "data"), model="cahfw", input_px=None)
    with pytest.raises(UsageError, match=r"face 48x48 px and context 32x32 px differ.*give both with --input-px"):
        train(config)


def test_missing_weights_and_what_a_network_cannot_read_are_told_before_any_process_starts(corpus, tmp_path):
    backbone = config_of(
        corpus, tmp_path / "run", model="resnet50", input_px=32, pretrained="frozen", weights="none.pth"
    )
    with pytest.raises(UsageError, match=r"--weights none.pth: it can't be read \(.*No such file"):
        train(backbone)
    with pytest.raises(UsageError, match=r"cahfw is made of attention .*--model se-af --input face"):
        train(config_of(corpus, tmp_path / "run", model="cahfw", input="face"))
    assert not (tmp_path / "run").exists()


def test_one_class_and_unlabelled_rows_stop_with_a_line(tmp_path):
    for name, label, told in (("one", "Sad", "no example of Anger"), ("no", None, "holds 7 unlabelled examples")):
        splits = ("train", "validation")
        write_shards(
            tmp_path / name, [[drawn_example(i, label=label, split=split) for i in range(7)] for split in splits]
        )
        with pytest.raises(TrainingStopped, match=told):
            train_worker(TrainConfig(data=str(tmp_path / name), output="unused", cache_dir=str(tmp_path / "cache")))


def test_a_network_that_learned_every_class_goes_on_from_examples_of_some(trained, tmp_path):
    splits = ("train", "validation")
    shards = [[drawn_example(i, label=EMOTIONS[i % 2], split=split) for i in range(14)] for split in splits]
    write_shards(tmp_path / "two", shards)
    own = {"data": str(tmp_path / "two"), "output": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache")}
    config = replace(trained[0], **own, init=trained[0].output, epochs=1, class_weights="balanced")
    train_worker(config)
    (epoch,) = read_checkpoint_info(config.output, "last")["history"]
    assert np.isfinite(epoch["train_loss"])
    assert np.isfinite(epoch["validation_loss"])


def test_write_that_fails_keeps_what_was_and_the_run_goes_on_with_room(trained, tmp_path):
    config = replace(trained[0], output=str(tmp_path / "run"), checkpoint_every_steps=5, epochs=4)

    def leave_no_room(event):
        if event["event"] == "epoch":  # the network's tensors are 8 MB
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))

    try:
        with pytest.raises(TrainingStopped, match=r"model.safetensors can't be written: .*File too large"):
            train_worker(config, announce=leave_no_room)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert load_checkpoint(config.output, "newest").info["step"] == 10
    train_worker(config)
    one, other = (read_checkpoint_info(run.output, "last") for run in (trained[0], config))
    assert one["sha256"] == other["sha256"]


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
