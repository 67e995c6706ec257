"""What ended badly in a run, and another try: `python jobs/quarantine.py list|show|retry OUTPUT [NAME ...]`."""

import json
from collections import Counter
from dataclasses import asdict, dataclass

from command_line import run_job

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.retry import chosen, quarantined, retry


@dataclass(frozen=True, kw_only=True)
class QuarantineConfig:
    """Lists, shows or retries the clips of a run that are quarantined or retryable."""

    action: str
    """list (a line each), show (everything known of each, as JSON) or retry (plan them again)."""
    output: str
    """Output folder of jobs/preprocess.py or jobs/score.py; a path or any fsspec URL."""
    names: tuple[str, ...] = ()
    """Only these: clip ids, paths or reasons; default: all."""

    def __post_init__(self) -> None:
        if self.action not in ("list", "show", "retry"):
            raise ValueError(f"action is {self.action!r}; give one of list, show, retry")


def main(config: QuarantineConfig) -> int:
    ledger = Ledger(config.output)
    outcomes = chosen(quarantined(ledger), config.names)
    if config.action == "list":
        for outcome in outcomes:
            print(f"{outcome.clip_id}  {outcome.state:11}  {outcome.reason:16}  {outcome.path!r}")
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(o.reason for o in outcomes).most_common())
        print(f"{len(outcomes)} clips: {reasons or 'nothing is quarantined'}")
    elif config.action == "show":
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    else:
        print(f"{retry(ledger, outcomes)} clips are planned again; run the same job on {config.output} to do them")
    return 0


if __name__ == "__main__":
    run_job(
        QuarantineConfig,
        main,
        description="Lists, shows or retries the clips of a run that are quarantined or retryable.",
        positional=("action", "output", "names"),
    )
