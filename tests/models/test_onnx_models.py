"""Models from outside: what is exported labels as the run does, and what a sidecar gets wrong is said in one line."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from example_shards import drawn_example
from torch import nn

from pipeline.models.build import build_model
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.models.checkpoint_info import read_checkpoint_info, write_best
from pipeline.models.predict import Predictor
from pipeline.models.sidecar import (
    READY,
    git_blob_of,
    outside_info,
    read_onnx,
    read_sidecar,
    ready_sidecar,
)
from pipeline.records.vocabulary import EMOTIONS, UsageError

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

from pipeline.models.export_onnx import export_onnx  # noqa: E402

SIDECAR = {"name": "made", "face_px": 16, "outputs": list(EMOTIONS), "gives": "logits"}


def saved_run(folder: Path, name: str, *, px: int, **options) -> str:
    torch.manual_seed(3)
    model = build_model(name, **options)
    with torch.no_grad():  # norms that are not those of a new network, or what an export loses is not seen
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2.0)
    save_checkpoint(
        str(folder),
        epoch=1,
        step=1,
        model=model,
        optimizer_state={},
        config={
            "model": {"name": name, "options": options, "face_px": px, "context_px": px},
            "training": {},
            "preprocessing": {"detector": "dlib-hog", "box_margin": 0.25, "face_px": px, "context_px": px},
        },
        info={"metrics": {}, "manifest_sha256": "ab" * 32, "temperature": 0.7, "card": "one line"},
    )
    write_best(str(folder), epoch=1, top1_accuracy=0.5)
    return str(folder)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("name", "px", "options"),
    [
        ("face-resnet", 48, {"reads": "face"}),
        ("se-af", 32, {"reads": "context"}),
        ("cahfw", 32, {"attention_gain": "area"}),
        ("cahfw", 32, {"attention_gain": "paper"}),
    ],
)
def test_what_is_exported_labels_as_the_run_does_whatever_the_batch(tmp_path: Path, name: str, px: int, options: dict):
    run = saved_run(tmp_path / "run", name, px=px, **options)
    path, _ = export_onnx(run, str(tmp_path / "out"))
    examples = [drawn_example(number, label=None, split=None, px=px) for number in range(5)]
    for size in (1, 3, 5):
        own, exported = (
            Predictor(checkpoint, which="best", device="cpu", batch_size=size).predict(examples)
            for checkpoint in (run, path)
        )
        np.testing.assert_allclose(exported, own, atol=1e-4)
    info = read_checkpoint_info(path)
    assert (info["temperature"], info["card"]) == (0.7, "one line")
    assert info["config"]["preprocessing"]["box_margin"] == 0.25
    assert info["config"]["preprocessing"]["detector"] == "dlib-hog"


def passing_through(folder: Path, *, columns: int = 7, channels: int = 3, **sidecar) -> str:
    """An .onnx whose output is, of each image, the mean of its channels, in a row of `columns`."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    repeats = [-(-columns // channels)]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["face", "axes"], ["means"], keepdims=0),
            helper.make_node("Concat", ["means"] * repeats[0], ["wide"], axis=1),
            helper.make_node("Slice", ["wide", "zero", "end", "one"], ["out"]),
        ],
        "g",
        [helper.make_tensor_value_info("face", kind, ["n", channels, 16, 16])],
        [helper.make_tensor_value_info("out", kind, ["n", columns])],
        [
            helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3]),
            helper.make_tensor("zero", onnx.TensorProto.INT64, [1], [0]),
            helper.make_tensor("end", onnx.TensorProto.INT64, [1], [columns]),
            helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content = model.SerializeToString()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.onnx").write_bytes(content)
    values = {**SIDECAR, "sha256": hashlib.sha256(content).hexdigest(), **sidecar}
    (folder / "m.json").write_text(json.dumps(values))
    return str(folder / "m.onnx")


def logits_of(path: str, colour: tuple[float, float, float]) -> np.ndarray:
    """Of one image of one colour, 0 to 1."""
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    image = ((torch.tensor(colour) - mean) / std).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    return load_checkpoint(path).model(image, image).numpy()[0]


