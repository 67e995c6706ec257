"""What ended badly in a run, and another try: `python jobs/quarantine.py list|show|retry|verify OUTPUT [NAME ...]`."""

import json
from collections import Counter
from dataclasses import asdict
from functools import partial

from command_line import run_job

from pipeline.ledger.config import QuarantineConfig
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import print_line


def main(config: QuarantineConfig) -> int:
    # DuckDB and Arrow, which --help does without.
    from pipeline.ledger.outputs import one_run_in, runs_in
    from pipeline.ledger.retry import chosen, quarantined, retry, verify
    from pipeline.runtime.describe import describe_verified

    runs = [one_run_in(config.output)] if config.action == "retry" else runs_in(config.output)
    if config.action == "verify":
        found = [verify(ledger) for ledger in runs]
        for line in describe_verified(found):
            print_line(line)
        if num_faults := sum(len(each.faults) for each in found):
            raise UsageError(f"{num_faults} shards of {config.output} are not what was committed; mend each as it says")
        return 0
    every = [quarantined(ledger, with_faceless=bool(config.names)) for ledger in runs]
    wanted = {id(outcome) for outcome in chosen([outcome for found in every for outcome in found], config.names)}
    every = [[outcome for outcome in found if id(outcome) in wanted] for found in every]
    if config.action == "show":
        print(json.dumps([asdict(outcome) for found in every for outcome in found], indent=1))
    elif config.action == "retry":
        num_again = retry(runs[0], every[0])
        print_line(f"{num_again} clips are planned again; run the same job on {config.output} to do them")
    else:
        for ledger, found in zip(runs, every, strict=True):
            for outcome in found:
                print_line(f"{outcome.clip_id}  {outcome.state:11}  {outcome.reason:16}  {outcome.path!r}")
            counts = Counter(outcome.reason for outcome in found).most_common()
            reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
            where = f"{ledger.storage.url.rpartition('/')[2]}: " * (len(runs) > 1)
            print_line(f"{where}{len(found)} clips: {reasons or 'nothing is quarantined'}")
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
