"""Measure on this machine: `python jobs/benchmark.py detect|decode|preprocess|all|learn|ingest --output FOLDER`."""

import sys
from typing import Any

from command_line import run_job

from pipeline.benchmark import BenchmarkConfig, benchmark, print_tables
from pipeline.benchmark.ingest import IngestConfig, ingest, print_ingested
from pipeline.benchmark.learn import LearnConfig, learn, print_learned

OWN_FLAGS = {"learn": LearnConfig, "ingest": IngestConfig}


def main(config: Any) -> int:
    if isinstance(config, LearnConfig):
        print_learned(learn(config))
    elif isinstance(config, IngestConfig):
        print_ingested(ingest(config))
    else:
        print_tables(benchmark(config))
    return 0


if __name__ == "__main__":
    run_job(
        OWN_FLAGS.get(next(iter(sys.argv[1:]), ""), BenchmarkConfig),
        main,
        description="Measures detection, decoding and preprocess beside what they replace, on this machine. What the"
        " networks learn and how fast training reads have flags of their own: learn --help, ingest --help.",
        positional=("study",),
    )
