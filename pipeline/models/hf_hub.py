"""The id of a model of Hugging Face in, a local folder of its files out, fetched by huggingface_hub (extra `[hf]`).

`hf:owner/name`, `hf:owner/name@revision`, or `owner/name` where no folder of that name is here. Only the files that
`hf_folder` reads are fetched, safetensors and JSON, into the library's own cache.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.models.hf_folder import FILES
from pipeline.records.vocabulary import UsageError
from pipeline.storage.redaction import redacted

_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_ID = re.compile(rf"(?P<prefix>hf:(?://)?)?(?P<name>{_PART}/{_PART})(?:@(?P<revision>[\w./-]{{1,100}}))?")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model as it was fetched. source: its id with the commit that was taken, which names the same bytes for ever."""

    folder: str
    source: str


def is_hub_id(checkpoint: str) -> bool:
    """Whether a checkpoint is an id: said so, or no more than that and no path from here."""
    match = _ID.fullmatch(checkpoint)
    if match is None or match["prefix"]:
        return match is not None
    return not os.path.lexists(checkpoint.partition("/")[0]) and not checkpoint.endswith(".onnx")


def fetched(checkpoint: str) -> HubModel:
    """The files of an id, from the library's cache where they are there and nothing else is asked for.

    Raises UsageError, in a line, without huggingface_hub, without a network, and where there is no such model.
    """
    match = _ID.fullmatch(checkpoint)
    assert match is not None
    hub = _hub()
    name, revision = match["name"], match["revision"]
    try:
        folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(FILES), max_workers=2))
    except Exception as error:  # noqa: BLE001 - of the library, of HTTP and of the network, without a common class
        at = f" at revision {revision}" if revision else ""
        meant = "" if match["prefix"] else f", and no folder {checkpoint!r} is here"
        raise UsageError(
            f"checkpoint {checkpoint}: {name}{at} can't be fetched from Hugging Face ({_told(error)}){meant}; check the"
            f" name, the network and HF_TOKEN, or fetch it elsewhere: hf download {name} --local-dir FOLDER"
        ) from None
    return HubModel(folder=str(folder), source=f"hf:{name}@{folder.name}")


def pinned(checkpoint: str) -> str:
    """The same id with the commit that it means now, so that every process takes the same files."""
    return fetched(checkpoint).source


def _told(error: Exception) -> str:
    """The first sentences of an error of the library: what follows are links and advice."""
    return redacted(
        re.split(r"\s*(?:Request ID|\(Request|https?://|Please |If you )", " ".join(str(error).split())[:300])[
            0
        ].strip()
        or type(error).__name__
    )


def _hub() -> Any:
    try:
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars
    except ModuleNotFoundError:
        raise UsageError(
            "a checkpoint of Hugging Face needs huggingface_hub: pip install huggingface_hub, or this package with its"
            " extra [hf]"
        ) from None
    disable_progress_bars()
    return huggingface_hub
