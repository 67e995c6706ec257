"""Look at labels, play and correct them in a browser: `python jobs/view.py LABELS`."""

from functools import partial

from command_line import run_job

from pipeline.viewer.config import ViewConfig


def main(config: ViewConfig) -> int:
    from pipeline.viewer.serve import view  # Arrow and a web server, which --help does without.

    return view(config)


run = partial(
    run_job,
    ViewConfig,
    main,
    description="Shows labels in a browser of this machine: clips, their videos with boxes, and corrections.",
    positional=("labels",),
    examples=("labels", "s3://bucket/labels --input s3://bucket/videos --blur-faces"),
)

if __name__ == "__main__":
    run()
