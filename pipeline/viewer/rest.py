"""Reads the rest of the tables of clips in a thread, while the pages show what is read by now."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.labels.index_rows import StoppedError
from pipeline.labels.source import Labels
from pipeline.ledger.lock import LedgerError
from pipeline.runtime.console import log_status
from pipeline.storage.retry import StorageError

END_SECONDS = 5.0


class Rest:
    """What is left to read of these labels. then: called in the thread once all is read."""

    def __init__(self, models: Sequence[Labels], then: Callable[[], None]) -> None:
        self._models, self._then = models, then
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._error: str | None = None

    def start(self) -> None:
        """Begin, if there is anything to read."""
        if not all(model.is_finished for model in self._models):
            self._thread.start()

    def close(self) -> None:
        """End the thread where it is."""
        for reading in self._readings():
            reading.stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=END_SECONDS)

    def told(self) -> dict[str, Any] | None:
        """How far the reading is, for the pages; None where they show everything."""
        if all(model.is_whole for model in self._models):
            return None
        readings = self._readings()
        return {
            "num_read": sum(each.num_read for each in readings),
            "num_shards": sum(each.num_shards for each in readings),
            "error": self._error,
        }

    def _readings(self) -> list[Any]:
        return [each for model in self._models for each in model.readings]

    def _read(self) -> None:
        try:
            for model in self._models:
                model.finish()
        except StoppedError:
            return
        except (StorageError, LedgerError) as error:
            self._error = str(error)
            log_status(f"not all labels can be shown: {error}")
            return
        self._then()
