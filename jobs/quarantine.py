"""What ended badly in a run, and another try: `python jobs/quarantine.py list|show|retry|verify OUTPUT [NAME ...]`."""

import json
from dataclasses import asdict
from functools import partial

from command_line import run_job

from pipeline.ledger.config import QuarantineConfig
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import print_line


def main(config: QuarantineConfig) -> int:
    # DuckDB and Arrow, which --help does without.
    from pipeline.ledger.outputs import names_of, one_run_in, runs_in
    from pipeline.ledger.retry import chosen, quarantined, retry, verify
    from pipeline.runtime.describe import describe_quarantined, describe_verified
    from pipeline.storage.parts import parts_of

    is_retry = config.action == "retry"
    runs = [one_run_in(part) for part in parts_of(config.output)] if is_retry else runs_in(config.output)
    if config.action == "verify":
        found = [verify(ledger) for ledger in runs]
        for line in describe_verified(found):
            print_line(line)
        if num_faults := sum(len(each.faults) for each in found):
            raise UsageError(f"{num_faults} shards of {config.output} are not what was committed; mend each as it says")
        return 0
    every = [quarantined(ledger, with_faceless=bool(config.names)) for ledger in runs]
    wanted = set(map(id, chosen([outcome for found in every for outcome in found], config.names)))
    every = [[outcome for outcome in found if id(outcome) in wanted] for found in every]
    if config.action == "show":
        print(json.dumps([asdict(outcome) for found in every for outcome in found], indent=1))
    elif is_retry:
        for ledger, found in zip(runs, every, strict=True):
            where = config.output if len(runs) == 1 else ledger.storage.url
            print_line(f"{retry(ledger, found)} clips are planned again; run the same job on {where} to do them")
    else:
        for name, found in zip(names_of(runs), every, strict=True):
            for line in describe_quarantined(found, run=name if len(runs) > 1 else None):
                print_line(line)
    return 0


run = partial(
    run_job,
    QuarantineConfig,
    main,
    description="Lists, shows or retries the clips of a run that are quarantined or retryable, or verifies its shards.",
    positional=("action", "output", "names"),
    examples=("list data", "retry data undecodable"),
)

if __name__ == "__main__":
    run()
