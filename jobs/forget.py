"""Delete clips or persons from an output, with a proof: `python jobs/forget.py OUTPUT --clip ID | --person CLIP:N`."""

from functools import partial

from command_line import run_job

from pipeline.ledger.config import ForgetConfig
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import print_line


def main(config: ForgetConfig) -> int:
    # DuckDB and Arrow, which --help does without.
    from pipeline.ledger.outputs import runs_in
    from pipeline.score.forget_job import forget_in

    left = list[str]()
    for line, names in forget_in(runs_in(config.output), config):
        print_line(line)
        left += names
    if left:
        raise UsageError(f"these objects still hold something: {', '.join(left)}; run the same command again")
    return 0


run = partial(
    run_job,
    ForgetConfig,
    main,
    description="Deletes clips, or persons of clips, from an output, and proves it by a scan of every object.",
    positional=("output",),
    examples=(
        "data --clip 0123456789abcdef0123",
        "labels --path 'uploads/anna/*' --dry-run",
        "labels --person uploads/anna/1.mp4:2",
    ),
)

if __name__ == "__main__":
    run()
