"""Which labelled clips of a data set have no example: without a face, quarantined or not done."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.lock import LedgerError


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """splits: of each split num_labelled clips, and num_without_face of them. num_frames: sampled, by clip id."""

    splits: dict[str | None, dict[str, int]]
    num_frames: dict[str, int]


def coverage_of(data_url: str) -> Coverage | None:
    """What the ledger of a data set says of its labelled clips; None where it has none that can be read."""
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
