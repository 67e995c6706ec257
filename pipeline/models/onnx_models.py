"""Models from outside: an `.onnx` file with a sidecar `.json`, run by ONNX Runtime (extra `[onnx]`).

It comes as a network like any other, called as `model(face, context)`, so that whatever takes a checkpoint takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        self._names = [each.name for each in self._session.get_inputs()]
        if len(self._names) != len(self.sidecar.inputs):
            raise UsageError(
                f"checkpoint {where}: it has the inputs {', '.join(self._names)}, its sidecar says"
                f" {', '.join(self.sidecar.inputs)}"
            )

    def outputs(self, images: Sequence[Tensor]) -> Tensor:
        given = {name: each.cpu().numpy() for name, each in zip(self._names, images, strict=True)}
        try:
            output = np.asarray(self._session.run(None, given)[0])
        except Exception as error:  # noqa: BLE001 - as above
            raise UsageError(f"checkpoint {self.where}: ONNX Runtime can't run it ({line_of(error)})") from None
        return torch.from_numpy(output.astype(np.float32))


def _runtime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UsageError(
            "an .onnx checkpoint needs ONNX Runtime: pip install onnxruntime, or this package with its extra [onnx]"
        ) from None
    return onnxruntime
