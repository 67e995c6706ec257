"""Image classifiers of Hugging Face: small ones with random weights, saved as its library saves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from example_shards import drawn_example

from pipeline.dataset.dataset import batch_of
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.checkpoint_info import read_checkpoint_info
from pipeline.models.hf_folder import read_hf_folder
from pipeline.models.hf_models import transformers_module
from pipeline.models.predict import Predictor
from pipeline.records.vocabulary import EMOTIONS, UsageError
from pipeline.score.model import describe_model, model_record

pytest.importorskip("transformers", reason="the extra [hf] is not installed")

transformers = transformers_module()

PX = 32
NAMES = ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]
PIXELS = {
    "do_normalize": True,
    "do_rescale": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.6, 0.7],
    "rescale_factor": 1 / 255,
    "size": {"height": PX, "width": PX},
}


def saved(folder: Path, names=NAMES, *, num_channels=3, **pixels) -> Path:
    """A ViT and its image processor's file."""
    torch.manual_seed(5)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=PX,
        patch_size=16,
        num_channels=num_channels,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    model = transformers.ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight.normal_(0, 1)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**PIXELS, **pixels}))
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("vit") / "vit")


@pytest.fixture
def own(vit, tmp_path):
    return Path(shutil.copytree(vit, tmp_path / "own"))


