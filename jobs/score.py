"""Label a collection: `python jobs/score.py --input DIR_OR_URL --checkpoint RUN --output LABELS`."""

from command_line import run_job

from pipeline.score.config import ScoreConfig
from pipeline.score.job import score


def main(config: ScoreConfig) -> int:
    return score(config).exit_code


if __name__ == "__main__":
    run_job(
        ScoreConfig,
        main,
        description="Labels the people in clips with a trained model: seven probabilities a face, one label a clip.",
    )
