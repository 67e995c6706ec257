import hashlib
import json
import pickle

import pytest
import torch

from pipeline.checkpoint import committed_epochs, load_checkpoint, read_checkpoint_info, save_checkpoint, write_best
from pipeline.models import build_model
from pipeline.records import UsageError

OPTIONS = {"attention_gain": "area", "recalibration_scale": "sqrt", "dropout": 0.5}
CONFIG = {
    "model": {"name": "caer-net-s", "options": OPTIONS, "face_px": 16, "context_px": 16},
    "training": {"lr": 0.01},
    "preprocessing": {"face_px": 32},
}


def save(run, *, epoch, model=None, config=CONFIG, **info):
    return save_checkpoint(
        str(run),
        epoch=epoch,
        step=epoch * 10,
        model=model or build_model("caer-net-s"),
        optimizer_state={"momentum/w": torch.full((2, 3), float(epoch))},
        config=config,
        info={"metrics": {"top1_accuracy": 0.5}, "manifest_sha256": "ab" * 32, **info},
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of three epochs, whose best is the second; tests copy nothing of it and change nothing in it."""
    run = tmp_path_factory.mktemp("run")
    model = build_model("caer-net-s")
    digests = {epoch: save(run, epoch=epoch, model=model) for epoch in (1, 2, 3)}
    write_best(str(run), epoch=2, top1_accuracy=0.75)
    return run, model, digests


@pytest.fixture
def one_epoch(tmp_path):
    save(tmp_path, epoch=1)
    return tmp_path / "checkpoints" / "epoch-0001"


def test_checkpoint_comes_back_as_the_network_it_was(saved):
    run, model, digests = saved
    loaded = load_checkpoint(str(run), "last")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert not loaded.model.training
    assert loaded.config == CONFIG
    assert (loaded.info["epoch"], loaded.info["step"]) == (3, 30)
    assert loaded.info["manifest_sha256"] == "ab" * 32
    assert loaded.info["metrics"] == {"top1_accuracy": 0.5}
    assert loaded.training_state["momentum/w"].tolist() == [[3.0] * 3] * 2
    weights = run / "checkpoints" / "epoch-0003" / "model.safetensors"
    assert loaded.info["checkpoint_sha256"] == digests[3] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_best_last_and_an_epoch_can_be_chosen(saved):
    run, _, _ = saved
    chosen = [read_checkpoint_info(str(run), which)["epoch"] for which in ("best", "last", 1)]
    assert chosen == [2, 3, 1]
    assert read_checkpoint_info(str(run))["epoch"] == 2


def test_run_is_read_and_written_at_a_url(saved):
    run = "memory://runs/one"
    save(run, epoch=4)
    write_best(run, epoch=4, top1_accuracy=0.5)
    assert committed_epochs(run) == [4]
    assert load_checkpoint(run).info["step"] == 40
    assert load_checkpoint(f"file://{saved[0]}").info["epoch"] == 2


def test_folder_without_its_commit_is_not_seen(one_epoch):
    run = one_epoch.parents[1]
    cut_off = run / "checkpoints" / "epoch-0002"
    cut_off.mkdir()
    (cut_off / "model.safetensors").write_bytes((one_epoch / "model.safetensors").read_bytes())
    assert committed_epochs(str(run)) == [1]
    assert load_checkpoint(str(run), "last").info["epoch"] == 1
    with pytest.raises(UsageError, match="has no checkpoint of epoch 2; it has those of 1"):
        load_checkpoint(str(run), 2)


def test_cut_off_checkpoint_is_written_again_whole(one_epoch):
    (one_epoch / "checkpoint.json").unlink()
    run = one_epoch.parents[1]
    assert committed_epochs(str(run)) == []
    save(run, epoch=1)
    assert load_checkpoint(str(run), "last").info["epoch"] == 1


def test_run_without_checkpoints_names_the_cure(tmp_path):
    assert committed_epochs(str(tmp_path / "nothing")) == []
    with pytest.raises(UsageError, match=r"holds no checkpoint of an epoch; give the --output of a jobs/train.py"):
        load_checkpoint(str(tmp_path))


def test_missing_best_names_the_cure(one_epoch):
    with pytest.raises(UsageError, match=r"best.json is missing or damaged; name an epoch, or use last"):
        load_checkpoint(str(one_epoch.parents[1]))


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
def test_tampered_tensors_are_refused(one_epoch, name):
    content = bytearray((one_epoch / name).read_bytes())
    content[-1] ^= 1
    (one_epoch / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"{name} was changed after it was saved: its sha256"):
        load_checkpoint(str(one_epoch.parents[1]), 1)


def test_missing_tensors_are_refused(one_epoch):
    (one_epoch / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"model.safetensors is missing"):
        load_checkpoint(str(one_epoch.parents[1]), 1)


class _Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_pickle_is_never_run_even_with_a_right_sha256(one_epoch, tmp_path):
    marker = tmp_path / "it ran"
    content = pickle.dumps({"weights": _Bomb(marker)})
    (one_epoch / "model.safetensors").write_bytes(content)
    commit = json.loads((one_epoch / "checkpoint.json").read_text())
    commit["sha256"]["model.safetensors"] = hashlib.sha256(content).hexdigest()
    (one_epoch / "checkpoint.json").write_text(json.dumps(commit))
    with pytest.raises(UsageError, match="is not safetensors"):
        load_checkpoint(str(one_epoch.parents[1]), 1)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (b"not json", "damaged or foreign"),
        (b"[]", "damaged or foreign"),
        ({"kind": "something"}, "is not a checkpoint of epoch 1"),
        ({"format_version": 99}, "is not a checkpoint of epoch 1 in format 1"),
        ({"epoch": 7}, "is not a checkpoint of epoch 1"),
    ],
)
def test_foreign_commit_is_refused(one_epoch, change, told):
    path = one_epoch / "checkpoint.json"
    path.write_bytes(
        change if isinstance(change, bytes) else json.dumps(json.loads(path.read_text()) | change).encode()
    )
    with pytest.raises(UsageError, match=told):
        load_checkpoint(str(one_epoch.parents[1]), 1)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"name": "resnet-9000", "options": OPTIONS}, "'resnet-9000'"),
        ({"name": "cahfw", "options": OPTIONS}, "Missing key"),
        ({"name": "caer-net-s", "options": {"depth": 3}}, "depth"),
        ({}, "None"),
    ],
)
def test_checkpoint_of_another_model_is_refused(tmp_path, model, told):
    save(tmp_path, epoch=1, config={**CONFIG, "model": model})
    with pytest.raises(UsageError, match=f"is not of a model this version builds .*{told}"):
        load_checkpoint(str(tmp_path), 1)


def test_metrics_that_json_cannot_say_write_nothing(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(tmp_path, epoch=1, loss=float("nan"))
    assert not (tmp_path / "checkpoints").exists()


def test_output_that_cannot_be_written_names_the_cure(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be written"):
        save(tmp_path / "file", epoch=1)
