"""The settings of `jobs/models.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.records.settings import Setting
from pipeline.records.vocabulary import UsageError


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """Lists what --checkpoint takes by name, shows a card, or writes a run in another format."""

    action: Literal["list", "card", "export"]
    """list, card or export."""
    names: tuple[str, ...] = ()
    """Of card and export, one: output of jobs/train.py, an .onnx file, or baseline."""
    format: Annotated[Literal["onnx"], Setting("network", common=True)] = "onnx"
    """What export writes: onnx, with a sidecar .json that says what it wants and gives (extra [onnx])."""
    output: Annotated[str, Setting("network", common=True)] = "models"
    """Folder of what export writes; a path or any fsspec URL."""

    def __post_init__(self) -> None:
        if len(self.names) != (self.action != "list"):
            wanted = "no name" if self.action == "list" else "the name or folder of one model"
            raise UsageError(f"{self.action} takes {wanted}")