@pytest.mark.parametrize(
    ("sidecar", "channels"),
    [
        ({"scale": 1}, [51.0, 102.0, 204.0]),
        ({"scale": 255}, [0.2, 0.4, 0.8]),
        ({"colour": "bgr"}, [0.8, 0.4, 0.2]),
        ({"mean": [0.2, 0.4, 0.4], "std": [1, 1, 0.5]}, [0.0, 0.0, 0.8]),
    ],
)
def test_the_model_gets_the_pixels_that_its_sidecar_asks_for(tmp_path: Path, sidecar: dict, channels: list[float]):
    path = passing_through(tmp_path, **sidecar)
    found = logits_of(path, (0.2, 0.4, 0.8))
    np.testing.assert_allclose(found[:3], channels, atol=1e-3)


def test_a_grey_model_gets_one_channel(tmp_path: Path):
    path = passing_through(tmp_path, channels=1, colour="grey", mean=[0.0], std=[1.0])
    grey = 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.8
    np.testing.assert_allclose(logits_of(path, (0.2, 0.4, 0.8)), np.full(7, grey), atol=1e-5)


def test_columns_are_found_by_name_and_what_is_no_emotion_is_left_out(tmp_path: Path):
    outputs = ["anger", "Contempt", "disgusted", "Fear", "happiness", "neutral", "sadness", "surprise", "valence"]
    path = passing_through(tmp_path, columns=9, outputs=outputs, left_out=["Contempt", "valence"])
    found = logits_of(path, (0.2, 0.4, 0.8))  # columns 0.2 0.4 0.8 0.2 0.4 0.8 0.2 0.4 0.8
    np.testing.assert_allclose(found, [0.2, 0.8, 0.2, 0.4, 0.8, 0.2, 0.4], atol=1e-5)
    assert not load_checkpoint(path).model.gives_affect
    as_shares = logits_of(passing_through(tmp_path, gives="probabilities"), (0.2, 0.4, 0.8))
    np.testing.assert_allclose(np.exp(as_shares[:3]), [0.2, 0.4, 0.8], atol=1e-5)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["valence", "arousal"], [0.4, 0.8]),
        (["Arousal", "Valence"], [0.8, 0.4]),
        (["Valence", "other"], [0.4, np.nan]),
        (["other", "arousal"], [np.nan, 0.8]),
    ],
)
def test_valence_and_arousal_are_given_as_they_are_beside_the_same_probabilities(tmp_path: Path, names, expected):
    path = passing_through(tmp_path, columns=9, outputs=[*EMOTIONS, *names], left_out=["other"])
    plain = passing_through(tmp_path / "plain")
    examples = [drawn_example(number, label=None, split=None, px=16) for number in range(3)]
    predictor = Predictor(path, which="best", device="cpu", batch_size=2)
    probabilities, affect = predictor.predict_with_affect(examples)
    own = Predictor(plain, which="best", device="cpu", batch_size=2)
    np.testing.assert_array_equal(probabilities, own.predict(examples))
    assert own.predict_with_affect(examples)[1] is None
    assert affect is not None
    assert affect.shape == (3, 2)
    np.testing.assert_array_equal(np.isnan(affect), np.isnan([expected] * 3))
    assert predictor.predict_with_affect([])[1].shape == (0, 2)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    image = ((torch.tensor((0.2, 0.4, 0.8)) - mean) / std).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    given = load_checkpoint(path).model.with_affect(image, image).numpy()[0]
    # Columns 7 and 8 hold the second and the third channel.
    np.testing.assert_allclose(given[7:], expected, atol=1e-5)


