"""The installed command: `emotion-pipeline JOB ...` is `python jobs/JOB.py ...`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # The jobs find each other by name, as scripts do.

from command_line import run_chosen

JOBS = ("preprocess", "train", "evaluate", "score", "export", "view", "models", "quarantine", "forget", "demo")


def main() -> None:
    """Run the job that the first argument names; ends the process with its exit code."""
    run_chosen({name: import_module(name).run for name in JOBS})


if __name__ == "__main__":
    main()
