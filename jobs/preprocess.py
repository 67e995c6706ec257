"""Preprocess a corpus: `python jobs/preprocess.py --input DIR_OR_URL --output DIR_OR_URL`."""

from command_line import run_job

from pipeline.preprocess.config import PreprocessConfig
from pipeline.preprocess.job import preprocess


def main(config: PreprocessConfig) -> int:
    return preprocess(config).exit_code


if __name__ == "__main__":
    run_job(
        PreprocessConfig,
        main,
        description="Decodes clips, finds faces, and writes face crops and masked contexts as Parquet shards.",
    )
