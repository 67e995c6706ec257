"""Models from outside: an `.onnx` file with a sidecar `.json`, run by ONNX Runtime (extra `[onnx]`).

It comes as a network like any other, called as `model(face, context)`, so that whatever takes a checkpoint takes it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.dataset.dataset import IMAGENET_MEAN, IMAGENET_STD
from pipeline.models.sidecar import OutsideModel
from pipeline.records.vocabulary import UsageError

GREY = (0.299, 0.587, 0.114)  # BT.601


class OnnxNetwork(nn.Module):
    """`model(face, context)` of ImageNet-normalised RGB `(B, 3, height, width)` to logits `(B, classes)`.

    Raises UsageError without ONNX Runtime, and for a file that it can't load.
    """

    def __init__(self, outside: OutsideModel, *, where: str) -> None:
        super().__init__()
        runtime = _runtime()
        self._sidecar, self._where = outside.sidecar, where
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # there is an actor a core
        options.log_severity_level = 3
        there = runtime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]
        try:
            self._session = runtime.InferenceSession(outside.content, options, providers=providers)
        except Exception as error:  # noqa: BLE001 - the runtime's own errors have no common class
            raise UsageError(f"checkpoint {where}: ONNX Runtime can't load it ({_line(error)})") from None
        self._names = [each.name for each in self._session.get_inputs()]
        if len(self._names) != len(self._sidecar.inputs):
            raise UsageError(
                f"checkpoint {where}: it has the inputs {', '.join(self._names)}, its sidecar says"
                f" {', '.join(self._sidecar.inputs)}"
            )

    @property
    def gives_affect(self) -> bool:
        """Whether its output has valence or arousal."""
        return self._sidecar.affect_columns != (None, None)

    def forward(self, face: Tensor, context: Tensor) -> Tensor:
        return self.with_affect(face, context)[:, :-2]

    def with_affect(self, face: Tensor, context: Tensor) -> Tensor:
        """`forward`, and behind the logits valence and arousal, -1 to 1, NaN where it gives none: (B, classes + 2)."""
        images = {"face": face, "context": context}
        given = {
            name: self._pixels(images[image]) for name, image in zip(self._names, self._sidecar.inputs, strict=True)
        }
        try:
            output = np.asarray(self._session.run(None, given)[0])
        except Exception as error:  # noqa: BLE001 - as above
            raise UsageError(f"checkpoint {self._where}: ONNX Runtime can't run it ({_line(error)})") from None
        if output.shape != (len(face), len(self._sidecar.outputs)):
            raise UsageError(
                f"checkpoint {self._where}: it gives {output.shape}, its sidecar names {len(self._sidecar.outputs)}"
                f" outputs of {len(face)} faces"
            )
        values = torch.from_numpy(output.astype(np.float32))
        chosen = values[:, list(self._sidecar.columns)]
        if self._sidecar.gives == "probabilities":
            chosen = chosen.clamp(min=1e-12).log()
        unknown = torch.full((len(face),), torch.nan)
        affect = [unknown if at is None else values[:, at].clamp(-1, 1) for at in self._sidecar.affect_columns]
        return torch.cat([chosen, torch.stack(affect, dim=1)], dim=1).to(face.device)

    def _pixels(self, images: Tensor) -> np.ndarray:
        """(B, C, H, W) float32 as the sidecar wants them."""
        sidecar = self._sidecar
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = (images.float().cpu() * std + mean) * 255
        if sidecar.colour == "bgr":
            pixels = pixels.flip(1)
        elif sidecar.colour == "grey":
            pixels = (pixels * torch.tensor(GREY).view(3, 1, 1)).sum(dim=1, keepdim=True)
        own_mean, own_std = (torch.tensor(values).view(-1, 1, 1) for values in (sidecar.mean, sidecar.std))
        return ((pixels / sidecar.scale - own_mean) / own_std).contiguous().numpy()


def _runtime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UsageError(
            "an .onnx checkpoint needs ONNX Runtime: pip install onnxruntime, or this package with its extra [onnx]"
        ) from None
    return onnxruntime


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
