"""Forgets, at the start of a run, what was taken into an output longer ago than `retention_days`."""

from __future__ import annotations

from pipeline.ledger.config import ForgetConfig
from pipeline.ledger.forget import UnfinishedError, clips_to_forget, forget
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import log_status


def forget_old(ledger: Ledger, snapshot: Snapshot, *, days: int) -> bool:
    """Forget what was planned longer ago than this; whether anything was. What is not finished waits for a later run.

    Raises UsageError where something of it is left.
    """
    ids = clips_to_forget(ledger, snapshot, ForgetConfig(output=ledger.storage.url, older_than=f"{days}d"))
    ids = snapshot.without_forgotten(ids)
    if not ids:
        return False
    try:
        done = forget(ledger, snapshot, ids)
    except UnfinishedError as error:
        log_status(f"note: {len(ids)} clips are older than {days} days; {error}", event="note")
        return False
    if done.left:
        raise UsageError(f"these objects still hold something of what was forgotten: {', '.join(done.left)}")
    log_status(
        f"retention: {len(ids)} clips older than {days} days are forgotten ({done.num_rows} rows);"
        f" {done.num_read} objects read, none holds them"
    )
    for sha256 in done.manifests:
        log_status(f"retention: checkpoints whose manifest_sha256 is {sha256} were trained on data that held them")
    return True
