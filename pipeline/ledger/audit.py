"""Whether the ledger holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Whether the ledger holds: `problems` says in words what does not."""

    num_inputs: int
    num_by_state: Mapping[str, int]
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        states = " + ".join(f"{count} {state}" for state, count in self.num_by_state.items())
        if self.holds:
            return f"audit: {self.num_inputs} inputs = {states}; nothing is missing"
        return f"audit FAILED: {self.num_inputs} inputs, {states}: " + "; ".join(self.problems)


def table_names(entries: Iterable[Mapping[str, Any]]) -> set[str]:
    return {shard["table"] for entry in entries for shard in entry["shards"]}
