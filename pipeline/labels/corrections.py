"""Corrections of labels: objects that are created and never changed, and the table of those that stand.

    LABELS/model=.../corrections/20261128T221500.123456Z-0123456789abcdef.json

Two annotators who write at once make two objects, and nothing is lost.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from pipeline.records.corrections import Correction, Said
from pipeline.records.documents import parse_json
from pipeline.records.evolution import with_defaults
from pipeline.runtime.console import log_status
from pipeline.storage.store import Storage

FOLDER = "corrections"


def new_correction(*, correction_id: str | None = None, **values: Any) -> Correction:
    """A correction of now, under an id of its own unless one is given. Raises ValueError for what cannot be."""
    now = datetime.now(UTC)
    own = f"{now:%Y%m%dT%H%M%S.%f}Z-{secrets.token_hex(8)}"
    return Correction(
        correction_id=correction_id or own, created=now.isoformat(), **{**values, "said": Said(values["said"])}
    )


def add_correction(storage: Storage, correction: Correction) -> bool:
    """Create its object; False where one of its id is there already (an import that was made before)."""
    body = (json.dumps(asdict(correction), indent=1) + "\n").encode()
    return storage.create(f"{FOLDER}/{correction.correction_id}.json", body)


def read_corrections(storages: Iterable[Storage]) -> list[Correction]:
    """Every correction ever made of labels in these folders, in the order in which they were said.

    One that cannot be read is reported.
    """
    return in_order(map(corrections_in, storages))


def corrections_in(
    storage: Storage, known: Mapping[str, Correction | None] = MappingProxyType({})
) -> dict[str, Correction | None]:
    """The corrections in a folder by the names of their objects, None for one that cannot be read, which is reported.

    known: as they were read before; none is ever changed, and these are not read again.
    """
    names = [name for name in storage.sizes(FOLDER) if name.endswith(".json")]
    new = storage.read_many([name for name in names if name not in known])
    read = {name: read_correction(f"{storage.url}/{name}", data) for name, data in new.items()}
    return {name: read[name] if name in read else known[name] for name in names}


def in_order(folders: Iterable[Mapping[str, Correction | None]]) -> list[Correction]:
    """What was read of several folders, in the order in which it was said."""
    found = [each for folder in folders for each in folder.values() if each is not None]
    return sorted(found, key=lambda each: (each.created, each.correction_id))


def read_correction(name: str, data: bytes) -> Correction | None:
    """The correction in an object's bytes; None, and a line that names it, where there is none."""
    known = {each.name for each in fields(Correction)}
    try:
        saved = {key: value for key, value in parse_json(data, "it").items() if key in known}
        values = with_defaults(Correction, saved)
        return Correction(**{**values, "said": Said(values["said"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log_status(f"{name} is no correction ({' '.join(str(error).split())[:120]}); it is left out")
        return None


def standing(corrections: Iterable[Correction]) -> list[Correction]:
    """Those that nobody took back. An annotator can take back only what is his own."""
    rows = list(corrections)
    by_id = {each.correction_id: each for each in rows}
    undone = {
        each.undoes
        for each in rows
        if each.undoes in by_id and by_id[each.undoes].annotator == each.annotator and each.said == Said.UNDO
    }
    return [each for each in rows if each.said != Said.UNDO and each.correction_id not in undone]


def covers(correction: Correction, *, track_index: int, pts_seconds: float) -> bool:
    """Whether a correction speaks of this person at this time."""
    start, end = correction.start_pts_seconds, correction.end_pts_seconds
    return (
        correction.track_index in (None, track_index)
        and (start is None or pts_seconds >= start)
        and (end is None or pts_seconds < end)
    )


def said_of(corrections: Iterable[Correction], *, track_index: int, pts_seconds: float) -> Correction | None:
    """The last of a clip's standing corrections that covers a face."""
    found = [each for each in corrections if covers(each, track_index=track_index, pts_seconds=pts_seconds)]
    return found[-1] if found else None
