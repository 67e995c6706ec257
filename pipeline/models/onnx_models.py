"""Models from outside: an `.onnx` file with a sidecar `.json`, run by ONNX Runtime (extra `[onnx]`).

It comes as a network like any other, called as `model(face, context)`, so that whatever takes a checkpoint takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.models.outside import OutsideNetwork, line_of
from pipeline.models.sidecar import OutsideModel
from pipeline.records.vocabulary import UsageError


class OnnxNetwork(OutsideNetwork):
    """The network of an `.onnx` file. Raises UsageError without ONNX Runtime, and for a file that it can't load."""

    def __init__(self, outside: OutsideModel, *, where: str) -> None:
        super().__init__(outside.sidecar, where=where)
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # there is an actor a core
        options.log_severity_level = 3
        there = runtime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]
        try:
            self._session = runtime.InferenceSession(outside.content, options, providers=providers)
        except Exception as error:  # noqa: BLE001 - the runtime's own errors have no common class
            raise UsageError(f"checkpoint {where}: ONNX Runtime can't load it ({line_of(error)})") from None
        self._inputs = self._own_inputs()
        self._output = self._own_output()

    def _own_inputs(self) -> list[_Input]:
        """The file's inputs as the sidecar orders them: by their names where these are the same. Raises UsageError."""
        found, wanted = [_input_of(each) for each in self._session.get_inputs()], self.sidecar.inputs
        if len(found) != len(wanted):
            names = ", ".join(each.name for each in found)
            raise UsageError(
                f"checkpoint {self.where}: it has the inputs {names}, its sidecar says {', '.join(wanted)}"
            )
        by_name = {each.name: each for each in found}
        if set(by_name) == set(wanted):
            found = [by_name[name] for name in wanted]
        sides = {"face": self.sidecar.shown_px, "context": self.sidecar.context_px}
        for each, name in zip(found, wanted, strict=True):
            if fault := each.fault(px=sides[name], channels=self.sidecar.num_channels):
                raise UsageError(f"checkpoint {self.where}: its input {each.name} {fault}")
        return found

    def _own_output(self) -> str:
        """The name of the output that the sidecar names, by default the first. Raises UsageError."""
        outputs = {each.name: list(each.shape) for each in self._session.get_outputs()}
        told = ", ".join(f"{name} {shape}" for name, shape in outputs.items())
        name = self.sidecar.output or next(iter(outputs))
        if name not in outputs:
            raise UsageError(f"checkpoint {self.where}: its outputs are {told}, its sidecar says output {name!r}")
        shape, count = outputs[name], len(self.sidecar.outputs)
        if len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != count):
            raise UsageError(
                f"checkpoint {self.where}: its output {name} is {shape}, its sidecar names {count} outputs of each"
                f" face; its outputs are {told}: name one of them as output, and all of its columns in outputs"
            )
        return name

    def outputs(self, images: Sequence[Tensor]) -> Tensor:
        given = [each.given(pixels) for each, pixels in zip(self._inputs, images, strict=True)]
        num = len(given[0])
        # An export without a batch of its own takes so many at a time, mostly one.
        size = next((each.batch for each in self._inputs if each.batch), num)
        found = [self._run([each[start : start + size] for each in given], size) for start in range(0, num, size)]
        return torch.from_numpy(np.concatenate(found)[:num].astype(np.float32))

    def _run(self, given: Sequence[np.ndarray], size: int) -> np.ndarray:
        full = [np.concatenate([each, *[each[-1:]] * (size - len(each))]) for each in given]
        feeds = {each.name: pixels for each, pixels in zip(self._inputs, full, strict=True)}
        try:
            return np.asarray(self._session.run([self._output], feeds)[0])
        except Exception as error:  # noqa: BLE001 - as above
            raise UsageError(f"checkpoint {self.where}: ONNX Runtime can't run it ({line_of(error)})") from None


@dataclass(frozen=True, slots=True)
class _Input:
    """What an input takes. shape: with None for sides that may be any."""

    name: str
    kind: str
    shape: tuple[int | None, ...]

    @property
    def batch(self) -> int | None:
        """How many images it takes at a time; None: any."""
        return self.shape[0]

    def fault(self, *, px: int, channels: int) -> str | None:
        """Why it can't be given squares of this side with so many channels, in words; None where it can."""
        if self.kind not in KINDS:
            return f"is {self.kind}; it must be one of {', '.join(KINDS)}"
        wanted = (channels, px, px)
        for order in (wanted, (px, px, channels)):
            if len(self.shape) == 4 and all(
                own in (None, side) for own, side in zip(self.shape[1:], order, strict=True)
            ):
                return None
        shown = [side or "any" for side in self.shape]
        return f"takes {shown}, its sidecar says {channels} channels and squares of {px} px"

    def given(self, images: Tensor) -> np.ndarray:
        """Pixels (B, C, H, W) float32 as this input takes them."""
        pixels = images.cpu().numpy()
        if self.shape[1] not in (None, pixels.shape[1]) or (self.shape[3] == pixels.shape[1] and self.shape[1] is None):
            pixels = pixels.transpose(0, 2, 3, 1)
        kind = KINDS[self.kind]
        if np.issubdtype(kind, np.integer):
            limits = np.iinfo(kind)
            pixels = np.rint(pixels).clip(limits.min, limits.max)
        return np.ascontiguousarray(pixels, dtype=kind)


# Types of inputs, by ONNX Runtime's names.
KINDS: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
}


def _input_of(declared: Any) -> _Input:
    shape = tuple(side if isinstance(side, int) and side > 0 else None for side in declared.shape)
    return _Input(declared.name, declared.type, shape)


def _runtime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UsageError(
            "an .onnx checkpoint needs ONNX Runtime: pip install onnxruntime, or this package with its extra [onnx]"
        ) from None
    return onnxruntime
