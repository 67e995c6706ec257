"""Where the weights of a network begin."""

import pytest
import torch

from pipeline.models.checkpoint import load_checkpoint
from pipeline.records.vocabulary import UsageError
from pipeline.train.config import TrainConfig
from pipeline.train.network import load_initial, new_model, with_readings


def test_the_network_of_the_package_is_tuned_by_its_name():
    config = with_readings(TrainConfig(data="data", output="run", model="face-resnet", init="baseline"))
    model, shipped = new_model(config), load_checkpoint("baseline", "best")
    assert load_initial(model, config) == f"checkpoint sha256 {shipped.info['checkpoint_sha256']}"
    own, theirs = model.state_dict(), shipped.model.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_a_folder_of_that_name_is_meant_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = with_readings(TrainConfig(data="data", output="run", model="face-resnet", init="./baseline"))
    with pytest.raises(UsageError, match=r"--init: .*baseline"):
        load_initial(new_model(config), config)
