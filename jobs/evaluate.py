"""Evaluate a trained network: `python jobs/evaluate.py --data PREPROCESSED --checkpoint RUN --output REPORT`."""

from command_line import run_job

from pipeline.evaluate import EvaluateConfig, write_evaluation


def main(config: EvaluateConfig) -> int:
    write_evaluation(config)
    return 0


if __name__ == "__main__":
    run_job(
        EvaluateConfig,
        main,
        description="Measures a trained network on labelled splits and shows its metrics beside the paper's.",
    )
