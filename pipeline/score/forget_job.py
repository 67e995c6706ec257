"""What `jobs/forget.py` does, in lines to print: clips of any output, and persons of clips of labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from pipeline.ledger.config import ForgetConfig
from pipeline.ledger.forget import Forgotten, checkpoints_of, clips_to_forget, forget
from pipeline.ledger.ledger import Ledger
from pipeline.records.vocabulary import UsageError
from pipeline.score.find_person import find_person
from pipeline.score.forget_person import describe_person, forget_person

Lines = Iterator[tuple[str, Sequence[str]]]
MAX_NAMED = 20


def forget_in(ledgers: Sequence[Ledger], config: ForgetConfig) -> Lines:
    """Forget what is named in the runs of an output: lines, each with the objects that still hold something.

    Raises UsageError where nothing fits, LedgerError where a unit with it is not finished.
    """
    with ExitStack() as locks:
        for ledger in ledgers if not config.dry_run else ():
            locks.enter_context(ledger.lock())
        if config.clip or config.path is not None or config.older_than is not None:
            yield from _forget_clips(ledgers, config)
        for clip, number in config.persons:
            yield from _forget_person(ledgers, clip, number, config=config)


def _forget_clips(ledgers: Sequence[Ledger], config: ForgetConfig) -> Lines:
    num_clips = 0
    for ledger in ledgers:
        snapshot = ledger.snapshot()
        ids = clips_to_forget(ledger, snapshot, config)
        num_clips += len(ids)
        if ids and config.dry_run:
            named = ", ".join(ids[:MAX_NAMED])
            yield f"{ledger.storage.url}: {len(ids)} clips would be forgotten: {named}", ()
        elif ids:
            yield from _report(ledger, forget(ledger, snapshot, ids), config, what=f"{len(ids)} clips")
    if not num_clips:
        raise UsageError(f"no clip of {config.output} fits; see outcomes.jsonl for ids and paths")


def _forget_person(ledgers: Sequence[Ledger], clip: str, number: int, *, config: ForgetConfig) -> Lines:
    read = [(ledger, ledger.snapshot()) for ledger in ledgers]
    for (ledger, snapshot), found in zip(read, find_person(read, clip, number), strict=True):
        if found is None:
            continue
        who = describe_person(*found)
        if config.dry_run:
            yield f"{ledger.storage.url}: would be forgotten: {who}", ()
            continue
        yield from _report(ledger, forget_person(ledger, snapshot, *found), config, what=who)


def _report(ledger: Ledger, done: Forgotten, config: ForgetConfig, *, what: str) -> Lines:
    yield (
        (
            f"{ledger.storage.url}: forgotten: {what}: {done.num_rows} rows of {done.num_units} units, "
            f"{done.num_deleted} other objects deleted or rewritten"
        ),
        (),
    )
    yield f"proof: {done.num_read} objects read, {len(done.left)} of them hold something of it", done.left
    for name in done.alike:
        yield f"warning: {name} holds the same pictures as other clips': look for copies with other bytes", ()
    for name in done.beside:
        yield f"warning: {name} lies beside the labels and names it: delete it, if it is about it", ()
    for name in done.unread:
        yield f"warning: {name} cannot be read as a table: nobody knows what it holds; mend or delete it", ()
    for name in checkpoints_of(config.checkpoints, done.manifests, data=ledger.storage.url):
        yield f"{name} was trained on data that held it: delete it, and train again", ()
    for sha256 in done.manifests:
        yield f"checkpoints whose manifest_sha256 is {sha256} were trained on data that held it", ()