def test_what_is_beyond_one_is_one(tmp_path: Path):
    path = passing_through(tmp_path, columns=9, scale=1, outputs=[*EMOTIONS, "valence", "arousal"])
    image = torch.zeros(1, 3, 16, 16)
    assert load_checkpoint(path).model.with_affect(image, image)[0, 7:].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        ({"outputs": [*EMOTIONS, "Contempt"]}, "Contempt.*left_out"),
        ({"outputs": [*EMOTIONS[:6], "bored"]}, "bored"),
        ({"outputs": list(EMOTIONS[:6])}, "Surprise"),
        ({"outputs": [*EMOTIONS, "happiness"]}, "Happy"),
        ({"outputs": [*EMOTIONS, "valence", "Valence"]}, "valence or arousal twice"),
        ({"gives": "scores"}, "scores.*logits"),
        ({"colour": "hsv"}, "hsv.*rgb"),
        ({"colour": "grey"}, "mean"),
        ({"face_px": "48"}, "face_px is '48'"),
        ({"face_px": 2}, "face_px is 2"),
        ({"scale": 0}, "scale is 0"),
        ({"std": [0, 1, 1]}, "std"),
        ({"mean": [0.5]}, "mean"),
        ({"inputs": ["body"]}, "body"),
        ({"margins": 0.2}, "margins is not known"),
        ({"alignment": "mtcnn"}, "alignment is 'mtcnn'; give one of none, dlib5"),
        ({"cut_px": 300}, "cut_px is 300; give 8 to"),
        ({"output": 1}, "output is 1; give a text"),
        ({"classes": ["Happy", "happy"], "outputs": ["Happy", "happy"]}, "more than once"),
        ({"classes": ["a,b", "c"], "outputs": ["a,b", "c"]}, "'a,b'"),
        ({"classes": ["<i>a</i>", "c"], "outputs": ["<i>a</i>", "c"]}, "<i>a</i>"),
        ({"classes": [], "outputs": []}, "give 2 to 64 names"),
        ({"outputs": [None, *EMOTIONS[1:]]}, "give names"),
        ({"sha256": None}, "sha256 is None"),
    ],
)
def test_a_wrong_sidecar_is_told_in_one_line(spoil: dict, named: str):
    content = json.dumps({**SIDECAR, "sha256": "ab", **spoil}).encode()
    with pytest.raises(UsageError, match=named) as told:
        read_sidecar(content, where="m.json")
    assert "m.json" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"not json", b"{}"])
def test_what_is_no_sidecar_is_told(content: bytes):
    with pytest.raises(UsageError, match=r"m\.json"):
        read_sidecar(content, where="m.json")


