"""Preprocess on real Ray: every input in one state, shards that plain readers read, reruns that do what is missing."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
import harness
import pandas as pd
import pyarrow.parquet as pq
import pytest
from ledgers import audited
from PIL import Image
from video_zoo import make_clip

from pipeline.faces.crops import decode_image, masked_region
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.lock import LedgerError
from pipeline.ledger.retry import chosen, quarantined, retry
from pipeline.preprocess.config import ExtractConfig, PreprocessConfig
from pipeline.preprocess.extractor import ClipExtractor
from pipeline.preprocess.job import preprocess
from pipeline.preprocess.local_copies import SCRATCH_PREFIX, for_a_child
from pipeline.records.clips import Clip
from pipeline.records.faces import EXAMPLE_SCHEMA, Box
from pipeline.records.outcomes import State
from pipeline.sandbox.limits import SandboxLimits
from pipeline.storage.scratch import ScratchFolder
from pipeline.synthetic.corpus import BROKEN_PATH, FACELESS_PATH, make_corpus

pytestmark = [pytest.mark.lengthy, pytest.mark.timeout(600)]


def config_of(corpus, output, **changes):
    values = {
        "input": str(corpus),
        "output": str(output),
        "detector": "dlib-hog",
        "frames_per_clip": 2,
        "clips_per_shard": 4,
        "no_ray": True,
    }
    return PreprocessConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, clips_per_class=(3, 0, 0), seed=1)
    return folder


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    return preprocess(config_of(corpus, tmp_path_factory.mktemp("run") / "out"))


def folder_of(run):
    return run.ledger.storage.url


def test_every_input_ends_in_one_state(run):
    summary = run.summary
    assert run.exit_code == 0
    assert summary["inputs"] == 23 == sum(summary[state] for state in State)
    assert (summary["quarantined"], summary["no_face"], summary["retryable"]) == (1, 1, 0)
    outcomes = {outcome.path: outcome for outcome in run.ledger.snapshot().outcomes()}
    assert outcomes[BROKEN_PATH].state is State.QUARANTINED
    assert outcomes[BROKEN_PATH].detail
    assert outcomes[FACELESS_PATH].state is State.NO_FACE
    assert summary["examples"] == sum(outcome.num_examples for outcome in outcomes.values()) > 30


def test_the_output_holds_what_the_readme_promises(run):
    storage = run.ledger.storage
    saved = json.loads(storage.read("summary.json"))
    assert {"inputs", "done", "no_face", "quarantined", "retryable", "frames", "examples", "seconds"} <= set(saved)
    manifest = json.loads(storage.read("manifest.json"))
    assert all({"path", "rows", "bytes", "sha256"} <= set(shard) for shard in manifest["shards"])
    assert manifest["config"]["detector"] == "dlib-hog"
    assert len(harness.rows_of(Path(folder_of(run)))) == saved["examples"]
    for name in ("_SUCCESS", "config.yaml", "outcomes.jsonl", "report.html"):
        assert storage.exists(name)


def test_plain_readers_read_the_examples(run):
    count = run.summary["examples"]
    frame = pd.read_parquet(f"{folder_of(run)}/examples")
    assert len(frame) == count
    assert set(EXAMPLE_SCHEMA.names) <= set(frame.columns)
    query = f"select count(*), count(distinct clip_id), min(box.x_min) from '{folder_of(run)}/**/*.parquet'"
    assert duckdb.sql(query).fetchall()[0][:2] == (count, run.summary["done"])


def test_shards_carry_the_schema_and_the_meaning_of_every_column(run):
    shard = run.ledger.shards()[0]
    schema = pq.read_schema(f"{folder_of(run)}/{shard['path']}")
    assert schema.equals(EXAMPLE_SCHEMA, check_metadata=True)
    metadata = pq.read_metadata(f"{folder_of(run)}/{shard['path']}").metadata
    assert set(json.loads(metadata[b"columns"])) == set(EXAMPLE_SCHEMA.names)


def test_the_context_holds_no_face_and_the_face_is_square(run):
    row = pd.read_parquet(f"{folder_of(run)}/examples").iloc[0]
    face, context = decode_image(row.face_jpeg), decode_image(row.context_jpeg)
    assert face.shape == context.shape == (224, 224, 3)
    x_min, y_min, x_max, y_max = masked_region(
        Box(**row.box), frame_width=row.frame_width, frame_height=row.frame_height, context_px=224
    )
    assert context[y_min:y_max, x_min:x_max].max() < 40 < context.max()
    assert row.label in row.split + "AngerDisgustFearHappyNeutralSadSurprise"


def test_a_rerun_does_nothing_and_leaves_every_byte(run, corpus):
    storage = run.ledger.storage
    before = {name: storage.read(name) for name in storage.sizes("") if name not in ("summary.json", "report.html")}
    again = preprocess(config_of(corpus, folder_of(run)))
    assert again.summary["processed"] == 0
    assert {name: storage.read(name) for name in before} == before


def test_another_config_is_refused_or_gets_a_folder_beside(run, corpus, tmp_path):
    with pytest.raises(LedgerError, match="frames_per_clip 2 -> 3"):
        preprocess(config_of(corpus, folder_of(run), frames_per_clip=3))
    small = tmp_path / "small"
    shutil.copytree(corpus / "train" / "Happy", small)
    first = preprocess(config_of(small, tmp_path / "out", page=False))
    other = preprocess(config_of(small, tmp_path / "out", page=False, face_px=64, force_new=True))
    assert folder_of(other) == f"{folder_of(first)}-2"
    assert audited(first.ledger).holds
    assert audited(other.ledger).holds


def test_added_clips_alone_are_done_and_a_mended_one_is_retried(tmp_path, corpus):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    clips = sorted((corpus / "train" / "Happy").iterdir())
    shutil.copy(clips[0], folder / "a.avi")
    shutil.copy(corpus / BROKEN_PATH, folder / "broken.mp4")
    (folder / "notes.txt").write_text("not a video")
    first = preprocess(config_of(folder, output, max_quarantined=0))
    assert first.exit_code == 3
    assert first.summary["ignored"] == 1
    entries = harness.entries_of(output)
    shutil.copy(clips[1], folder / "b.avi")
    second = preprocess(config_of(folder, output))
    assert (second.summary["processed"], second.summary["inputs"], second.summary["done"]) == (1, 3, 2)
    assert entries.items() <= harness.entries_of(output).items()
    bad = chosen(quarantined(second.ledger), ["broken.mp4"])
    assert retry(second.ledger, bad) == 1
    assert not second.ledger.storage.exists("_SUCCESS")
    third = preprocess(config_of(folder, output))
    assert (third.summary["processed"], third.summary["quarantined"]) == (1, 1)
    assert third.audit.holds


def test_given_boxes_replace_detection(tmp_path):
    folder = tmp_path / "CAER-S"
    for split, name in (("train", "Angry"), ("test", "Anger")):
        (folder / split / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (712, 400), (200, 10 * number, 0)).save(folder / split / name / f"{number:04d}.png")
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("train/Angry/0000.png,Anger,10,20,110,140\ntrain/Angry/0001.png,Anger,-5,-5,95,90\n")
    run = preprocess(config_of(folder, tmp_path / "out", boxes=str(boxes), image_format="png"))
    frame = pd.read_parquet(tmp_path / "out" / "examples")
    found = {tuple(box.values()) for box in frame["box"]}
    assert found == {(10, 20, 110, 140), (0, 0, 95, 90)}
    assert set(frame.label) == {"Anger"}
    assert run.summary["reasons"] == {"no_face: no_box_given": 4}
    assert run.summary["boxes_clamped"] == 1


def test_a_corpus_on_s3_gives_a_dataset_on_s3(s3, corpus):
    for path in sorted((corpus / "train" / "Sad").iterdir()):
        s3.put(f"in/{path.name}", path.read_bytes())
    run = preprocess(config_of(s3.url("in"), s3.url("out"), frames_per_clip=1))
    assert run.summary["inputs"] == run.summary["done"] == 3
    assert audited(Ledger(s3.url("out"))).holds
    assert s3.fs.exists(f"{s3.bucket}/out/_SUCCESS")


@pytest.fixture(scope="module")
def extractor():
    config = ExtractConfig(detector="dlib-hog", frames_per_clip=2)
    extractor = ClipExtractor(config, limits=SandboxLimits())
    yield extractor
    extractor.sandbox.close()


def clip_at(path):
    return Clip(clip_id="0" * 20, path=path.name, url=str(path), size_bytes=1, content_id="x")


def test_a_missing_file_is_quarantined_with_its_reason(extractor, tmp_path):
    examples, outcome = extractor.extract(clip_at(tmp_path / "gone.mp4"))
    assert (examples, outcome.state, outcome.reason, outcome.stage) == ([], State.QUARANTINED, "missing", "fetch")


_LEAVE_SCRATCH = """
import os, signal
from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.extractor import ClipExtractor
from pipeline.sandbox.limits import SandboxLimits
from pipeline.storage.scratch import ScratchFolder
extractor = ClipExtractor(ExtractConfig(), limits=SandboxLimits())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_actor_left_is_swept_and_a_live_one_is_left_alone(tmp_path, monkeypatch):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", _LEAVE_SCRATCH], env=environment, check=False)
    (left,) = tmp_path.iterdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with contextlib.closing(ScratchFolder(SCRATCH_PREFIX)) as alive:
        extractor = ClipExtractor(ExtractConfig(), limits=SandboxLimits())
        assert not left.exists()
        assert alive.path.exists()
        assert len(list(tmp_path.iterdir())) == 2
    del extractor


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads files that are not its own")
def test_root_decodes_a_clip_that_is_readable_for_its_owner_alone(tmp_path):
    """Its child has no capability for that."""
    (tmp_path / "of_another").mkdir()
    video = make_clip(tmp_path / "of_another" / "a.mp4", num_frames=3)
    os.chown(video, 12345, 12345)
    os.chown(video.parent, 12345, 12345)
    video.chmod(0o600)
    video.parent.chmod(0o700)
    config = ExtractConfig(detector="dlib-hog")
    extractor = ClipExtractor(config, limits=SandboxLimits())
    _, outcome = extractor.extract(clip_at(video))
    extractor.sandbox.close()
    assert (outcome.state, outcome.num_frames) == (State.NO_FACE, 3)
    (tmp_path / "copies").mkdir()
    with for_a_child(str(video), copies=str(tmp_path / "copies")) as path:
        assert path.parent.parent == tmp_path / "copies"
        assert path.read_bytes() == video.read_bytes()


