"""Checkpoints that come with the package, by name: `baseline` wherever a checkpoint is given.

They are runs like any other; only where they lie is found here. A name goes to every machine of a cluster as it is, for
the package may lie elsewhere on each.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.models.hf_hub import fetched, is_hub_id, pinned
from pipeline.storage.remote import absolute_url

SHIPPED = ("baseline",)


def run_url_of(checkpoint: str) -> str:
    """Where a checkpoint lies: the package's folder of one of SHIPPED, the files of an id of Hugging Face, else what
    was given.

    A folder of one's own of such a name is meant by `./baseline`. Raises UsageError for an id that can't be fetched.
    """
    if is_hub_id(checkpoint):
        return fetched(checkpoint).folder
    return str(Path(__file__).parent / checkpoint) if checkpoint in SHIPPED else checkpoint


def portable(checkpoint: str) -> str:
    """The same checkpoint for a process that may run elsewhere: a URL that is absolute, one of SHIPPED, or an id with
    its commit."""
    if is_hub_id(checkpoint):
        return pinned(checkpoint)
    return checkpoint if checkpoint in SHIPPED else absolute_url(checkpoint)


def card_of(checkpoint: str) -> str | None:
    """The card of one of SHIPPED, Markdown; None of any other."""
    return (Path(run_url_of(checkpoint)) / "card.md").read_text() if checkpoint in SHIPPED else None