def test_files_that_are_missing_changed_or_no_model_are_told(tmp_path: Path):
    path = passing_through(tmp_path)
    wrong = passing_through(tmp_path / "wrong", columns=7, outputs=[*EMOTIONS, "x"], left_out=["x"])
    with pytest.raises(UsageError, match="names 8 outputs"):
        logits_of(wrong, (0, 0, 0))
    Path(path).write_bytes(b"no model")
    with pytest.raises(UsageError, match="sha256"):
        load_checkpoint(path)
    values = {**SIDECAR, "sha256": hashlib.sha256(b"no model").hexdigest()}
    (tmp_path / "m.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match="can't load it"):
        load_checkpoint(path)
    (tmp_path / "m.json").unlink()
    with pytest.raises(UsageError, match=r"m\.json can't be read"):
        read_checkpoint_info(path)
    with pytest.raises(UsageError, match=r"none\.onnx can't be read"):
        read_checkpoint_info(str(tmp_path / "none.onnx"))


CLASSES = ["Contempt", "Very happy", "Angry", "neutral face"]


def test_a_model_with_classes_of_its_own_has_their_names_and_order(tmp_path: Path):
    outputs = ["angry", "arousal", "very happy", "contempt", "other", "Neutral Face"]
    path = passing_through(tmp_path, columns=6, outputs=outputs, classes=CLASSES, left_out=["other"])
    predictor = Predictor(path, which="best", device="cpu", batch_size=2)
    assert predictor.classes == tuple(CLASSES)
    examples = [drawn_example(number, label=None, split=None, px=16) for number in range(3)]
    probabilities, affect = predictor.predict_with_affect(examples)
    assert probabilities.shape == (3, 4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert affect is not None
    assert np.isnan(affect[:, 0]).all()
    assert not np.isnan(affect[:, 1]).any()
    found = logits_of(path, (0.2, 0.4, 0.8))  # columns 0.2 0.4 0.8 0.2 0.4 0.8
    np.testing.assert_allclose(found, [0.2, 0.8, 0.2, 0.8], atol=1e-5)


def test_some_of_the_seven_under_their_other_names_may_be_the_classes(tmp_path: Path):
    path = passing_through(
        tmp_path, columns=3, outputs=["sadness", "joy", "neutral"], classes=["Happy", "Sad", "Neutral"]
    )
    np.testing.assert_allclose(logits_of(path, (0.2, 0.4, 0.8)), [0.4, 0.2, 0.8], atol=1e-5)


@pytest.mark.parametrize(
    ("sidecar", "said"),
    [
        ({"outputs": ["a", "b", "c"], "classes": ["a", "b"]}, "outputs has c, which is none of a, b, valence, arousal"),
        ({"outputs": ["a", "b"], "classes": ["a", "b", "c"]}, "outputs must have each class once; it is not so for c"),
        ({"outputs": ["a", "A", "b"], "classes": ["a", "b"]}, "outputs must have each class once; it is not so for a"),
        ({"outputs": ["a", "b"], "classes": ["a"]}, "classes is .*; give 2 to 64 names"),
        ({"outputs": ["a", "b"], "classes": ["a", "b;"]}, "classes has 'b;'; a class has"),
        ({"outputs": ["a", "b"], "classes": "a, b"}, "classes is .*; give a list"),
        ({"outputs": ["Contempt", *EMOTIONS]}, "or all classes of the model in classes"),
    ],
)
def test_classes_that_do_not_fit_the_outputs_are_told(sidecar: dict, said: str):
    content = json.dumps({**SIDECAR, "sha256": "0" * 64, **sidecar}).encode()
    with pytest.raises(UsageError, match=said):
        read_sidecar(content, where="m.json")


def test_a_model_of_an_older_sidecar_is_the_same_model_still():
    """Its labels lie in a folder of this name."""
    values = {**SIDECAR, "sha256": "ab" * 32, "margin": 0.1, "card": "one"}
    sidecar = read_sidecar(json.dumps(values).encode(), where="m.json")
    told = outside_info(sidecar)["checkpoint_sha256"]
    assert told == "4dbfc4b0f40a9b4d22113bef01985ad99f95114dc1a125262ec9d2eeb781d1f4"
    other = read_sidecar(json.dumps({**values, "classes": list(EMOTIONS)[::-1]}).encode(), where="m.json")
    assert outside_info(other)["checkpoint_sha256"] != told


def test_a_file_may_be_known_by_the_id_that_git_gives_it(tmp_path: Path):
    path = passing_through(tmp_path)
    content = Path(path).read_bytes()
    by_git = subprocess.run(["git", "hash-object", path], check=True, capture_output=True, text=True).stdout.strip()
    assert git_blob_of(content) == by_git
    values = {**SIDECAR, "git_blob": by_git}
    Path(tmp_path / "m.json").write_text(json.dumps(values))
    assert read_onnx(path).sidecar.sha256 == hashlib.sha256(content).hexdigest()
    Path(tmp_path / "m.json").write_text(json.dumps({**values, "git_blob": "0" * 40}))
    with pytest.raises(
        UsageError, match=rf"its git_blob is {by_git[:12]}…, .*m.json says 000000000000…; fetch it again"
    ):
        read_onnx(path)
    with pytest.raises(UsageError, match="lacks sha256"):
        read_sidecar(json.dumps(SIDECAR).encode(), where="m.json")


@pytest.mark.parametrize("name", READY)
def test_ready_sidecars_are_sound_and_found_by_the_name_of_the_file(name: str, tmp_path: Path):
    sidecar = read_sidecar(ready_sidecar(name), where=name)
    assert (sidecar.name, len(sidecar.classes), sidecar.face_px) == (name, 8, 260 if "_b2_" in name else 224)
    assert len(sidecar.git_blob or "") == 40
    assert sidecar.source.endswith(f"{name}.onnx")
    assert (sidecar.affect_columns == (8, 9)) is ("va_mtl" in name)
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(b"another model")
    with pytest.raises(UsageError, match=rf"its git_blob is .*, the sidecar {name} of this package says"):
        read_onnx(str(path))


def test_a_file_of_another_name_needs_a_sidecar(tmp_path: Path):
    (tmp_path / "mine.onnx").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"mine.json can't be read .*; write what the model wants and gives"):
        read_onnx(str(tmp_path / "mine.onnx"))


def made_model(folder: Path, *, kind: str = "FLOAT", shape=("n", 3, 16, 16), outputs=("out",), columns: int = 7, **own):
    """An .onnx whose outputs are the means of its one input's channels, as in `passing_through`."""
    helper, proto = onnx.helper, onnx.TensorProto
    channels = 3 if 3 in shape else 1
    axes = [1, 2] if shape[-1] == channels else [2, 3]
    nodes = [
        helper.make_node("Cast", ["in"], ["floats"], to=proto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("Concat", ["means"] * (columns // channels + 1), ["wide"], axis=1),
        helper.make_node("Slice", ["wide", "zero", "end", "one"], ["logits"]),
        helper.make_node("Slice", ["wide", "zero", "two", "one"], ["features"]),
    ]
    known = {"out": ("logits", columns), "features": ("features", 2)}
    nodes += [helper.make_node("Identity", [known[name][0]], [f"{name}_"]) for name in outputs]
    constants = {"axes": axes, "zero": [0], "end": [columns], "one": [1], "two": [2]}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("in", getattr(proto, kind), list(shape))],
        [helper.make_tensor_value_info(f"{name}_", proto.FLOAT, [shape[0], known[name][1]]) for name in outputs],
        [helper.make_tensor(name, proto.INT64, [len(value)], value) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content = model.SerializeToString()
    (folder / "m.onnx").write_bytes(content)
    values = {**SIDECAR, "sha256": hashlib.sha256(content).hexdigest(), "scale": 1, **own}
    (folder / "m.json").write_text(json.dumps(values))
    return str(folder / "m.onnx")


def of_colours(path: str, *colours: tuple[float, float, float]) -> np.ndarray:
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    images = ((torch.tensor(colours) - mean) / std).view(-1, 3, 1, 1).expand(-1, 3, 16, 16)
    return load_checkpoint(path).model(images, images).numpy()[:, :3]


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "DOUBLE", "UINT8", "INT32"])
@pytest.mark.parametrize(
    "shape",
    [("n", 3, 16, 16), ("n", 16, 16, 3), (1, 3, 16, 16), (4, 3, 16, 16), ("n", 3, "h", "w"), ("n", "h", "w", 3)],
)
def test_any_type_order_and_batch_of_an_input_is_given_what_it_takes(tmp_path: Path, kind: str, shape):
    path = made_model(tmp_path, kind=kind, shape=shape)
    colours = [(0.2, 0.4, 0.8), (0.0, 0.2, 1.0), (0.6, 0.6, 0.4), (0.4, 0.0, 0.0), (1.0, 0.8, 0.2)]
    np.testing.assert_allclose(of_colours(path, *colours), 255 * np.array(colours), atol=0.3)


def test_the_output_that_a_sidecar_names_is_taken(tmp_path: Path):
    path = made_model(tmp_path, outputs=("features", "out"), output="out_")
    np.testing.assert_allclose(of_colours(path, (0.2, 0.4, 0.8)), [[51, 102, 204]], atol=0.1)
    path = made_model(tmp_path, outputs=("out", "features"))
    np.testing.assert_allclose(of_colours(path, (0.2, 0.4, 0.8)), [[51, 102, 204]], atol=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"outputs": ("features", "out")},
            r"output features_ is \['n', 2\], its sidecar names 7 outputs .*out_ \['n', 7\]",
        ),
        ({"output": "logit"}, "its outputs are out_ .*its sidecar says output 'logit'"),
        ({"columns": 8}, "names 7 outputs of each face"),
        ({"kind": "INT64"}, r"its input in is tensor\(int64\); it must be one of tensor\(float\)"),
        ({"shape": ("n", 3, 48, 48)}, r"its input in takes \['any', 3, 48, 48\], .* 3 channels and squares of 16 px"),
        ({"shape": ("n", 1, 16, 16)}, "3 channels and squares of 16 px"),
        ({"colour": "grey", "mean": [0], "std": [1]}, "1 channels and squares of 16 px"),
        ({"inputs": ["face", "context"]}, "it has the inputs in, its sidecar says face, context"),
    ],
)
def test_what_a_file_is_not_is_told_when_it_is_loaded(tmp_path: Path, options, said):
    path = made_model(tmp_path, **options)
    with pytest.raises(UsageError, match=said) as told:
        load_checkpoint(path)
    assert "\n" not in str(told.value)


def test_values_that_are_not_finite_are_told(tmp_path: Path):
    path = made_model(tmp_path, std=[1e-300, 1, 1])
    with pytest.raises(UsageError, match="it gives values that are not finite; check scale, mean and std"):
        of_colours(path, (0.2, 0.4, 0.8))


def test_a_model_of_aligned_faces_gets_them_upright(tmp_path: Path):
    info = read_checkpoint_info(made_model(tmp_path, alignment="dlib5", margin=0.25))
    assert (info["config"]["preprocessing"]["alignment"], info["config"]["preprocessing"]["box_margin"]) == (
        "dlib5",
        0.25,
    )
    assert info["files_sha256"] == hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
