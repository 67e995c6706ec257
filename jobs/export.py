"""Write labels for other programs: `python jobs/export.py LABELS --format csv --output DIR`."""

from command_line import run_job

from pipeline.labels.config import ExportConfig
from pipeline.labels.export import export

if __name__ == "__main__":
    run_job(
        ExportConfig,
        export,
        description="Writes labels as tables, subtitles or tiers.",
        positional=("labels",),
    )
