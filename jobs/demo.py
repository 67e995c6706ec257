"""The whole way on a small made corpus: `python jobs/demo.py`. Every step is the command that a user types."""

import json
import shutil
import subprocess
import sys
import time
import webbrowser
from functools import partial
from pathlib import Path

from command_line import run_job, sharing

from pipeline.synthetic.config import DemoConfig


def main(config: DemoConfig) -> int:
    # PyAV, which --help does without.
    from pipeline.synthetic.corpus import film_photo, make_corpus, mark_synthetic, single_stream_bounds

    top, started = Path(config.output), time.monotonic()
    shutil.rmtree(top, ignore_errors=True)
    print("Making a SYNTHETIC corpus: one real face, bent into three expressions, on seven drawn scenes.")
    make_corpus(top / "corpus", clips_per_class=(9, 3, 3))
    mark_synthetic(top / "corpus", name="demo corpus")
    shutil.copytree(top / "corpus" / "test", top / "new")
    film_photo(top / "photo")
    small = f"--batch-size 16 --lr 0.05 --dropout 0.2 --input-px 32 --epochs {config.epochs}"
    for command in (
        f"preprocess.py --input {top}/corpus --output {top}/data --frames-per-clip 4",
        f"train.py --data {top}/data --output {top}/run {small}",
        f"evaluate.py --data {top}/data --checkpoint {top}/run --output {top}/evaluation",
        f"score.py --input {top}/new --checkpoint {top}/run --output {top}/labels",
        f"quarantine.py list {top}/data",
        f"score.py --input {top}/photo --checkpoint baseline --output {top}/photo-labels",
    ):
        print(f"\n$ python jobs/{command}", flush=True)
        name, *flags = command.split()
        subprocess.run([sys.executable, Path(__file__).with_name(name), *flags, *sharing()], check=True)
    top1 = json.loads((top / "evaluation" / "evaluation.json").read_text())["splits"]["test"]["top1_accuracy"]
    face, context = single_stream_bounds()
    print(f"\nHeld-out faces named right: {top1:.0%}. No model can pass {face:.0%} on the face alone, {context:.0%} on")
    print(f"the context alone. All but the photo is synthetic. It took {time.monotonic() - started:.0f} s. Look at:")
    pages = [top / name / "report.html" for name in ("data", "run", "evaluation")]
    pages += [page for name in ("photo-labels", "labels") for page in (top / name).glob("model=*/report.html")]
    print("".join(f"    {page}\n" for page in pages), end="")
    if config.show:
        webbrowser.open(pages[-1].resolve().as_uri())
    return 0


run = partial(
    run_job, DemoConfig, main, description="Makes a small SYNTHETIC corpus and takes it from video to labels."
)

if __name__ == "__main__":
    run()
