"""Look at labels, play and correct them in a browser: `python jobs/view.py LABELS`."""

from command_line import run_job

from pipeline.viewer.config import ViewConfig
from pipeline.viewer.serve import view

if __name__ == "__main__":
    run_job(
        ViewConfig,
        view,
        description="Shows labels in a browser of this machine: clips, their videos with boxes, and corrections.",
        positional=("labels",),
    )
