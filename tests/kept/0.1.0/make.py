"""Made the outputs beside this file, with the code of version 0.1.0 (commit b8047a9) and never since: what a user of
that version has on his disk. Run from that version's repository: python make.py FOLDER."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import safetensors.torch
import torch

import pipeline.checkpoint as checkpoint
from pipeline import segments
from pipeline.detection import build_detector
from pipeline.records import EMOTIONS
from pipeline.synthetic import make_corpus

TOP = Path(sys.argv[1])
DAY = "2026-11-20"
SMALL = "--detector dlib-hog --sample-fps 5 --face-px 48 --context-px 48 --clips-per-shard 6 --actors 1"


def smaller(source, target, *, frames=4):
    """The part of a made clip around its face, at 10 frames a second and few bits."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        images = [frame.to_ndarray(format="rgb24") for frame in reader.decode(video=0)]
        box = build_detector("dlib-hog", upsample=0, score_threshold=0.0, precision="auto", device="cpu", weights=None)
        face = box.detect_faces([images[0]])[0][0].box
        y = min(max((face.y_min + face.y_max) // 2 - 120, 0), 160)
        x = min(max((face.x_min + face.x_max) // 2 - 120, 0), 472)
        stream = writer.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 240, 240, "yuv420p", 300_000
        for number in range(frames):
            image = images[number % len(images)][y : y + 240, x : x + 240]
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")):
                writer.mux(packet)
        for packet in stream.encode():
            writer.mux(packet)


def job(name, *arguments):
    subprocess.run([sys.executable, f"jobs/{name}.py", *map(str, arguments)], check=True)


def make_inputs():
    made = TOP / "made"
    make_corpus(made, clips_per_class=(3, 3, 0))
    corpus = TOP / "corpus"
    for split, number in (("train", 1), ("validation", 1)):
        for label in EMOTIONS:
            source = next(path for path in sorted((made / split / label).iterdir()) if path.name.startswith("0"))
            smaller(source, corpus / split / label / f"{number:04d}.avi")
    (corpus / "train" / "Sad" / "0009.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(200))
    with av.open(str(corpus / "train" / "Fear" / "0009.avi"), "w") as writer:  # Nobody is in it.
        stream = writer.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 240, 240, "yuv420p"
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(np.full((240, 240, 3), 90, np.uint8))), *stream.encode()]:
            writer.mux(packet)
    uploads = TOP / "uploads"
    smaller(made / "train" / "Happy" / "0001.avi", uploads / "one.avi")
    smaller(made / "train" / "Sad" / "0001.avi", uploads / "two.avi", frames=6)
    shutil.copy(uploads / "one.avi", uploads / "one-again.avi")
    smaller(made / "train" / "Anger" / "0001.avi", TOP / "films" / "film.avi", frames=16)
    shutil.rmtree(made)


def round_weights():
    """To multiples of 1/64, so that they take little room in a repository; by the version's own functions."""
    was = checkpoint.load_checkpoint(str(TOP / "run"), "last")
    with torch.no_grad():
        for tensor in was.model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.round(tensor * 64) / 64)
    saved = json.loads((TOP / "run" / "checkpoints" / "epoch-0001" / "checkpoint.json").read_text())
    shutil.rmtree(TOP / "run" / "checkpoints")
    checkpoint.save_checkpoint(
        str(TOP / "run"), epoch=1, step=saved["step"], model=was.model, optimizer_state=was.training_state,
        config=saved["config"], info=saved["info"],
    )


def main():
    make_inputs()
    job("preprocess", "--input", TOP / "corpus", "--output", TOP / "data", *SMALL.split())
    # As of a ledger of so many units that their entries lie in one object too.
    from pipeline import ledger

    ledger.ENTRIES_AT_ONCE = 1
    found = ledger.Ledger(str(TOP / "data"))
    found.finish(found.audit(), input_description=json.loads((TOP / "data" / "manifest.json").read_text())["input"])
    ledger.ENTRIES_AT_ONCE = 1000
    training = "--model se-af --input face --epochs 1 --batch-size 7 --momentum 0 --nesterov false --keep 1"
    job("train", "--data", TOP / "data", "--output", TOP / "run", *training.split())
    round_weights()
    job("evaluate", "--data", TOP / "data", "--checkpoint", TOP / "run", "--output", TOP / "evaluation", "--splits", "validation")
    labels = ["--checkpoint", TOP / "run", "--actors", "1", "--day", DAY]
    job("score", "--input", TOP / "uploads", "--output", TOP / "labels", *labels)
    for page in TOP.rglob("report.html"):  # 5 MB each, and read by nobody but people.
        page.unlink()
    # A night that was cut off when every segment of a film had ended and the film was not joined yet.
    segments.MIN_BYTES = 0
    import pipeline.score as score
    score.join_segments = lambda *_, **__: []
    score.score(score.ScoreConfig(
        input=str(TOP / "films"), output=str(TOP / "waiting"), checkpoint=str(TOP / "run"), actors=1, day=DAY,
        segment_seconds=0.6, page=False,
    ))


main()
