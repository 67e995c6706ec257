import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.models.build import build_model
from pipeline.models.checkpoint import drop_old_checkpoints, load_checkpoint, save_checkpoint
from pipeline.models.checkpoint_info import (
    best_of,
    committed_epochs,
    newest_checkpoint,
    read_checkpoint_info,
    write_best,
)
from pipeline.records.vocabulary import UsageError
from pipeline.storage.store import Storage

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


class _KilledError(BaseException):
    pass


def whole(run, which):
    """The JSON of a checkpoint whose files are all there and as they were committed."""
    info = read_checkpoint_info(run, which)
    name = f"epoch-{info['epoch']:04d}" if info["after"] == "epoch" else f"step-{info['step']:08d}"
    folder = Path(run, "checkpoints", name)
    for name, sha256 in info["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    return info


@pytest.mark.lengthy
def test_crash_between_any_two_writes_leaves_a_run_that_is_read_and_gone_on_with(tmp_path, monkeypatch):
    """Three epochs with a resume point in each, cut off before every write and every deletion in turn."""
    small = torch.nn.Linear(1, 1)
    scores = {1: 0.5, 2: 0.75, 3: 0.25}
    history = [{"epoch": epoch, "validation_top1_accuracy": score} for epoch, score in scores.items()]
    original, left = {name: getattr(Storage, name) for name in ("put", "delete")}, [0]

    def counted(name):
        def call(self, *arguments):
            if left[0] == 0:
                raise _KilledError
            left[0] -= 1
            original[name](self, *arguments)

        return call

    for name in original:
        monkeypatch.setattr(Storage, name, counted(name))

    def run_on(run):
        """From the newest state to the end, as training writes it."""
        done = read_checkpoint_info(run, "newest")["step"] if newest_checkpoint(run) else 0
        for step in range(done + 1, 7):
            epoch, after = step // 2, "step" if step % 2 else "epoch"
            state = {"optimizer_state": {}, "config": CONFIG, "after": after}
            info = {"metrics": {}, "manifest_sha256": "ab", "history": history[:epoch], "after": after}
            save_checkpoint(run, epoch=epoch, step=step, model=small, info=info, **state)
            if after == "epoch":
                best = best_of(history[:epoch])
                write_best(run, epoch=best["epoch"], top1_accuracy=best["validation_top1_accuracy"])
            drop_old_checkpoints(run, keep=1)

    num_cuts = 0
    while True:
        run, left[0] = str(tmp_path / f"cut-{num_cuts}"), num_cuts
        try:
            run_on(run)
        except _KilledError:
            num_cuts += 1
        else:
            break
        if epochs := committed_epochs(run):
            assert whole(run, "best")["epoch"] in epochs
            assert whole(run, "last")["epoch"] == epochs[-1]
        if newest_checkpoint(run):
            assert whole(run, "newest")["step"] > 0
        left[0] = 1000
        run_on(run)
        drop_old_checkpoints(run, keep=1)
        assert committed_epochs(run) == [2, 3]
        assert read_checkpoint_info(run, "best")["epoch"] == 2
        assert sorted(path.name for path in Path(run, "checkpoints").iterdir()) == ["epoch-0002", "epoch-0003"]
        shutil.rmtree(run)
    assert num_cuts > 25


@pytest.mark.lengthy
def test_full_disk_names_the_cure_and_keeps_what_was(tmp_path):
    """On a file system of 6 MB, mounted where nobody else sees it: one network of 4 MB fits."""
    script = f"""
import sys
from pipeline.models.checkpoint import save_checkpoint
from pipeline.models.checkpoint_info import committed_epochs
from pipeline.models import build_model
from pipeline.records import UsageError
model = build_model("se-af", reads="face")
try:
    for epoch in (1, 2):
        state = {{"model": model, "optimizer_state": {{}}, "config": {{}}, "info": {{}}}}
        save_checkpoint({str(tmp_path)!r}, epoch=epoch, step=epoch, **state)
except UsageError as error:
    print(committed_epochs({str(tmp_path)!r}), error)
"""
    mounted = f'mount -t tmpfs -o size=6m none {tmp_path} && exec {sys.executable} -c "$SCRIPT"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted]
    environment = os.environ | {"SCRIPT": script, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "mount" in found.stderr or "unshare" in found.stderr:
        pytest.skip("this machine lets nobody mount a file system of his own")
    assert found.stderr == ""
    assert found.stdout.startswith("[1] run ")
    assert re.search("model.safetensors can't be written: .*No space left on device", found.stdout)


def test_output_that_cannot_be_written_names_the_cure(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be written"):
        save(tmp_path / "file", epoch=1)


@pytest.mark.parametrize(("name", "gain"), [("caer-net-s", "area"), ("cahfw", "area"), ("se-af", "paper")])
def test_a_checkpoint_older_than_the_pooled_norm_is_the_network_that_it_was(tmp_path, name, gain):
    """Its options say nothing of the norm, and caer-net-s was se-af under another name."""
    torch.manual_seed(0)
    model = build_model(name, attention_gain=gain, pooled_norm="none").eval()
    described = {"name": name, "options": {"reads": "pair", "attention_gain": gain}, "face_px": 32, "context_px": 32}
    save_checkpoint(
        str(tmp_path),
        epoch=1,
        step=1,
        model=model,
        optimizer_state={},
        config={"model": described, "training": {}, "preprocessing": {}},
        info={"metrics": {}, "manifest_sha256": "", "history": [{"epoch": 1, "validation_top1_accuracy": 0.5}]},
    )
    loaded = load_checkpoint(str(tmp_path), 1).model
    pair = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(*pair), model(*pair))
