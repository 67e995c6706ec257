"""Train on preprocessed examples: `python jobs/train.py --data PREPROCESSED --output RUN`."""

from command_line import run_job

from pipeline.train.config import TrainConfig
from pipeline.train.job import print_summary, train


def main(config: TrainConfig) -> int:
    print_summary(config.output, train(config))
    return 0


if __name__ == "__main__":
    run_job(
        TrainConfig,
        main,
        description="Trains a network on preprocessed examples; one checkpoint per epoch, and the best of them named.",
        resume="add --resume to the same command",
    )
