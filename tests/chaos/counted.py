"""`python counted.py preprocess|score ARGUMENTS` is that job, which also notes in OUTPUT.attempts each unit begun."""

import runpy
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "jobs")]


def counted(actor):
    class Counted(actor):
        def __init__(self, *, ledger_url, **arguments):
            super().__init__(ledger_url=ledger_url, **arguments)
            self._attempts = Path(f"{ledger_url}.attempts")

        def run(self, unit):
            with self._attempts.open("a") as file:
                file.write(f"{unit.unit_id}\n")
            return super().run(unit)

    return Counted


if __name__ == "__main__":
    import pipeline.preprocess.job
    import pipeline.score.job

    pipeline.preprocess.job.PreprocessActor = counted(pipeline.preprocess.job.PreprocessActor)
    pipeline.score.job.ScoreActor = counted(pipeline.score.job.ScoreActor)
    sys.argv = [f"{sys.argv[1]}.py", *sys.argv[2:]]
    runpy.run_path(str(REPOSITORY / "jobs" / sys.argv[0]), run_name="__main__")
