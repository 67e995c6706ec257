"""Train on preprocessed examples: `python jobs/train.py --data PREPROCESSED --output RUN`."""

from functools import partial

from command_line import run_job

from pipeline.train.config import RECIPES, TrainConfig


def main(config: TrainConfig) -> int:
    from pipeline.dataset.shards import read_manifest
    from pipeline.ledger.outputs import require_output_of
    from pipeline.runtime.console import log_status

    require_output_of("train", config.output)
    read_manifest(config.data)  # What is not there is told before anything that takes long.
    log_status(f"training on {config.data}: loading PyTorch and Ray")
    from pipeline.train.job import print_summary, train  # Ray and PyTorch, which --help does without.

    print_summary(config.output, train(config))
    return 0


run = partial(
    run_job,
    TrainConfig,
    main,
    description="Trains a network on preprocessed examples; one checkpoint per epoch, and the best of them named.",
    examples=("--data data --output run", "--data data --output run --model resnet50 --pretrained finetune"),
    resume="add --resume to the same command",
    recipes=RECIPES,
)

if __name__ == "__main__":
    run()
