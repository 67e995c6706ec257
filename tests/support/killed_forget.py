"""Runs jobs/forget.py and kills it by SIGKILL at a change of the output: killed_forget.py N FLAGS..."""

import os
import runpy
import signal
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "jobs")]

from pipeline.storage.store import Storage  # noqa: E402 - the path is set above


def kill_at(point):
    """Have this process killed at a change of an output: before that of half the number where it is even, after it
    where it is odd."""
    left = point

    def killing(method):
        def change(*arguments):
            nonlocal left
            for act in (None, lambda: method(*arguments)):
                found = act() if act else None
                if "lock.json" not in arguments and (left := left - 1) < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return found

        return change

    for name in ("put", "put_stream", "delete"):
        setattr(Storage, name, killing(getattr(Storage, name)))


if __name__ == "__main__":
    kill_at(int(sys.argv[1]))
    sys.argv = ["forget.py", *sys.argv[2:]]
    runpy.run_path(str(REPOSITORY / "jobs" / "forget.py"), run_name="__main__")
