"""The networks: their size, their attention, and that both branches are alive before the first step."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.backbones import Backbone, imagenet_weights, read_weights, torchvision_models
from pipeline.models.build import PAIR_MODELS, build_model, check_network
from pipeline.models.cahfw import (
    CAHFWNet,
    ContextHighlight,
    CrossAttention,
    ElementRecalibration,
    HybridWeighting,
    channel_attention,
)
from pipeline.models.encoders import check_imagenet, load_imagenet
from pipeline.records.vocabulary import UsageError


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(count: int, side_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 3, side_px, side_px), torch.randn(count, 3, side_px, side_px)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def gradients(model: nn.Module) -> dict[str, float]:
    """Norms of the gradients of one cross-entropy loss at initialisation, by parameter."""
    face, context = images(4, 224)
    nn.functional.cross_entropy(model(face, context), torch.tensor([0, 2, 4, 6])).backward()
    norms = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in norms.values())
    return {name: gradient.norm().item() for name, gradient in norms.items() if gradient is not None}


def test_every_block_has_the_papers_number_of_parameters():
    model = build_model("cahfw")
    assert {name: num_parameters(block) for name, block in model.named_children()} == {
        "face_encoder": 979_968,
        "context_encoder": 979_968,
        "context_highlight": 296_451,
        "face_interaction": 2_360_832,
        "face_recalibration": 65_792,
        "context_interaction": 2_360_832,
        "context_recalibration": 65_792,
        "weighting": 132_100,
        "fusion": 165_127,
    }
    assert num_parameters(model) == 7_406_862


@pytest.mark.lengthy
def test_one_pair_at_224_px_costs_2816_8_million_multiply_accumulates():
    model = build_model("cahfw").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*images(1, 224))
    assert counter.get_total_flops() / 2 / 1e6 == pytest.approx(2816.8, abs=0.05)


def test_ablations_lack_exactly_the_blocks_that_the_paper_removes():
    whole, without_recalibration, without_attention = (
        num_parameters(build_model(name)) for name in ("cahfw", "se-ca-aa", "se-af")
    )
    assert whole - without_recalibration == 2 * 65_792
    # Two encoders, the highlight, one pair of weights instead of two, and a head of 512 -> 128 -> 7.
    assert without_attention == 2 * 979_968 + 296_451 + 132_100 // 2 + (512 * 128 + 128) + (128 * 7 + 7)


def test_caer_net_s_is_the_public_network_and_se_af_the_papers():
    public, ablation = build_model("caer-net-s"), build_model("se-af")
    assert (num_parameters(public), num_parameters(ablation)) == (2_390_028, 2_389_004)
    assert (public.context_highlight.gain, ablation.context_highlight.gain) == ("paper", "area")
    norms = [name for name, module in public.named_modules() if isinstance(module, nn.BatchNorm1d)]
    assert norms == ["pooled_norms.0", "pooled_norms.1"]
    # The public network's readings, said of se-af, make it that network.
    torch.manual_seed(1)
    one = build_model("caer-net-s").state_dict()
    torch.manual_seed(1)
    other = build_model("se-af", attention_gain="paper", pooled_norm="batch").state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "reads", "count"),
    [
        ("cahfw", "pair", 4),
        ("se-ca-aa", "pair", 4),
        ("se-af", "pair", 2),
        ("se-af", "face", 1),
        ("caer-net-s", "context", 1),
    ],
)
def test_pooled_norm_is_one_batch_norm_a_pooled_vector_and_nothing_else(name: str, reads: str, count: int):
    torch.manual_seed(1)
    plain = build_model(name, reads=reads, pooled_norm="none").state_dict()  # type: ignore[arg-type]
    torch.manual_seed(1)
    normed = build_model(name, reads=reads, pooled_norm="batch")  # type: ignore[arg-type]
    own = normed.state_dict()
    assert all(torch.equal(own[key], plain[key]) for key in plain)  # the same start, whatever the norm
    assert {key.split(".")[1] for key in own.keys() - plain.keys()} == {str(number) for number in range(count)}
    assert sum(own[key].numel() for key in own.keys() - plain.keys()) == count * (4 * 256 + 1)


@pytest.mark.lengthy
def test_pooled_norm_brings_the_context_of_the_literal_equation_7_to_life():
    """By the norm every pooled vector has the same scale in a batch, however little of its map is left."""
    norms = gradients(build_model("cahfw", attention_gain="paper", pooled_norm="batch"))
    assert norms["face_encoder.0.0.weight"] / norms["context_encoder.0.0.weight"] < 50
    dead = gradients(build_model("cahfw", attention_gain="paper"))
    assert norms["context_encoder.0.0.weight"] > 20 * dead["context_encoder.0.0.weight"]


@pytest.mark.lengthy
def test_a_pretrained_encoder_takes_the_place_of_the_papers():
    published = torchvision_models().resnet18()
    tensors = read_weights(safetensors.torch.save(published.state_dict()), source="resnet18")
    for name, reads, encoders in (("cahfw", "pair", 2), ("se-af", "face", 1)):
        model = build_model(name, reads=reads, encoder="resnet18")  # type: ignore[arg-type]
        load_imagenet(model, tensors, source="resnet18")
        found = [child for name, child in model.named_children() if name.endswith("encoder")]
        assert len(found) == encoders
        for encoder in found:
            assert torch.equal(encoder[6][0].conv1.weight, published.layer3[0].conv1.weight)
        assert model.eval()(*images(2, 32)).shape == (2, 7)
    check_imagenet(tensors, source="resnet18")
    with pytest.raises(UsageError, match=r"weights other: they are not torchvision's of resnet18 \(no conv1.weight\)"):
        check_imagenet({"other": torch.zeros(1)}, source="other")
    wider = {**tensors, "conv1.weight": torch.zeros(8, 3, 7, 7)}
    with pytest.raises(UsageError, match=r"weights wide: they are not torchvision's of resnet18 .*size mismatch"):
        check_imagenet(wider, source="wide")


@pytest.mark.parametrize("name", ["cahfw", "se-ca-aa"])
def test_a_face_and_a_context_of_different_sizes_are_refused_by_networks_that_pair_their_places(name: str):
    face, context = images(2, 48)[0], images(2, 64)[1]
    with pytest.raises(UsageError, match=r"face 48x48 px and context 64x64 px differ.*--input-px"):
        build_model(name)(face, context)
    with pytest.raises(UsageError, match="face 48x48 px and context 64x64 px differ"):
        check_network(name, face_px=48, context_px=64)
    check_network("se-af", face_px=48, context_px=64)
    assert build_model("se-af").eval()(face, context).shape == (2, 7)


@pytest.mark.parametrize("options", [
    {"name": "resnet-9000"}, {"name": "cahfw", "attention_gain": "one"}, {"name": "cahfw", "pooled_norm": "layer"},
    {"name": "cahfw", "encoder": "vit"}, {"name": "cahfw", "dropout": 50}, {"name": "cahfw", "reads": "face"},
    {"name": "resnet50", "reads": "pair"}, {"name": "alexnet", "encoder": "resnet18"}, {"name": "se-af", "reads": "x"},
])  # fmt: skip
def test_what_cannot_be_built_is_refused_without_building(options: dict[str, object]):
    messages = []
    for action in (check_network, build_model):
        with pytest.raises(UsageError) as found:
            action(**options)  # type: ignore[arg-type]
        messages.append(str(found.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("name", PAIR_MODELS)
def test_a_pair_of_any_multiple_of_16_px_gives_seven_logits(name: str):
    model = build_model(name).eval()
    for side_px in (16, 48, 64):
        assert model(*images(2, side_px)).shape == (2, 7)


@pytest.mark.parametrize("name", PAIR_MODELS)
def test_size_that_is_no_multiple_of_16_px_is_refused_by_name(name: str):
    model = build_model(name).eval()
    face, context = images(1, 64)
    with pytest.raises(UsageError, match=r"context: shape \(1, 3, 63, 64\).*multiples of 16 px"):
        model(face, context[:, :, 1:])
    with pytest.raises(UsageError, match="face: shape"):
        model(face[:, :1], context)


def test_unknown_names_and_options_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"'resnet18'.*cahfw, se-ca-aa, se-af, caer-net-s, alexnet, vgg16, resnet50"):
        build_model("resnet18")
    with pytest.raises(UsageError, match="attention_gain 'one'"):
        build_model("cahfw", attention_gain="one")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="recalibration_scale 'one'"):
        build_model("cahfw", recalibration_scale="one")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="dropout 50"):
        build_model("cahfw", dropout=50)


@pytest.mark.lengthy
def test_gradients_reach_both_branches_at_initialisation():
    norms = gradients(CAHFWNet())
    assert all(norm > 0 for norm in norms.values())
    assert 1 / 10 < norms["face_encoder.0.0.weight"] / norms["context_encoder.0.0.weight"] < 10
    recalibrations = norms["face_recalibration.transform.weight"] / norms["context_recalibration.transform.weight"]
    assert 1 / 100 < recalibrations < 100


@pytest.mark.lengthy
def test_the_literal_equation_7_leaves_the_context_branch_dead():
    norms = gradients(CAHFWNet(attention_gain="paper"))
    assert norms["face_encoder.0.0.weight"] / norms["context_encoder.0.0.weight"] > 50
    assert norms["face_recalibration.transform.weight"] / norms["context_recalibration.transform.weight"] > 1e4


def test_highlight_sums_to_one_over_places_and_uniform_attention_changes_nothing():
    highlight = ContextHighlight(gain="area").eval()
    features = torch.randn(2, 256, 3, 5)
    weights = highlight.attention(features)
    assert weights.shape == (2, 3, 5)
    torch.testing.assert_close(weights.sum(dim=(1, 2)), torch.ones(2))
    torch.testing.assert_close(highlight(features), features * weights.unsqueeze(1) * 15)

    nn.init.zeros_(highlight.score[1][1].weight)  # every place scores the same
    torch.testing.assert_close(highlight(features), features)
    literal = ContextHighlight(gain="paper").eval()
    literal.load_state_dict(highlight.state_dict())
    torch.testing.assert_close(literal(features), features / 15)


def test_cross_attention_is_over_channels():
    block = CrossAttention().eval()
    own, other = torch.randn(2, 256, 4, 4), torch.randn(2, 256, 4, 4)
    weights = block.attention(own, other)
    assert weights.shape == (2, 256, 256)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, 256))
    # Keys that are all equal: every channel becomes the mean of the value's channels, without a residual.
    nn.init.zeros_(block.key.weight)
    nn.init.zeros_(block.key.bias)
    mean = block.value(own).mean(dim=1, keepdim=True).expand(2, 256, 4, 4)
    torch.testing.assert_close(block(own, other), block.output(mean))


def test_recalibration_scales_its_logits_by_the_root_of_the_number_of_places():
    elements = torch.randn(2, 256, 9)
    ours, literal = ElementRecalibration(scale="sqrt"), ElementRecalibration(scale="paper")
    literal.load_state_dict(ours.state_dict())
    logits = elements @ ours.transform(elements).transpose(1, 2)
    torch.testing.assert_close(ours.attention(elements), (logits / 3).softmax(dim=2))
    torch.testing.assert_close(literal.attention(elements), logits.softmax(dim=2))
    features = elements.reshape(2, 256, 3, 3)
    gains = (ours.attention(elements) @ elements).reshape(2, 256, 3, 3)
    torch.testing.assert_close(ours(features), features * gains)


def test_softmax_is_float32_under_autocast():
    query = torch.zeros(1, 2, 1, dtype=torch.bfloat16)
    query[:] = 1.0
    key = torch.tensor([[[132.0], [132.5]]])  # in bfloat16 both are 132
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = channel_attention(query, key, scale=1.0)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.5]).softmax(dim=0).expand(1, 2, 2))


def test_deep_weights_weigh_the_shallow_vectors_and_shallow_weights_the_deep_ones():
    block = HybridWeighting()
    for stream, score in (
        (block.shallow.face, -100.0),
        (block.shallow.context, 100.0),
        (block.deep.face, 100.0),
        (block.deep.context, -100.0),
    ):
        nn.init.zeros_(stream[2].weight)
        nn.init.constant_(stream[2].bias, score)
    vectors = [torch.full((1, 256), float(value)) for value in (1, 2, 3, 4)]
    # The deep vectors prefer the face, so the shallow face stays; the shallow ones the context: the deep context stays.
    assert [weighted.unique().tolist() for weighted in block(*vectors)] == [[1.0], [0.0], [0.0], [4.0]]


def test_both_images_decide_and_their_order_matters():
    model = build_model("cahfw").eval()
    face, context = images(1, 64)
    logits = model(face, context)
    assert not torch.allclose(logits, model(context, face))
    assert not torch.equal(logits, model(face, context.roll(1, dims=3)))
    assert not torch.equal(logits, model(face.roll(1, dims=3), context))


@pytest.mark.parametrize("name", PAIR_MODELS)
def test_evaluation_is_deterministic_and_does_not_depend_on_the_batch(name: str):
    model = build_model(name).eval()
    face, context = images(3, 64)
    with torch.no_grad():
        logits = model(face, context)
        assert torch.equal(logits, model(face, context))
        torch.testing.assert_close(model(face[1:2], context[1:2]), logits[1:2])


@pytest.mark.parametrize("name", PAIR_MODELS)
def test_state_dict_restores_the_network(name: str):
    model, other = build_model(name), build_model(name)
    pair = images(2, 32)
    model(*pair)  # moves the running statistics of the batch norms
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(*pair), other.eval()(*pair))


@pytest.mark.parametrize("name", PAIR_MODELS)
def test_bfloat16_autocast_trains_with_finite_numbers(name: str):
    model = build_model(name)
    pair = images(4, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(*pair)
    nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 2, 3])).backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    with torch.no_grad():
        reference = model.eval()(*pair)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(model(*pair).float(), reference, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", PAIR_MODELS)
def test_context_attention_is_a_map_over_the_context(name: str):
    model = build_model(name).eval()
    weights = model.context_attention(images(2, 64)[1])
    assert weights.shape == (2, 4, 4)
    torch.testing.assert_close(weights.sum(dim=(1, 2)), torch.ones(2))


@pytest.mark.parametrize(
    ("name", "published"), [("alexnet", 61_100_840), ("vgg16", 138_357_544), ("resnet50", 25_557_032)]
)
def test_backbones_are_torchvisions_with_a_head_of_seven(name: str, published: int):
    """Published: ImageNet's thousand classes, as torchvision's documentation gives them."""
    with torch.device("meta"):  # counts without memory
        model = build_model(name)
    features = 2048 if name == "resnet50" else 4096
    assert num_parameters(model) == published - (features + 1) * (1000 - 7)
    assert num_parameters(model.head) == (features + 1) * 7


@pytest.mark.parametrize("reads", ["face", "context"])
@pytest.mark.parametrize("name", ["se-af", "resnet50"])
def test_a_network_of_one_image_is_blind_to_the_other(name: str, reads: str):
    model = build_model(name, reads=reads).eval()
    (face, context), (other_face, other_context) = images(2, 32), images(2, 32)
    with torch.no_grad():
        logits = model(face, context)
        assert logits.shape == (2, 7)
        same, changed = model(face, other_context), model(other_face, context)
    if reads == "context":
        same, changed = changed, same
    assert torch.equal(logits, same)
    assert not torch.allclose(logits, changed)


def test_one_stream_is_that_of_the_pair_with_a_head_of_its_own():
    face, context = (num_parameters(build_model("se-af", reads=reads)) for reads in ("face", "context"))
    assert face == 979_968 + (256 * 128 + 128) + (128 * 7 + 7)
    assert context - face == 296_451  # the highlight


def test_what_a_network_cannot_read_names_the_cure():
    with pytest.raises(UsageError, match="resnet50 sees one image; take --input face or --input context"):
        build_model("resnet50", reads="pair")
    with pytest.raises(UsageError, match=r"cahfw is made of attention .*--model se-af --input context"):
        build_model("cahfw", reads="context")
    with pytest.raises(UsageError, match="input 'frame' is not known"):
        build_model("cahfw", reads="frame")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"face: shape \(1, 3, 16, 16\).*32 px or more, as resnet50 needs"):
        build_model("resnet50")(*images(1, 16))


def test_frozen_backbone_trains_its_head_alone_and_keeps_its_batch_norm():
    model = build_model("resnet50")
    assert isinstance(model, Backbone)
    model.freeze()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    nn.functional.cross_entropy(model(*images(2, 32)), torch.tensor([0, 1])).backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"network.fc.weight", "network.fc.bias"}


def test_given_weights_are_taken_all_but_the_head():
    import torchvision

    published = torchvision.models.resnet50()  # a thousand classes, as ImageNet's weights have
    content = safetensors.torch.save(published.state_dict())
    model = build_model("resnet50")
    head = model.head.weight.clone()
    model.load_pretrained(read_weights(content, source="resnet50.safetensors"), source="resnet50.safetensors")
    assert torch.equal(model.network.layer4[0].conv1.weight, published.layer4[0].conv1.weight)
    assert torch.equal(model.network.bn1.running_mean, published.bn1.running_mean)
    assert torch.equal(model.head.weight, head)
    with pytest.raises(UsageError, match=r"weights other: they are not torchvision's of resnet50 .*Missing key"):
        model.load_pretrained({"features.0.weight": torch.zeros(1)}, source="other")


def test_pickled_weights_are_refused_with_the_conversion(tmp_path):
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "resnet50.pth")
    with pytest.raises(UsageError, match=r'not safetensors; .*load\("IN.pth", weights_only=True\)'):
        read_weights((tmp_path / "resnet50.pth").read_bytes(), source="resnet50.pth")


def test_weights_that_cannot_be_fetched_name_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # a port that nobody answers
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(UsageError, match=r"resnet50: ImageNet weights can't be fetched from https://.*--weights FILE"):
        imagenet_weights("resnet50")


@pytest.mark.lengthy
def test_backbones_without_torchvision_name_the_extra_and_the_others_need_none():
    script = """
import json, sys
sys.modules["torchvision"] = None  # what an import finds where it is not installed
from pipeline.models import build_model
from pipeline.records import UsageError
build_model("cahfw")
try:
    build_model("resnet50")
except UsageError as error:
    print(json.dumps(str(error)))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "need torchvision: pip install torchvision" in json.loads(found.stdout)


def test_the_face_network_has_its_size_and_ignores_context_light_and_side():
    model = build_model("face-resnet").eval()
    assert num_parameters(model) == 1_523_047
    face, context = images(2, 48)
    with torch.inference_mode():
        logits = model(face, context)
        assert logits.shape == (2, 7)
        torch.testing.assert_close(model(face, torch.zeros_like(context)), logits)
        torch.testing.assert_close(model(face.flip(3), context), logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(face * 0.5 + 1.0, context), logits, atol=1e-3, rtol=1e-3)
    with pytest.raises(UsageError, match="--input face"):
        build_model("face-resnet", reads="pair")
    with pytest.raises(UsageError, match="48 px"):
        model(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
