"""Who may read what a job writes: its owner alone, unless `--shared-output` leaves the process's own umask."""

from __future__ import annotations

import os

OTHERS = 0o077


def close_to_others() -> None:
    """From now on the files of this process and its children are 0600 and their folders 0700."""
    os.umask(own_umask() | OTHERS)


def own_umask() -> int:
    """The umask of this process, for a worker that another one started."""
    umask = os.umask(OTHERS)  # There is no way to ask for it.
    os.umask(umask)
    return umask
