"""Measure on this machine: `python jobs/benchmark.py STUDY --output FOLDER`; --help lists the studies."""

import sys
from functools import partial
from importlib import import_module
from typing import Any

from command_line import run_job

from benchmarks.config import BenchmarkConfig

# Studies with flags of their own: in benchmarks/STUDY.py these, what is run, and what shows it.
OWN = {
    "learn": ("LearnConfig", "learn", "print_learned"),
    "fer2013": ("Fer2013Config", "fer2013", "print_fer2013"),
    "films": ("FilmsConfig", "films", "print_films"),
    "ingest": ("IngestConfig", "ingest", "print_ingested"),
    "driver": ("DriverConfig", "driver", "print_driver"),
    "ledger": ("LedgerConfig", "ledger", "print_ledger"),
    "listing": ("ListingConfig", "listing", "print_listing"),
    "nights": ("NightsConfig", "nights", "print_nights"),
    "peers": ("PeersConfig", "peers", "print_peers"),
    "persons": ("PersonsConfig", "persons", "print_persons"),
    "plan": ("PlanConfig", "plan", "print_plan"),
    "scaling": ("ScalingConfig", "scaling", "print_scaling"),
    "viewer": ("ViewerConfig", "viewer", "print_viewer"),
}
STUDY = next((word for word in sys.argv[1:2] if word in OWN), None)
MODULE = {"plan": "sizing"}


def of_study(name: str) -> Any:
    """What the module of the chosen study has under a name."""
    return getattr(import_module(f"benchmarks.{MODULE.get(str(STUDY), STUDY)}"), name)


def main(config: Any) -> int:
    if STUDY:
        measure, show = map(of_study, OWN[STUDY][1:])
    else:
        from benchmarks.studies import benchmark as measure  # PyTorch and Ray, which --help does without.
        from benchmarks.studies import print_tables as show
    show(measure(config))
    return 0


run = partial(
    run_job,
    of_study(OWN[STUDY][0]) if STUDY else BenchmarkConfig,
    main,
    description="Measures detection, decoding and preprocess beside what they replace, on this machine. What the"
    " networks learn, how fast training reads, what a ledger and a listing cost at a size, what a long run leaves in"
    " its driver, what nights, films and the viewer cost, what Daft and Ray Data take, what a cluster costs, how"
    f" actors are kept at work have flags of their own: {', '.join(OWN)}, and --help.",
    positional=("study",),
)

if __name__ == "__main__":
    run()
