"""Dlib's face embedding as a PyTorch network: aligned faces in, 128 numbers each out.

Two faces of one person are usually nearer to one another than 0.6. Numbers are those of dlib's
`face_recognition_model_v1` within 1e-6, in 2.8 ms a face on one core (6.5 one by one) where dlib takes 58. The network
is dlib's residual one of 29 convolutions for squares of 150 px, its affine layers folded into the convolutions. It
reads dlib's own file (see `dlib_weights`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.faces.dlib_weights import ConvLayer, Reader, folded, read_conv
from pipeline.faces.landmarks import CHIP_PX
from pipeline.faces.spec import Weights
from pipeline.records.vocabulary import UsageError

EMBEDDING_SIZE = 128

WEIGHTS = Weights(
    package="face-recognition-models",
    path="models/dlib_face_recognition_resnet_model_v1.dat",
    num_bytes=22_466_066,
    sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
    owner="Dlib's",
)

# Blocks from the image up: (channels, blocks); the first block of each but the first halves the side.
_LEVELS = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))
_BATCH = 16


@dataclass(frozen=True, slots=True)
class EmbeddingWeights:
    """The whole network. means: of red, green and blue, 0 to 255. convs: from the image up. head: (256, 128)."""

    means: tuple[float, float, float]
    convs: tuple[ConvLayer, ...]
    head: np.ndarray


class FaceEmbedder:
    """Dlib's face embedding. On CPU it uses PyTorch's threads: one worker of many should set one."""

    def __init__(self, weights: Path | None = None, *, device: str = "cpu") -> None:
        found = read_embedding_weights(weights or WEIGHTS.find())
        self._device = device
        self._means = torch.tensor(found.means, device=device)
        self._network = _Network(found).to(device).eval()

    @torch.inference_mode()
    def embed(self, chips: Sequence[np.ndarray]) -> np.ndarray:
        """The embeddings (N, 128) float32 of aligned faces, each (150, 150, 3) uint8 RGB as `Landmarks.chip` makes."""
        found = [np.empty((0, EMBEDDING_SIZE), np.float32)]
        for start in range(0, len(chips), _BATCH):
            pixels = torch.from_numpy(np.stack(chips[start : start + _BATCH])).to(self._device).float()
            images = ((pixels - self._means) / 256).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                found.append(self._network(images).cpu().numpy())
        return np.concatenate(found)


class _Network(nn.Module):
    def __init__(self, weights: EmbeddingWeights) -> None:
        super().__init__()
        convs = iter(weights.convs)
        self.stem = _conv(next(convs))
        self.blocks = nn.ModuleList()
        for level, (_, num_blocks) in enumerate(_LEVELS):
            for number in range(num_blocks):
                self.blocks.append(_Block(next(convs), next(convs), halves=number == 0 and level > 0))
        self.head = nn.Parameter(torch.from_numpy(weights.head), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.stem(images))  # (B, 32, 72, 72)
        x = functional.max_pool2d(x, 3, stride=2)  # (B, 32, 35, 35)
        for block in self.blocks:
            x = block(x)
        return x.mean(dim=(2, 3)) @ self.head  # (B, 256) -> (B, 128)


class _Block(nn.Module):
    """relu(conv(relu(conv(x))) + x); one that halves the side adds x averaged by twos."""

    def __init__(self, first: ConvLayer, second: ConvLayer, *, halves: bool) -> None:
        super().__init__()
        self.first, self.second, self.halves = _conv(first), _conv(second), halves

    def forward(self, x: Tensor) -> Tensor:
        found = self.second(functional.relu(self.first(x)))
        beside = functional.avg_pool2d(x, 2) if self.halves else x
        if beside.shape != found.shape:  # Dlib adds tensors of different sizes as if zeros stood where one has nothing.
            sizes = [max(pair) for pair in zip(beside.shape, found.shape, strict=True)]
            beside, found = (_grown(each, sizes) for each in (beside, found))
        return functional.relu(found + beside)


def _grown(x: Tensor, sizes: Sequence[int]) -> Tensor:
    _, channels, height, width = (wanted - there for wanted, there in zip(sizes, x.shape, strict=True))
    return functional.pad(x, (0, width, 0, height, 0, channels))


def _conv(layer: ConvLayer) -> nn.Conv2d:
    num_out, num_in, kernel, _ = layer.weight.shape
    conv = nn.Conv2d(num_in, num_out, kernel, stride=layer.stride, padding=layer.padding)
    conv.weight = nn.Parameter(torch.from_numpy(layer.weight), requires_grad=False)
    conv.bias = nn.Parameter(torch.from_numpy(layer.bias), requires_grad=False)
    return conv


def read_embedding_weights(path: Path) -> EmbeddingWeights:
    """The network of a file. Raises UsageError, naming file and byte, for a truncated or foreign one."""
    try:
        return parse_embedding_weights(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"embedding weights {path}: {error}; give Dlib's {Path(WEIGHTS.path).name}") from error


def parse_embedding_weights(data: bytes) -> EmbeddingWeights:
    """The network of a file's bytes. Raises ValueError, naming the byte, for a truncated or foreign one."""
    reader = Reader(data)
    reader.expect("version of the loss layer", reader.integer(), 1)
    reader.expect("loss layer", reader.text(), "loss_metric_2")
    reader.floats(2)
    # Of layers 2, of tags and of what refers to them 1, of the lowest layer 3.
    while (version := reader.integer()) != 3:
        if version not in (1, 2):
            reader.fail(f"version {version} of a layer is not known")
    reader.expect("input layer", reader.text(), "input_rgb_image_sized")
    red, green, blue = reader.floats(3)
    reader.expect("side of the image", (reader.integer(), reader.integer()), (CHIP_PX, CHIP_PX))
    convs = _read_convs(reader)
    num_convs = 1 + 2 * sum(num_blocks for _, num_blocks in _LEVELS)
    reader.expect("number of convolutions", len(convs), num_convs)
    return EmbeddingWeights((red, green, blue), tuple(convs), _read_head(reader))


def _read_convs(reader: Reader) -> list[ConvLayer]:
    """The convolutions from the image up to the last layer."""
    convs: list[ConvLayer] = []
    for index in count():
        kind = reader.text()
        if kind == "fc_2":
            break
        if kind == "con_4":
            convs.append(read_conv(reader))
        elif kind == "affine_" and convs:
            convs[-1] = folded(convs[-1], *_read_affine(reader))
        elif kind in ("max_pool_2", "avg_pool_2"):
            for _ in range(6):
                reader.integer()
        elif kind not in ("relu_", "add_prev_"):
            reader.fail(f"layer {index} is {kind!r}")
        reader.layer_end()
        if index == 0:
            reader.integer()
    return convs


def _read_affine(reader: Reader) -> tuple[np.ndarray, np.ndarray]:
    """Gain and offset of each channel."""
    params = reader.tensor()
    reader.alias()
    reader.alias()
    reader.integer()
    return params[: params.size // 2], params[params.size // 2 :]


def _read_head(reader: Reader) -> np.ndarray:
    """(channels, 128)."""
    num_outputs, num_inputs = reader.integer(), reader.integer()
    params = reader.tensor()
    reader.expect("values of the last layer", (num_outputs, params.size), (EMBEDDING_SIZE, num_outputs * num_inputs))
    reader.alias()
    reader.alias()
    reader.integer()
    reader.floats(4)  # learning rates and decays
    reader.layer_end()
    if reader.num_left:
        reader.fail(f"{reader.num_left} bytes follow the last layer")
    return params.reshape(num_inputs, num_outputs)
