"""The paper's baselines (Table 2): torchvision's AlexNet, VGG-16 and ResNet-50 with a new head of seven logits.

Each sees one image of the pair, the face or the context, and is called like every other network: `model(face,
context)` to logits `(B, 7)`. ImageNet's weights come from a safetensors file or from torchvision's own server.
torchvision is the extra `[backbones]`, imported only when such a network is asked for.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from pipeline.models.tensors import read_tensors
from pipeline.records.vocabulary import BACKBONES, EMOTIONS, UsageError

MIN_PX = {"alexnet": 63, "vgg16": 32, "resnet50": 32}  # under it a pooling has nothing left to pool


class Backbone(nn.Module):
    """One of BACKBONES, reading the face or the context alone. All but its last layer can be frozen.

    dropout: of AlexNet's and VGG's own dropout layers; ResNet has none. Raises UsageError without torchvision.
    """

    def __init__(self, name: str, *, reads: Literal["face", "context"], dropout: float = 0.5) -> None:
        super().__init__()
        options = {} if name == "resnet50" else {"dropout": dropout}
        self.name, self.reads, self.frozen = name, reads, False
        self.network: nn.Module = getattr(torchvision_models(), name)(**options)
        last = self.head
        self._put_head(nn.Linear(last.in_features, len(EMOTIONS)))

    @property
    def head(self) -> nn.Linear:
        """The last layer: its features to 7 logits."""
        return self.network.get_submodule(self._head_name)  # pyright: ignore[reportReturnType]

    @property
    def _head_name(self) -> str:
        return "fc" if self.name == "resnet50" else "classifier.6"

    def _put_head(self, head: nn.Linear) -> None:
        parent, _, last = self._head_name.rpartition(".")
        setattr(self.network.get_submodule(parent), last, head)

    def forward(self, face: Tensor, context: Tensor) -> Tensor:
        """Logits `(B, 7)` of the image it reads, `(B, 3, height, width)`, ImageNet-normalised RGB."""
        images = face if self.reads == "face" else context
        check_backbone_size(self.name, tuple(images.shape), image=self.reads)
        return self.network(images)

    def freeze(self) -> None:
        """Train only the head from now on: no gradients elsewhere, and batch norm and dropout there as at inference."""
        self.frozen = True
        self.network.requires_grad_(False)
        self.head.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.network.eval()  # the head is one linear layer, the same in both modes
        return self

    def load_pretrained(self, tensors: dict[str, Tensor], *, source: str, assign: bool = False) -> None:
        """Take every tensor but the head's by torchvision's names. Raises UsageError for those of another network.

        assign: take the tensors themselves instead of copying their values.
        """
        own = self.network.state_dict()
        kept = {name: own[name] for name in own if name.startswith(f"{self._head_name}.")}
        given = {name: tensor for name, tensor in tensors.items() if name not in kept}
        try:
            self.network.load_state_dict({**given, **kept}, assign=assign)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"weights {source}: they are not torchvision's of {self.name} ({reason})") from None


def check_backbone_size(name: str, shape: tuple[int, ...], *, image: str) -> None:
    """UsageError unless `(B, 3, height, width)`, or the same without B, is large enough for the backbone's poolings."""
    if len(shape) not in (3, 4) or shape[-3] != 3 or min(shape[-2:]) < MIN_PX[name]:
        raise UsageError(
            f"{image}: shape {shape} is not (B, 3, height, width) with sides of {MIN_PX[name]} px or more, as {name}"
            " needs; resize the images, e.g. to 224 px"
        )


def check_weights(name: str, tensors: dict[str, Tensor], *, source: str) -> None:
    """Raise UsageError where the tensors are not torchvision's of this backbone; the network takes no memory for it."""
    with torch.device("meta"):
        Backbone(name, reads="face").load_pretrained(tensors, source=source, assign=True)


def imagenet_weights(name: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights (IMAGENET1K_V1) of one of BACKBONES, from its server or its cache.

    Read by torch's reader of tensors alone, after a check of the file's hash: no code of the file runs. Raises
    UsageError where the server can't be reached.
    """
    weights = torchvision_models().get_model_weights(name).IMAGENET1K_V1
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"{name}: ImageNet weights can't be fetched from {weights.url} ({error}); give a copy as safetensors with"
            " --weights FILE, or take --pretrained none"
        ) from None


def read_weights(content: bytes, *, source: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UsageError for anything else, a pickled .pth among it."""
    return read_tensors(
        content,
        f"weights {source}",
        cure="convert a torchvision .pth by: python -c 'from torch import load; from safetensors.torch import"
        ' save_file; save_file(load("IN.pth", weights_only=True), "OUT.safetensors")\'',
    )


def torchvision_models() -> Any:
    """torchvision.models. Raises UsageError where torchvision is not installed."""
    return torchvision_module().models


def torchvision_module() -> ModuleType:
    """torchvision, also where its own import fails beside this torch. Raises UsageError without it."""
    try:
        return _imported_torchvision()
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    # torchvision's operators are linked to CUDA, so beside a CPU build of torch they don't load, and its import fails
    # on two that it only names. None of these networks uses them.
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    return _imported_torchvision()


def _imported_torchvision() -> ModuleType:
    try:
        import torchvision
    except ModuleNotFoundError:
        raise UsageError(
            f"the models {', '.join(BACKBONES)} need torchvision: pip install torchvision, or this package with its"
            " extra [backbones]"
        ) from None
    return torchvision
