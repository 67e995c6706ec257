"""The corrections of one model's labels, kept up to date with their store."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline.labels.corrections import add_correction, corrections_in, in_order, new_correction, standing
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
                self._known = list(map(corrections_in, self._storages, self._known))
                self._read_at = time.monotonic()
            return in_order(self._known)

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