def test_it_labels_as_the_library_does(vit):
    info = read_checkpoint_info(str(vit))
    assert (info["config"]["model"]["face_px"], info["config"]["model"]["classes"]) == (PX, list(EMOTIONS))
    examples = [drawn_example(number, label=None, split=None, px=PX) for number in range(5)]
    found = Predictor(str(vit), which="best", device="cpu", batch_size=2).predict(examples)
    model = transformers.AutoModelForImageClassification.from_pretrained(vit).eval()
    pixels = batch_of(examples, face_px=PX, context_px=PX, context_crop="none").face.float() / 255
    mean, std = (torch.tensor(PIXELS[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    with torch.inference_mode():
        wanted = model(pixel_values=(pixels - mean) / std).logits.softmax(dim=1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)  # Their order is that of the seven.


def test_the_record_says_what_it_is(vit):
    record = model_record(read_checkpoint_info(str(vit)))
    assert (record.name, record.classes) == ("vit", EMOTIONS)
    assert "nobody noted on which data" in describe_model(record)
    assert read_hf_folder(str(vit)).sidecar.mean == (0.5, 0.4, 0.3)


def test_other_names_are_the_classes(tmp_path):
    folder = saved(tmp_path / "m", names=["contempt", "Very happy", "neutral"])
    predictor = Predictor(str(folder), which="best", device="cpu", batch_size=2)
    assert predictor.classes == ("contempt", "Very happy", "neutral")
    found = predictor.predict([drawn_example(0, label=None, split=None, px=PX)])
    assert found.shape == (1, 3)


def test_other_weights_are_another_model_and_the_same_are_the_same(vit, own):
    before = read_checkpoint_info(str(vit))["checkpoint_sha256"]
    same = Path(shutil.copytree(vit, own.parent / "elsewhere" / "own"))
    assert {read_checkpoint_info(str(folder))["checkpoint_sha256"] for folder in (own, same)} == {before}
    for folder in (own, same):
        (folder / "sidecar.json").write_text(json.dumps({"margin": 0.2}))
    here, there = (read_checkpoint_info(str(folder))["checkpoint_sha256"] for folder in (own, same))
    assert here == there != before
    (own / "config.json").write_text((own / "config.json").read_text().replace('"gelu"', '"relu"'))
    assert read_checkpoint_info(str(own))["checkpoint_sha256"] != here


def test_a_sidecar_of_yours_comes_first(own):
    classes = ["Sad", *NAMES[:2], "Happy", "Neutral", "Surprise"]
    told = {"margin": 0.3, "card": "mine", "left_out": ["fear"], "classes": classes}
    (own / "sidecar.json").write_text(json.dumps(told))
    info = read_checkpoint_info(str(own))
    assert (info["config"]["preprocessing"]["box_margin"], info["card"]) == (0.3, "mine")
    assert info["config"]["model"]["classes"] == told["classes"]
    assert load_checkpoint(str(own)).model.sidecar.columns == (5, 0, 1, 3, 4, 6)


@pytest.mark.parametrize(
    ("pixels", "face_px"),
    [
        ({"size": {"shortest_edge": 48}}, 48),
        ({"size": 40}, 40),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, 32),
        ({"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32}, 40),
    ],
)
def test_the_size_is_found_however_it_is_written(own, pixels, face_px):
    (own / "preprocessor_config.json").write_text(json.dumps({**PIXELS, **pixels}))
    assert read_checkpoint_info(str(own))["config"]["model"]["face_px"] == face_px


def test_a_model_that_sees_the_middle_of_what_is_resized_gets_the_middle(own):
    pixels = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": PX, "width": PX}}
    (own / "preprocessor_config.json").write_text(json.dumps({**PIXELS, **pixels}))
    examples = [drawn_example(number, label=None, split=None, px=40) for number in range(3)]
    found = Predictor(str(own), which="best", device="cpu", batch_size=2).predict(examples)
    model = transformers.AutoModelForImageClassification.from_pretrained(own).eval()
    middle = batch_of(examples, face_px=40, context_px=40, context_crop="none").face[:, :, 4:36, 4:36].float() / 255
    mean, std = (torch.tensor(PIXELS[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    with torch.inference_mode():
        wanted = model(pixel_values=(middle - mean) / std).logits.softmax(dim=1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("mean", [0.5, [0.5], [0.5, 0.5, 0.5]])
def test_a_model_of_one_channel_gets_grey(tmp_path, mean):
    folder = saved(tmp_path / "m", image_mean=mean, image_std=mean, num_channels=1)
    found = Predictor(str(folder), which="best", device="cpu", batch_size=2)
    assert found.predict([drawn_example(0, label=None, split=None, px=PX)]).shape == (1, 7)
    sidecar = read_hf_folder(str(folder)).sidecar
    assert (sidecar.colour, sidecar.mean, sidecar.num_channels) == ("grey", (0.5,), 1)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", {"architectures": ["BertModel"]}, "none of which is an image classifier"),
        ("config.json", {"architectures": None}, "none of which is an image classifier"),
        ("config.json", {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, "which says nothing; name them in order in"),
        ("config.json", {"id2label": {"0": "a", "2": "b"}}, "it must name every output by its number"),
        ("config.json", {"id2label": {"0": "a;", "1": "b"}}, "classes has 'a;'"),
        ("config.json", {"id2label": {"0": "<b>x</b>", "1": "b"}}, "classes has '<b>x</b>'"),
        ("config.json", {"id2label": {"0": "happy", "1": "happy"}}, "'happy' more than once"),
        ("config.json", {"id2label": {"0": "happy"}}, "give 2 to 64 names"),
        ("config.json", {"id2label": {}}, "give 2 to 64 names"),
        ("config.json", {"id2label": ["a", "b"]}, "it must name every output by its number"),
        ("config.json", {"id2label": {"0": 1, "1": None}}, "classes has 'None'"),
        ("config.json", {"hidden_size": 24}, "transformers can't load it|lacks .* tensors"),
        ("config.json", {"id2label": {"0": "a", "1": "b"}}, "transformers can't load it|lacks .* tensors"),
        ("preprocessor_config.json", {"size": {"height": 8, "width": 9}}, "which is no square; write face_px into"),
        ("preprocessor_config.json", {"size": None}, "which is no square"),
        ("preprocessor_config.json", {"image_mean": [1, 2]}, "mean is .*; give 3 numbers"),
        ("preprocessor_config.json", {"rescale_factor": -1}, "rescale_factor is -1; give a number above 0"),
    ],
)
def test_what_does_not_fit_is_told(own, name, change, said):
    values = json.loads((own / name).read_text())
    (own / name).write_text(json.dumps({**values, **change}))
    with pytest.raises(UsageError, match=said):
        load_checkpoint(str(own))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", "model.safetensors can't be read .*; save it with safe_serialization, in one file"),
        ("preprocessor_config.json", "preprocessor_config.json is missing, .*write face_px, scale, mean and std into"),
        ("config.json", "it holds no checkpoint of an epoch"),
    ],
)
def test_what_is_missing_is_told(own, name, said):
    (own / name).unlink()
    with pytest.raises(UsageError, match=said):
        load_checkpoint(str(own))


def test_code_of_a_folder_is_never_run(own):
    values = json.loads((own / "config.json").read_text())
    (own / "evil.py").write_text("raise SystemExit('it ran')\n")
    auto = {"AutoModelForImageClassification": "evil.Evil", "AutoConfig": "evil.Evil"}
    (own / "config.json").write_text(json.dumps({**values, "model_type": "evil", "auto_map": auto}))
    with pytest.raises(UsageError, match="transformers can't load it"):
        load_checkpoint(str(own))
    (own / "model.safetensors").write_bytes(b"\x80\x04 a pickle")
    (own / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match="safetensors"):
        load_checkpoint(str(own))
