"""The corrections of one model's labels, kept up to date with their store."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from pipeline.labels.corrections import FOLDER, add_correction, new_correction, read_correction, standing
from pipeline.records.corrections import Correction
from pipeline.storage.store import Storage

REFRESH_SECONDS = 2.0


class CorrectionLog:
    """Every correction of some labels. An object is read once, since none is ever changed; for several threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._known: dict[str, Correction | None] = {}
        self._lock = threading.Lock()
        self._read_at = -REFRESH_SECONDS

    def all(self, *, at_once: bool = False) -> list[Correction]:
        """All of them in the order in which they were said; at_once: with those of other annotators up to now."""
        with self._lock:
            if at_once or time.monotonic() - self._read_at >= REFRESH_SECONDS:
                names = [name for name in self._storage.sizes(FOLDER) if name.endswith(".json")]
                for name in self._known.keys() - set(names):
                    del self._known[name]
                new = [name for name in names if name not in self._known]
                for name, data in self._storage.read_many(new).items():
                    self._known[name] = read_correction(f"{self._storage.url}/{name}", data)
                self._read_at = time.monotonic()
            found = [each for each in self._known.values() if each is not None]
        return sorted(found, key=lambda each: (each.created, each.correction_id))

    def counts(self) -> Counter[str]:
        """How many stand of each clip."""
        return Counter(each.clip_id for each in standing(self.all()))

    def of_clip(self, clip_id: str) -> list[dict[str, Any]]:
        """Those that stand of one clip, in the order in which they were said."""
        return [asdict(each) for each in standing(self.all(at_once=True)) if each.clip_id == clip_id]

    def add(self, **values: Any) -> Correction:
        """Say one. Raises ValueError for what cannot be."""
        correction = new_correction(**values)
        if correction.undoes is not None:
            own = {each.correction_id: each for each in self.all(at_once=True)}
            before = own.get(correction.undoes)
            if before is None or before.annotator != correction.annotator or before.clip_id != correction.clip_id:
                raise ValueError(f"undoes is {correction.undoes!r}; give the id of a correction of your own")
        add_correction(self._storage, correction)
        with self._lock:
            self._read_at = -REFRESH_SECONDS
        return correction
