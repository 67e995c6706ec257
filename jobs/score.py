"""Label a collection: `python jobs/score.py --input DIR_OR_URL --checkpoint RUN --output LABELS`."""

from functools import partial

from command_line import run_job

from pipeline.score.config import ScoreConfig


def main(config: ScoreConfig) -> int:
    from pipeline.corpus.read import require_input
    from pipeline.ledger.outputs import require_output_of
    from pipeline.models.checkpoint_info import read_checkpoint_info
    from pipeline.runtime.console import log_status

    require_output_of("score", config.output)
    info = read_checkpoint_info(config.checkpoint, config.epoch)
    require_input(config.input)  # What is not there is told before anything that takes long.
    log_status(f"labelling {config.input}: loading decoders, detector and model")
    from pipeline.score.job import score  # Ray and PyTorch, which --help does without.

    return score(config, info).exit_code


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
