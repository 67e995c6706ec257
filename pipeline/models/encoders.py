"""The front of every two-stream network: an image to a map of 256 channels at a sixteenth of its sides."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.backbones import torchvision_models
from pipeline.records.vocabulary import Encoder, UsageError

CHANNELS = 256


STRIDE = 16  # input pixels per position of a feature map: four poolings by 2


def convolution_block(channels_in: int, channels_out: int) -> nn.Sequential:
    """3x3 convolution that keeps the size, batch norm, ReLU: δ(B(C₂(·))) of Eq. 2, 3, 8 and 10."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def image_encoder(kind: Encoder = "paper") -> nn.Sequential:
    """`(B, 3, 16H, 16W)` to `(B, 256, H, W)`.

    paper: the TE block, and the front of the CE block (Eq. 2-5). resnet18: torchvision's ResNet-18 up to its third
    stage, which has the same channels and stride; it can start from ImageNet's weights (`load_imagenet`).
    """
    if kind == "resnet18":
        network = torchvision_models().resnet18()
        return nn.Sequential(*(getattr(network, name) for name in RESNET18_PARTS))
    return nn.Sequential(
        convolution_block(3, 32),
        nn.MaxPool2d(2),  # (B, 32, 8H, 8W)
        convolution_block(32, 64),
        nn.MaxPool2d(2),  # (B, 64, 4H, 4W)
        convolution_block(64, 128),
        nn.MaxPool2d(2),  # (B, 128, 2H, 2W)
        convolution_block(128, CHANNELS),
        nn.MaxPool2d(2),  # (B, 256, H, W)
        convolution_block(CHANNELS, CHANNELS),  # (B, 256, H, W)
    )


RESNET18_PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")


def load_imagenet(model: nn.Module, tensors: dict[str, Tensor], *, source: str, assign: bool = False) -> None:
    """Put ResNet-18's tensors, by torchvision's names, into every encoder. Raises UsageError where they don't fit."""
    wanted = {str(number): name for number, name in enumerate(RESNET18_PARTS)}
    encoders = [child for name, child in model.named_children() if name.endswith("encoder")]
    for encoder in encoders:
        own: dict[str, Tensor] = {}
        for key in encoder.state_dict():
            number, _, rest = key.partition(".")
            name = f"{wanted[number]}.{rest}"
            if name not in tensors:
                raise UsageError(f"weights {source}: they are not torchvision's of resnet18 (no {name})")
            own[key] = tensors[name]
        try:
            encoder.load_state_dict(own, assign=assign)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"weights {source}: they are not torchvision's of resnet18 ({reason})") from None


def check_imagenet(tensors: dict[str, Tensor], *, source: str) -> None:
    """Raise UsageError where the tensors are not torchvision's of ResNet-18. The network takes no memory for it."""
    with torch.device("meta"):
        model = nn.ModuleDict({"encoder": image_encoder("resnet18")})
    load_imagenet(model, tensors, source=source, assign=True)


def encode_images(encoder: nn.Module, images: Tensor, *, name: str) -> Tensor:
    """Run an encoder over `(B, 3, height, width)`; UsageError unless both sides are multiples of 16 pixels."""
    check_sides(tuple(images.shape), image=name)
    return encoder(images)


def check_sides(shape: tuple[int, ...], *, image: str) -> None:
    """UsageError unless `(B, 3, height, width)`, or the same without B, has sides that are multiples of 16 pixels."""
    if len(shape) not in (3, 4) or shape[-3] != 3 or not all(side and side % STRIDE == 0 for side in shape[-2:]):
        raise UsageError(
            f"{image}: shape {shape} is not (B, 3, height, width) with sides that are multiples of {STRIDE} px;"
            " resize the images, e.g. to 224 px"
        )


def check_equal_sides(face: tuple[int, ...], context: tuple[int, ...]) -> None:
    """Raise UsageError where two shapes differ in height or width: attention between the maps pairs their places."""
    if face[-2:] != context[-2:]:
        raise UsageError(
            f"face {face[-2]}x{face[-1]} px and context {context[-2]}x{context[-1]} px differ, and this network's"
            " attention between them needs one size; give both with --input-px, or take --model se-af or caer-net-s"
        )
