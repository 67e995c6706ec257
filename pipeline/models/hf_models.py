"""Hugging Face's image classifiers as a network like any other, built by transformers (extra `[hf]`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pipeline.models.backbones import torchvision_module
from pipeline.models.hf_folder import CONFIG, WEIGHTS, HfFolder
from pipeline.models.outside import OutsideNetwork, line_of
from pipeline.models.tensors import read_tensors
from pipeline.records.vocabulary import UsageError
from pipeline.storage.scratch import scratch


class HfNetwork(OutsideNetwork):
    """The classifier of a folder. Raises UsageError without transformers, and for a folder that it can't load."""

    def __init__(self, folder: HfFolder, *, where: str) -> None:
        super().__init__(folder.sidecar, where=where)
        transformers = transformers_module()
        # Its header is checked before another library reads it.
        read_tensors(folder.weights, f"checkpoint {where}: {WEIGHTS}", cure="save it again")
        with scratch("hf") as local:
            (local / CONFIG).write_bytes(folder.config)
            (local / WEIGHTS).write_bytes(folder.weights)
            try:
                self.model, told = transformers.AutoModelForImageClassification.from_pretrained(
                    str(local),
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                )
            except Exception as error:  # noqa: BLE001 - what a foreign config makes of it has no common class
                raise UsageError(f"checkpoint {where}: transformers can't load it ({line_of(error)})") from None
        if missing := sorted(told["missing_keys"]):
            raise UsageError(
                f"checkpoint {where}: {WEIGHTS} lacks {len(missing)} tensors, {missing[0]} among them; give a"
                " classifier that was trained"
            )
        self.model = self.model.float()

    def outputs(self, images: Sequence[Tensor]) -> Tensor:
        try:
            return self.model(pixel_values=images[0]).logits.float()
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"checkpoint {self.where}: transformers can't run it ({line_of(error)})") from None


def transformers_module() -> Any:
    """transformers, quiet. Raises UsageError without it."""
    try:
        import transformers
    except ModuleNotFoundError:
        raise UsageError(
            "a checkpoint of Hugging Face needs transformers: pip install transformers, or this package with its extra"
            " [hf]"
        ) from None
    if importlib.util.find_spec("torchvision"):
        torchvision_module()  # Some of its models import it.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
