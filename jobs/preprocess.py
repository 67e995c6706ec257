"""Preprocess a corpus: `python jobs/preprocess.py --input DIR_OR_URL --output DIR_OR_URL`."""

from functools import partial

from command_line import run_job

from pipeline.preprocess.config import PreprocessConfig


def main(config: PreprocessConfig) -> int:
    from pipeline.ledger.outputs import require_output_of

    require_output_of("preprocess", config.output)
    from pipeline.preprocess.job import preprocess  # Ray and Arrow, which --help does without.

    corrected = None
    if config.corrections is not None:
        from pipeline.labels.corrected_faces import corrected_faces

        corrected = corrected_faces(config.corrections)
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
