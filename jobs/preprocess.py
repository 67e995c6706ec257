"""Preprocess a corpus: `python jobs/preprocess.py --input DIR_OR_URL --output DIR_OR_URL`."""

from functools import partial

from command_line import run_job

from pipeline.preprocess.config import PreprocessConfig


def main(config: PreprocessConfig) -> int:
    from pipeline.corpus.read import require_input
    from pipeline.ledger.outputs import require_output_of
    from pipeline.runtime.console import log_status

    require_output_of("preprocess", config.output)
    require_input(config.input)  # What is not there is told before anything that takes long.
    log_status(f"preprocessing {config.input}: loading decoders and detector")
    from pipeline.preprocess.job import preprocess  # Ray and Arrow, which --help does without.

    corrected = None
    if config.corrections is not None:
        from pipeline.labels.corrected_faces import corrected_faces

        corrected = corrected_faces(config.corrections, classes=config.classes)
    return preprocess(config, corrected).exit_code


run = partial(
    run_job,
    PreprocessConfig,
    main,
    description="Decodes clips, finds faces, and writes face crops and masked contexts as Parquet shards.",
    examples=(
        "--input videos --output data",
        "--input s3://bucket/films --output s3://bucket/data --sample-fps 2 --segment-seconds 60",
    ),
)

if __name__ == "__main__":
    run()
