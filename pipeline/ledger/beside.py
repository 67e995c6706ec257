"""What lies beside the labels of models in an output: exports, which go with what is forgotten, and other files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pipeline.records.documents import DocumentError
from pipeline.storage.remote import read_url
from pipeline.storage.store import Storage

EXPORT = "export.json"
# Of other kinds, such as videos, no clip's id is looked for, nor in what is longer.
_READ = (
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".vtt",
    ".srt",
    ".eaf",
    ".xml",
    ".html",
    ".md",
    ".txt",
    ".parquet",
    ".arrow",
)
_MAX_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What was done beside the labels: objects deleted, objects read, and those that name what is forgotten."""

    num_deleted: int = 0
    num_read: int = 0
    named: tuple[str, ...] = ()


def exports_in(names: Collection[str]) -> tuple[str, ...]:
    """The folders of exports among the objects of an output, as prefixes of names."""
    return tuple(name.removesuffix(EXPORT) for name in names if name.endswith(f"/{EXPORT}"))


def clear_beside(ledger_url: str, clip_ids: Collection[str]) -> Beside:
    """Delete the exports that lie beside a model's labels, and look for the clips in what else lies there.

    ledger_url: of the labels; what is no folder of a model has nothing beside it. clip_ids: to look for.
    """
    above, _, own = ledger_url.rpartition("/")
    if not own.startswith("model="):
        return Beside()
    storage = Storage(above)
    names = [name for name in storage.sizes("") if not name.startswith("model=")]
    exports = exports_in(names)
    num_deleted, num_read, named = 0, 0, []
    for name in sorted(names, key=lambda name: name.endswith(f"/{EXPORT}")):  # These last: they tell what is an export.
        if exports and name.startswith(exports):
            storage.delete(name)
            num_deleted += 1
        elif clip_ids and name.lower().endswith(_READ):
            num_read += 1
            if _names(storage, name, clip_ids):
                named.append(f"{above}/{name}")
    return Beside(num_deleted=num_deleted, num_read=num_read, named=tuple(named))


def _names(storage: Storage, name: str, clip_ids: Collection[str]) -> bool:
    try:
        data = read_url(f"{storage.url}/{name}", max_bytes=_MAX_BYTES)
    except (DocumentError, FileNotFoundError):
        return False
    return any(each in name or each.encode() in data for each in clip_ids)