def test_a_folder_named_like_a_video_is_quarantined(extractor, tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    assert extractor.extract(clip_at(tmp_path / "folder.mp4"))[1].reason == "unreadable"


@pytest.mark.parametrize(
    "name", ["-dash.avi", "with space 'quote\" & $(x).avi", "%03d.avi", "видео 漢字.avi", "a\nb.avi"]
)
def test_odd_names_are_read(extractor, tmp_path, corpus, name):
    path = tmp_path / name
    shutil.copy(sorted((corpus / "train" / "Happy").glob("*.avi"))[0], path)
    examples, outcome = extractor.extract(clip_at(path))
    assert outcome.state is State.DONE
    assert len(examples) == 2


def test_a_clip_that_kills_its_child_costs_itself_alone(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("pipeline.preprocess.extractor.build_work", crashing_work)
    extractor = ClipExtractor(ExtractConfig(detector="dlib-hog"), limits=SandboxLimits())
    good = sorted((corpus / "train" / "Happy").glob("*.avi"))[0]
    names = ("good-1.avi", "SIGSEGV.avi", "good-2.avi", "SIGKILL.avi", "good-3.avi")
    for name in names:
        shutil.copy(good, tmp_path / name)
    outcomes = [extractor.extract(clip_at(tmp_path / name))[1] for name in names]
    extractor.sandbox.close()
    assert [outcome.state for outcome in outcomes[::2]] == [State.DONE] * 3
    poison, killed = outcomes[1::2]
    assert (poison.state, poison.reason, poison.stage, poison.attempts) == ("quarantined", "crash", "decode", 2)
    assert "SIGSEGV" in poison.detail
    assert (killed.state, killed.reason, killed.attempts) == ("retryable", "killed", 3)


def crashing_work(config):
    import os
    import signal

    from pipeline.preprocess.sandboxed import build_work

    work = build_work(config)

    def crash_on_poison(task, stage):
        if task["clip"].path.startswith("SIG"):
            stage("decode")
            os.kill(os.getpid(), getattr(signal, task["clip"].path.removesuffix(".avi")))
        return (yield from work(task, stage))

    return crash_on_poison


def test_pytorch_is_loaded_before_a_cluster_is_joined():
    """Nodes on one machine then replace the folder that the job runs in, and MKL does not load in one that is gone."""
    code = (
        "import sys, pipeline.preprocess.detectors as preprocess, pipeline.runtime.cluster as cluster\n"
        "cluster.num_cluster_gpus = lambda: print('torch' in sys.modules) or 0\n"
        "assert 'torch' not in sys.modules\n"
        "preprocess.resolve_detector_device('auto', preprocess.ExtractConfig())\n"
    )
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "True\n"
