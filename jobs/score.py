"""Label a collection: `python jobs/score.py --input DIR_OR_URL --checkpoint RUN --output LABELS`."""

from functools import partial

from command_line import run_job

from pipeline.score.config import ScoreConfig


def main(config: ScoreConfig) -> int:
    from pipeline.ledger.outputs import require_output_of

    require_output_of("score", config.output)
    from pipeline.score.job import score  # Ray and PyTorch, which --help does without.

    return score(config).exit_code


run = partial(
    run_job,
    ScoreConfig,
    main,
    description="Labels the people in clips with a model: probabilities a face, one label a clip.",
    examples=(
        "--input new --checkpoint run --output labels",
        "--input s3://bucket/films --checkpoint run --output labels --limit 1000 --dry-run",
    ),
)

if __name__ == "__main__":
    run()
