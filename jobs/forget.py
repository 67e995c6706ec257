"""Delete clips from an output, with a proof: `python jobs/forget.py OUTPUT --clip ID | --path PATTERN`."""

from functools import partial

from command_line import run_job

from pipeline.ledger.config import ForgetConfig
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import print_line


def main(config: ForgetConfig) -> int:
    # DuckDB and Arrow, which --help does without.
    from pipeline.ledger.forget import checkpoints_of, clips_to_forget, forget
    from pipeline.ledger.outputs import runs_in

    num_clips, left = 0, []
    for ledger in runs_in(config.output):
        if config.dry_run:
            ids = clips_to_forget(ledger, ledger.snapshot(), config)
            print_line(f"{ledger.storage.url}: {len(ids)} clips would be forgotten: {', '.join(ids[:20])}")
            num_clips += len(ids)
            continue
        with ledger.lock():
            snapshot = ledger.snapshot()
            if not (ids := clips_to_forget(ledger, snapshot, config)):
                continue
            done = forget(ledger, snapshot, ids)
        num_clips += len(ids)
        left += done.left
        print_line(
            f"{ledger.storage.url}: {len(ids)} clips forgotten: {done.num_rows} rows of {done.num_units} units, "
            f"{done.num_deleted} other objects deleted or rewritten"
        )
        print_line(f"proof: {done.num_read} objects read, {len(done.left)} of them hold something of these clips")
        for name in done.alike:
            print_line(f"warning: {name} holds the same pictures as other clips': look for copies with other bytes")
        for name in checkpoints_of(config.checkpoints, done.manifests, data=ledger.storage.url):
            print_line(f"{name} was trained on data that held them: delete it, and train again")
        for sha256 in done.manifests:
            print_line(f"checkpoints whose manifest_sha256 is {sha256} were trained on data that held them")
    if not num_clips:
        raise UsageError(f"no clip of {config.output} fits; see outcomes.jsonl for ids and paths")
    if left:
        raise UsageError(f"these objects still hold something: {', '.join(left)}; run the same command again")
    return 0


run = partial(
    run_job,
    ForgetConfig,
    main,
    description="Deletes clips from an output, and proves it by a scan of every object.",
    positional=("output",),
    examples=("data --clip 0123456789abcdef0123", "labels --path 'uploads/anna/*' --dry-run"),
)

if __name__ == "__main__":
    run()
