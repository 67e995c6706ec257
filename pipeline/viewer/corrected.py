"""The corrections of one model's labels, kept up to date with their store."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline.labels.corrections import FOLDER, add_correction, new_correction, read_correction, standing
from pipeline.records.corrections import Correction
from pipeline.storage.store import Storage

REFRESH_SECONDS = 2.0


class CorrectionLog:
    """Every correction of some labels. An object is read once, since none is ever changed; for several threads."""

    def __init__(self, storages: Sequence[Storage]) -> None:
        """storages: the folder of each part of the labels."""
        self._storages = storages
        self._known: list[dict[str, Correction | None]] = [{} for _ in storages]
        self._lock = threading.Lock()
        self._read_at = -REFRESH_SECONDS

    def all(self, *, at_once: bool = False) -> list[Correction]:
        """All of them in the order in which they were said; at_once: with those of other annotators up to now."""
        with self._lock:
            if at_once or time.monotonic() - self._read_at >= REFRESH_SECONDS:
                for storage, known in zip(self._storages, self._known, strict=True):
                    names = [name for name in storage.sizes(FOLDER) if name.endswith(".json")]
                    for name in known.keys() - set(names):
                        del known[name]
                    new = [name for name in names if name not in known]
                    for name, data in storage.read_many(new).items():
                        known[name] = read_correction(f"{storage.url}/{name}", data)
                self._read_at = time.monotonic()
            found = [each for known in self._known for each in known.values() if each is not None]
        return sorted(found, key=lambda each: (each.created, each.correction_id))

    def counts(self) -> Counter[str]:
        """How many stand of each clip."""
        return Counter(each.clip_id for each in standing(self.all()))

    def of_clip(self, clip_id: str) -> list[dict[str, Any]]:
        """Those that stand of one clip, in the order in which they were said."""
        return [asdict(each) for each in standing(self.all(at_once=True)) if each.clip_id == clip_id]

    def add(self, *, part: int = 0, **values: Any) -> Correction:
        """Say one of a clip of that part. Raises ValueError for what cannot be."""
        correction = new_correction(**values)
        if correction.undoes is not None:
            own = {each.correction_id: each for each in self.all(at_once=True)}
            before = own.get(correction.undoes)
            if before is None or before.annotator != correction.annotator or before.clip_id != correction.clip_id:
                raise ValueError(f"undoes is {correction.undoes!r}; give the id of a correction of your own")
        add_correction(self._storages[part], correction)
        with self._lock:
            self._read_at = -REFRESH_SECONDS
        return correction
