"""Whether a ledger holds, as facts: every planned input in one state, every committed shard there with its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.ledger.snapshot import Snapshot
from pipeline.records.outcomes import State

# Told only where there are some: younger than the manifests of old outputs, which stay byte for byte.
RARE_STATES = (State.CHANGED, State.FORGOTTEN)


@dataclass(frozen=True, kw_only=True)
class LostShard:
    """A shard that an entry names and that is not stored with its bytes; `stored` is None where it is not there."""

    unit: str
    path: str
    bytes: int
    stored: int | None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """num_by_state: of every state. The other fields are faults, but `foreign_shards`: Parquet files in our folders
    that no entry names, which readers of the whole folder would count."""

    num_inputs: int
    num_by_state: Mapping[str, int]
    unaccounted_units: tuple[str, ...] = ()
    lost_shards: tuple[LostShard, ...] = ()
    miscounted_units: tuple[tuple[str, int, int], ...] = ()
    done_twice: tuple[str, ...] = ()
    without_state: tuple[str, ...] = ()
    not_planned: tuple[str, ...] = ()
    foreign_shards: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether there is no fault, and the inputs are the sum of the states."""
        faults = (self.unaccounted_units, self.lost_shards, self.miscounted_units, self.done_twice)
        return not any((*faults, self.without_state, self.not_planned)) and self.num_inputs == sum(
            self.num_by_state.values()
        )

    @property
    def counted(self) -> dict[str, int]:
        """The states to tell: those of every run, and the rare ones that there are."""
        return {state: count for state, count in self.num_by_state.items() if count or state not in RARE_STATES}


def audit(snapshot: Snapshot) -> Audit:
    """Check a snapshot whose table `stored` is filled (`Ledger.store_listing`)."""
    database = snapshot.settle("planned", "latest").database

    def column(query: str) -> tuple[str, ...]:
        return tuple(value for batch in database.batches(query) for value in batch.column(0).to_pylist())

    count, num_inputs = snapshot.count("state"), database.value("select count(*) from planned")
    unaccounted = column("unaccounted")
    # Where every entry has the clips of its unit and the sum holds, none can be without a state.
    is_sum = not unaccounted and sum(count.values()) == num_inputs
    return Audit(
        num_inputs=num_inputs,
        num_by_state={state.value: count.get(state.value, 0) for state in State},
        unaccounted_units=unaccounted,
        lost_shards=tuple(LostShard(**row) for row in database.rows("lost_shards")),
        miscounted_units=tuple(
            (row["unit"], row["rows"], row["examples"]) for row in database.rows("miscounted_units")
        ),
        done_twice=column("done_twice"),
        without_state=() if is_sum else column("without_state"),
        not_planned=column("not_planned"),
        foreign_shards=column("foreign_shards"),
    )
