"""Write labels for other programs: `python jobs/export.py LABELS --format csv --output DIR`."""

from functools import partial

from command_line import run_job

from pipeline.labels.config import ExportConfig


def main(config: ExportConfig) -> int:
    from pipeline.labels.source import models_of
    from pipeline.ledger.outputs import require_output_of
    from pipeline.runtime.console import log_status
    from pipeline.storage.remote import absolute_url

    if config.output is not None:
        require_output_of("export", config.output)
    models_of(absolute_url(config.labels))  # What is not there is told before anything that takes long.
    log_status(f"{'importing' if config.import_ else 'exporting'} {config.format}: reading {config.labels}")
    from pipeline.labels.export import export  # Arrow, which --help does without.

    return export(config)


run = partial(
    run_job,
    ExportConfig,
    main,
    description="Writes labels as tables, subtitles, tiers, videos, tasks, images or figures; imports corrections.",
    positional=("labels",),
    examples=("labels --format csv --output tables", "labels --format elan --output tiers --clips 'show/*'"),
)

if __name__ == "__main__":
    run()
