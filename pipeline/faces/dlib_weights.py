"""Dlib's CNN face detector, read from Dlib's own file: bytes in, layers as numpy arrays out.

The file is dlib's serialization: an int is a control byte (0x80 is the sign, the low nibble counts the bytes) and
little-endian bytes; a float is an int m and an int e, m * 2^e; a string is a length and bytes; a tensor is the int 2,
four sizes and raw float32; a bool is ASCII 0 or 1. No claimed size is believed before the bytes left were counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.records.vocabulary import UsageError

_BN_NUM_TENSORS = 4  # means, inverse deviations, running means, running variances


@dataclass(frozen=True, slots=True)
class ConvLayer:
    """A convolution with its batch normalisation folded in. weight: (out, in, kernel, kernel); bias: (out,)."""

    weight: np.ndarray
    bias: np.ndarray
    stride: int
    padding: int
    has_relu: bool


@dataclass(frozen=True, slots=True)
class CnnWeights:
    """The whole detector. means: of red, green and blue, 0 to 255. window_px: the side of a face's box in its level.

    max_overlap: of two boxes whose intersection is over this share of their enclosing box, the weaker goes.
    """

    means: tuple[float, float, float]
    window_px: int
    max_overlap: float
    layers: tuple[ConvLayer, ...]


def read_weights(path: Path) -> CnnWeights:
    """The detector of a file. Raises ValueError, naming file and byte, for a truncated or foreign one."""
    try:
        return parse_weights(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"detector weights {path}: {error}; give Dlib's mmod_human_face_detector.dat") from error


def parse_weights(data: bytes) -> CnnWeights:
    """The detector of a file's bytes. Raises ValueError, naming the byte, for a truncated or foreign one."""
    reader = Reader(data)
    reader.expect("version of the loss layer", reader.integer(), 1)
    reader.expect("loss layer", reader.text(), "loss_mmod_")
    reader.expect("version of the options", reader.integer(), 1)
    window_px, height_px = reader.integer(), reader.integer()
    reader.expect("height of the window", height_px, window_px)
    reader.floats(3)  # losses and match threshold of training
    max_overlap, _, _, _ = reader.floats(4)

    # Every layer opens with a version and then holds the layer below, so the versions of all come first, output to
    # input, the input's neighbour marked 3.
    num_layers = 1
    while (version := reader.integer()) == 2:
        num_layers += 1
    reader.expect("version of the first layer", version, 3)
    reader.expect("input layer", reader.text(), "input_rgb_image_pyramid")
    red, green, blue = reader.floats(3)

    layers: list[ConvLayer] = []
    for index in range(num_layers):
        kind = reader.text()
        if kind == "con_4":
            layers.append(read_conv(reader))
        elif kind == "bn_con2" and layers:
            layers[-1] = folded(layers[-1], *_read_batch_norm(reader))
        elif kind == "relu_" and layers:
            last = layers[-1]
            layers[-1] = ConvLayer(last.weight, last.bias, last.stride, last.padding, has_relu=True)
        else:
            reader.fail(f"layer {index} is {kind!r}, not con_4, bn_con2 or relu_")
        reader.layer_end()
        if index == 0:
            reader.integer()
    if reader.num_left:
        reader.fail(f"{reader.num_left} bytes follow the last layer")
    return CnnWeights((red, green, blue), window_px, max_overlap, tuple(layers))


def read_conv(reader: Reader) -> ConvLayer:
    params = reader.tensor()
    num_filters, height, width, stride_y, stride_x, padding_y, padding_x = (reader.integer() for _ in range(7))
    shape, bias_shape = reader.alias(), reader.alias()
    reader.floats(4)  # learning rates and decays
    num_weights = math.prod(shape)
    reader.expect("filters", shape[:1] + shape[2:], (num_filters, height, width))
    reader.expect("biases", math.prod(bias_shape), num_filters)
    reader.expect("values of the layer", params.size, num_weights + num_filters)
    reader.expect("stride and padding down", (stride_y, padding_y), (stride_x, padding_x))
    weight = params[:num_weights].reshape(shape)
    return ConvLayer(weight, params[num_weights:], stride_x, padding_x, has_relu=False)


def _read_batch_norm(reader: Reader) -> tuple[np.ndarray, np.ndarray]:
    """The layer as gain and offset of each channel."""
    params = reader.tensor()
    reader.alias()
    reader.alias()
    _, _, mean, variance = (reader.tensor() for _ in range(_BN_NUM_TENSORS))
    reader.integer()
    reader.integer()
    *_, eps = reader.floats(5)
    num_channels = mean.size
    reader.expect("values of the batch normalisation", (params.size, variance.size), (2 * num_channels, num_channels))
    gain = params[:num_channels] / np.sqrt(variance.astype(np.float64) + eps)
    return gain, params[num_channels:] - gain * mean


def folded(conv: ConvLayer, gain: np.ndarray, offset: np.ndarray) -> ConvLayer:
    if gain.shape != conv.bias.shape:
        raise ValueError(f"batch normalisation of {gain.size} channels after {conv.bias.size} filters")
    weight = (conv.weight * gain[:, None, None, None]).astype(np.float32)
    bias = (conv.bias * gain + offset).astype(np.float32)
    return ConvLayer(weight, bias, conv.stride, conv.padding, conv.has_relu)


class Reader:
    """A cursor over dlib's serialization."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def num_left(self) -> int:
        return len(self._data) - self._at

    def fail(self, what: str) -> None:
        raise ValueError(f"{what} (at byte {self._at} of {len(self._data)})")

    def expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            self.fail(f"{what} is {found!r}, not {wanted!r}")

    def take(self, num_bytes: int) -> bytes:
        if not 0 <= num_bytes <= self.num_left:
            self.fail(f"{num_bytes} bytes are claimed and {self.num_left} are left: truncated or foreign")
        self._at += num_bytes
        return self._data[self._at - num_bytes : self._at]

    def integer(self) -> int:
        control = self.take(1)[0]
        num_bytes = control & 0x0F
        if control & 0x70 or not 1 <= num_bytes <= 8:
            self.fail(f"{control:#04x} opens no int")
        magnitude = int.from_bytes(self.take(num_bytes), "little")
        return -magnitude if control & 0x80 else magnitude

    def floats(self, count: int) -> tuple[float, ...]:
        return tuple(self._float() for _ in range(count))

    def _float(self) -> float:
        mantissa, exponent = self.integer(), self.integer()
        if abs(exponent) > 500:  # 32000 to 32002 are inf, -inf and nan: none belongs here
            self.fail(f"{mantissa} * 2^{exponent} is no number of a detector")
        return math.ldexp(mantissa, exponent)

    def text(self) -> str:
        return self.take(self.integer()).decode("ascii", errors="replace")

    def tensor(self) -> np.ndarray:
        """Its values, flat: float32."""
        self.expect("version of a tensor", self.integer(), 2)
        sizes = [self.integer() for _ in range(4)]
        if min(sizes) < 0:
            self.fail(f"a tensor has sizes {sizes}")
        return np.frombuffer(self.take(4 * math.prod(sizes)), dtype="<f4").astype(np.float32)  # a writable copy

    def alias(self) -> tuple[int, ...]:
        self.expect("version of an alias", self.integer(), 1)
        return tuple(self.integer() for _ in range(4))

    def layer_end(self) -> None:
        """Three flags and three tensors that training had filled."""
        if set(self.take(3)) - set(b"01"):
            self.fail("a flag is neither 0 nor 1")
        for _ in range(3):
            self.tensor()
