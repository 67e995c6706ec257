"""The runs in a folder that a user names, and what kind of output it is."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.lock import LedgerError
from pipeline.storage.parts import folder_names, parts_of
from pipeline.storage.remote import absolute_url
from pipeline.storage.store import Storage


def runs_in(url: str) -> list[Ledger]:
    """The run in an output of jobs/preprocess.py, or those of each model in one of jobs/score.py, sorted by url.

    Args:
        url: the output, a folder `model=...` in it, or a pattern of the outputs of all parts (`data-*`); a path or any
            fsspec URL.

    Raises:
        LedgerError: where there is none.
    """
    if runs := [run for part in parts_of(url) for run in _runs_at(part)]:
        return runs
    raise LedgerError(
        f"{url} holds no run (neither plan/run.json nor a folder model=...); give the --output of jobs/preprocess.py "
        "or jobs/score.py"
    )


def _runs_at(url: str) -> list[Ledger]:
    here = Ledger(url)
    if here.is_planned:
        return [here]
    models = [Ledger(f"{here.storage.url}/{name}") for name in model_folders(here.storage)]
    return [ledger for ledger in models if ledger.is_planned]


def one_run_in(url: str) -> Ledger:
    """The only run of an output. Raises LedgerError where there is none, or several to choose from."""
    runs = runs_in(url)
    if len(runs) > 1:
        names = ", ".join(ledger.storage.url.rpartition("/")[2] for ledger in runs)
        raise LedgerError(f"{url} holds the labels of {len(runs)} models: {names}; give one of these folders")
    return runs[0]


def names_of(runs: Sequence[Ledger]) -> list[str]:
    """What tells runs apart: their URLs from where they part, `model=...` or `data-03-of-16`."""
    steps = [run.storage.url.split("/") for run in runs]
    shared = len(os.path.commonprefix([each[:-1] for each in steps]))  # noqa: RUF071 - of lists it takes whole items
    return ["/".join(each[shared:]) for each in steps]


def model_folders(storage: Storage) -> list[str]:
    """The names of the folders `model=...`, sorted; none where there is no folder."""
    return [name for name in folder_names(storage) if name.startswith("model=")]


# What each job leaves in its output, by which it is known: a file, or the beginning of a folder's name.
_MARKS = {
    "train": ("best.json", "a training run"),
    "evaluate": ("evaluation.json", "an evaluation"),
    "compare": ("comparison.json", "the paper's tables"),
    "export": ("export.json", "exported labels"),
}
_OF_KIND = {"examples": ("preprocess", "preprocessed examples"), "labels": ("score", "labels")}


def require_output_of(job: str, url: str) -> None:
    """See to it that an output folder holds nothing of another job.

    Args:
        job: preprocess, train, evaluate, score or export.
        url: its output, a path or any fsspec URL; it need not be there.

    Raises:
        LedgerError: naming what is there, and the cure.
    """
    ledger = Ledger(absolute_url(url))
    found = [(name, what) for name, (mark, what) in _MARKS.items() if ledger.storage.exists(mark)]
    if ledger.is_planned:
        found.append(_OF_KIND.get(ledger.run_info()["kind"], ("another job", "results")))
    elif model_folders(ledger.storage):
        found.append(_OF_KIND["labels"])
    for name, what in found:
        if name != job and (job, name) != ("evaluate", "compare"):
            raise LedgerError(
                f"{url} holds {what} ({name}); what {job} writes needs a folder of its own: give another --output"
            )
