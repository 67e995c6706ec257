"""Evaluate a trained network: `python jobs/evaluate.py --data PREPROCESSED --checkpoint RUN --output REPORT`.

With `--compare RUN RUN ...` instead of `--checkpoint`: the paper's tables and figures, ours beside the paper's.
"""

from functools import partial

from command_line import run_job

from pipeline.evaluate.config import EvaluateConfig


def main(config: EvaluateConfig) -> int:
    from pipeline.ledger.outputs import require_output_of

    require_output_of("evaluate", config.output)
    if config.corrections:
        from pipeline.labels.agreement import evaluate_corrections

        evaluate_corrections(config)
        return 0
    from pipeline.dataset.shards import read_manifest
    from pipeline.runtime.console import log_status

    if config.data:
        read_manifest(config.data)  # What is not there is told before anything that takes long.
    log_status(f"evaluating on {config.data or 'what the runs trained on'}: loading PyTorch")
    # Which --help does without.
    from pipeline.evaluate.compare import write_comparison
    from pipeline.evaluate.job import write_evaluation

    if config.compare:
        write_comparison(config)
    else:
        write_evaluation(config)
    return 0


run = partial(
    run_job,
    EvaluateConfig,
    main,
    description="Measures trained networks on labelled splits and shows their metrics beside the paper's.",
    examples=("--data data --checkpoint run --output evaluation", "--compare runs/* --output tables"),
)

if __name__ == "__main__":
    run()
