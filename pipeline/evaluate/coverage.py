"""Which labelled clips of a data set have no example: without a face, quarantined or not done."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.lock import LedgerError
from pipeline.storage.parts import parts_of


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """splits: of each split num_labelled clips, and num_without_face of them. num_frames: sampled, by clip id."""

    splits: dict[str | None, dict[str, int]]
    num_frames: dict[str, int]


def coverage_of(data_url: str) -> Coverage | None:
    """What the ledger of a data set (of all its parts) says of its labelled clips; None where one cannot be read."""
    found = [_coverage_of(part) for part in parts_of(data_url)]
    readable = [part for part in found if part is not None]
    if len(readable) < len(found):
        return None
    splits: dict[str | None, dict[str, int]] = {}
    for split, counts in (item for part in readable for item in part.splits.items()):
        before = splits.setdefault(split, dict.fromkeys(counts, 0))
        splits[split] = {name: before[name] + count for name, count in counts.items()}
    return Coverage(splits=splits, num_frames={k: v for part in readable for k, v in part.num_frames.items()})


def _coverage_of(data_url: str) -> Coverage | None:
    ledger = Ledger(data_url)
    if not ledger.is_planned:
        return None
    try:
        database = ledger.snapshot().settle("planned", "latest").database
    except LedgerError:
        return None  # The shards alone were copied, or some of it: they can be evaluated all the same.
    of_clip = (
        "from planned p join latest l using (clip_id)"
        " where p.label is not null and l.state not in ('changed', 'forgotten')"
    )
    rows = database.rows(
        "select p.split, count(*) as num_labelled, count(*) filter (l.num_examples = 0) as num_without_face"
        f" {of_clip} group by all"
    )
    splits = {row.pop("split"): row for row in rows}
    frames = database.rows(f"select clip_id, l.num_frames {of_clip} and l.num_examples > 0")
    return Coverage(splits=splits, num_frames={row["clip_id"]: row["num_frames"] for row in frames})
