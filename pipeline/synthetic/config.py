"""The settings of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pipeline.records.settings import Setting


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Makes a small SYNTHETIC corpus and takes it from video to labels."""

    output: Annotated[str, Setting("input", common=True)] = "demo"
    """Folder of everything that the demo makes; it is emptied first."""
    epochs: Annotated[int, Setting("training", common=True)] = 16
    """Epochs of training (count)."""
    show: Annotated[bool, Setting("pages", common=True)] = True
    """Open the last page in a browser, if there is one."""
