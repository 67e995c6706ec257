"""Measure on this machine: `python jobs/benchmark.py detect|decode|preprocess|all --output FOLDER`."""

from command_line import run_job

from pipeline.benchmark import BenchmarkConfig, benchmark, print_tables


def main(config: BenchmarkConfig) -> int:
    print_tables(benchmark(config))
    return 0


if __name__ == "__main__":
    run_job(
        BenchmarkConfig,
        main,
        description="Measures detection, decoding and preprocess beside what they replace, on this machine.",
        positional=("study",),
    )
