"""Measure on this machine: `python jobs/benchmark.py STUDY --output FOLDER`; --help lists the studies."""

import sys
from typing import Any

from command_line import run_job

from benchmarks import BenchmarkConfig, benchmark, print_tables
from benchmarks.ingest import IngestConfig, ingest, print_ingested
from benchmarks.learn import LearnConfig, learn, print_learned
from benchmarks.ledger import LedgerConfig, ledger, print_ledger
from benchmarks.listing import ListingConfig, listing, print_listing
from benchmarks.nights import NightsConfig, nights, print_nights
from benchmarks.scaling import ScalingConfig, print_scaling, scaling
from benchmarks.sizing import PlanConfig, plan, print_plan

# Studies with flags of their own: these, what is run, and what shows it.
OWN = {
    "learn": (LearnConfig, learn, print_learned),
    "ingest": (IngestConfig, ingest, print_ingested),
    "ledger": (LedgerConfig, ledger, print_ledger),
    "listing": (ListingConfig, listing, print_listing),
    "nights": (NightsConfig, nights, print_nights),
    "plan": (PlanConfig, plan, print_plan),
    "scaling": (ScalingConfig, scaling, print_scaling),
}
CONFIG, RUN, SHOW = OWN.get(next(iter(sys.argv[1:]), ""), (BenchmarkConfig, benchmark, print_tables))


def main(config: Any) -> int:
    SHOW(RUN(config))
    return 0


if __name__ == "__main__":
    run_job(
        CONFIG,
        main,
        description="Measures detection, decoding and preprocess beside what they replace, on this machine. What the"
        " networks learn, how fast training reads, what a ledger and a listing cost at a size, what nights and films"
        " cost, what a cluster costs and how actors are kept at work have flags of their own: learn, ingest, ledger,"
        " listing, nights, plan or scaling, and --help.",
        positional=("study",),
    )
