"""A run of ours as an `.onnx` file with its sidecar, which labels as the run does."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.dataset.dataset import IMAGENET_MEAN, IMAGENET_STD
from pipeline.models.build import default_reads
from pipeline.models.checkpoint import LoadedCheckpoint, load_checkpoint
from pipeline.models.checkpoint_info import temperature_of
from pipeline.models.claims import model_classes
from pipeline.records.vocabulary import UsageError
from pipeline.storage.scratch import scratch
from pipeline.storage.store import Storage


class _OfInputs(nn.Module):
    """The network as a function of the images that it reads."""

    def __init__(self, model: nn.Module, reads: str) -> None:
        super().__init__()
        self.model, self.reads = model, reads

    def forward(self, *images: Tensor) -> Tensor:
        face, context = images if self.reads == "pair" else (images[0], images[0])
        return self.model(face, context)


def export_onnx(run_url: str, output: str) -> list[str]:
    """Write OUTPUT/NAME.onnx, of any batch size, and NAME.json; the paths. UsageError without the extra [onnx]."""
    loaded = load_checkpoint(run_url)
    described = loaded.config["model"]
    reads = described["options"].get("reads") or default_reads(described["name"])
    inputs = ("face", "context") if reads == "pair" else (reads,)
    content = _onnx_bytes(loaded, reads, inputs)
    name = f"{described['name']}-{loaded.info['checkpoint_sha256'][:12]}"
    sidecar = json.dumps(_sidecar(loaded, name, inputs, content), indent=1) + "\n"
    storage = Storage(output)
    storage.put(f"{name}.onnx", content)
    storage.put(f"{name}.json", sidecar.encode())
    return [storage.path(f"{name}.onnx"), storage.path(f"{name}.json")]


def _onnx_bytes(loaded: LoadedCheckpoint, reads: str, inputs: tuple[str, ...]) -> bytes:
    described = loaded.config["model"]
    examples = tuple(torch.zeros(2, 3, described[f"{image}_px"], described[f"{image}_px"]) for image in inputs)
    batch = torch.export.Dim("batch", min=1, max=65_536)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f"an export needs {error.name}: install this package with its extra [onnx]") from None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, on names of its own
        program = torch.onnx.export(
            _OfInputs(loaded.model.float(), reads).eval(),
            examples,
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_shapes=(tuple({0: batch} for _ in inputs),),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    with scratch("onnx") as folder:
        path = folder / "model.onnx"
        program.save(path)
        return path.read_bytes()


def _sidecar(loaded: LoadedCheckpoint, name: str, inputs: tuple[str, ...], content: bytes) -> dict[str, Any]:
    preprocessing = dict(loaded.config["preprocessing"])
    return {
        "name": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "inputs": inputs,
        "face_px": loaded.config["model"]["face_px"],
        "context_px": loaded.config["model"]["context_px"],
        "margin": preprocessing.get("box_margin", 0.0),
        **({"alignment": preprocessing["alignment"]} if preprocessing.get("alignment", "none") != "none" else {}),
        "colour": "rgb",
        "scale": 255,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "outputs": (classes := model_classes(loaded.config)),
        "classes": classes,
        "gives": "logits",
        "temperature": temperature_of(loaded.info),
        "preprocessing": preprocessing,
        "metrics": loaded.info.get("metrics") or {},
        "data": loaded.info.get("data") or {},
        "trained_at": loaded.info.get("trained_at"),
        "card": loaded.info.get("card"),
        "source": f"checkpoint {loaded.info['checkpoint_sha256']}",
    }
