"""The whole way as a user goes it: preprocess, train, evaluate and score as processes, and the real clips."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import stat
import tempfile
import threading
import time

import harness
import pandas as pd
import pytest

from pipeline.ledger.ledger import Ledger
from pipeline.records.faces import Box, iou
from pipeline.records.outcomes import State
from pipeline.records.vocabulary import EMOTIONS
from pipeline.synthetic.corpus import make_corpus

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
OUTPUTS = ("data", "run", "evaluation", "labels")
DETECT = ("--detector", "dlib-hog", "--frames-per-clip", "2", "--face-px", "64", "--context-px", "64")


def job(name, *arguments, log):
    code = harness.finish_job(name, *map(str, arguments), log=log)
    assert code == 0, log.read_text()
    return code


def open_to_others(path):
    """What another user of this machine could enter, read or change of a folder and below it, with permission bits."""
    with contextlib.suppress(OSError):  # It is not there yet, or gone by now.
        mode = os.lstat(path).st_mode
        if mode & 0o077 and not stat.S_ISLNK(mode):
            below = [each.path for each in os.scandir(path)] if stat.S_ISDIR(mode) else []
            return {
                str(path): oct(stat.S_IMODE(mode)),
                **{k: v for each in below for k, v in open_to_others(each).items()},
            }
    return {}


@pytest.fixture(scope="module")
def opened():
    """What was open to others at any moment of the way, also among temporary files."""
    return {}


@contextlib.contextmanager
def watched(top, temporary, opened):
    """Look at outputs and temporary files again and again while jobs run that are started under a umask of 0."""
    ended = threading.Event()

    def watch():
        while not ended.wait(0.05):
            for path in (*map(top.joinpath, OUTPUTS), *os.scandir(temporary)):
                opened.update(open_to_others(path))

    thread = threading.Thread(target=watch)
    umask = os.umask(0)
    thread.start()
    try:
        yield
    finally:
        os.umask(umask)
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def way(tmp_path_factory, opened):
    """The folders of a small corpus that went the whole way."""
    top = tmp_path_factory.mktemp("way")
    make_corpus(top / "corpus", clips_per_class=(3, 3, 3), seed=2)
    # Short: Ray's sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="w", dir="/tmp") as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", temporary)
        with watched(top, temporary, opened):
            go(top)
    return top


def go(top):
    log = top / "log"
    job("preprocess.py", "--input", top / "corpus", "--output", top / "data", *DETECT, log=log)
    train = ("--data", top / "data", "--output", top / "run", "--epochs", "2", "--batch-size", "16")
    job("train.py", *train, "--json-logs", log=top / "train.log")
    job("evaluate.py", "--data", top / "data", "--checkpoint", top / "run", "--output", top / "evaluation", log=log)
    new = top / "new"
    new.mkdir()
    for number, clip in enumerate(sorted((top / "corpus" / "test").rglob("*.*"))[:4]):
        shutil.copy(clip, new / f"{number}{clip.suffix}")
    shutil.copy(top / "corpus" / "train" / "Neutral" / "9001.mp4", new / "broken.mp4")
    shutil.copy(top / "corpus" / "train" / "Neutral" / "9002.avi", new / "nobody.avi")
    job("score.py", "--input", new, "--checkpoint", top / "run", "--output", top / "labels", log=log)


def labels_of(way):
    """The partition of the one model that scored."""
    (partition,) = (way / "labels").iterdir()
    return partition


def test_every_step_leaves_what_the_readme_promises(way):
    for name in (
        "data/manifest.json",
        "data/report.html",
        "run/best.json",
        "run/metrics.csv",
        "run/config.yaml",
        "run/README.md",
    ):
        assert (way / name).stat().st_size > 0, name
    for name in ("evaluation/evaluation.json", "evaluation/report.html"):
        assert (way / name).stat().st_size > 0, name
    for name in ("manifest.json", "report.html"):
        assert (labels_of(way) / name).stat().st_size > 0, name


def modes_of(folder):
    """The permission bits of a folder and of all below it."""
    return {path: stat.S_IMODE(path.lstat().st_mode) for path in (folder, *folder.rglob("*"))}


def test_what_jobs_write_is_for_its_owner_alone_at_every_moment(way, opened):
    """They ran under a umask of 0. Temporary files count, those of Ray and of the sandboxed children too."""
    assert opened == {}
    for name in OUTPUTS:
        assert {path: oct(mode) for path, mode in modes_of(way / name).items() if mode & 0o077} == {}


def test_what_is_shared_has_the_modes_of_the_umask(way, tmp_path):
    export = ("export.py", way / "labels", "--format", "csv", "--output")
    for flags, wanted in (((), {0o700, 0o600}), (("--shared-output",), {0o755, 0o644})):
        umask = os.umask(0o022)
        try:
            job(*export, tmp_path / f"tables{len(flags)}", *flags, log=tmp_path / "log")
        finally:
            os.umask(umask)
        assert set(modes_of(tmp_path / f"tables{len(flags)}").values()) == wanted
        assert bool(open_to_others(tmp_path / f"tables{len(flags)}")) == bool(flags)  # What is open would be seen.


def test_a_training_with_json_logs_says_nothing_but_events(way):
    events = [json.loads(line) for line in (way / "train.log").read_text().splitlines()]
    assert all(event["time"].endswith("+00:00") for event in events)
    kinds = [event["event"] for event in events if event["event"] not in ("message", "step")]
    assert kinds == ["start", "epoch", "epoch", "summary"]
    first, second = (event for event in events if event["event"] == "epoch")
    assert (first["epoch"], second["epoch"]) == (1, 2)
    best = json.loads((way / "run/best.json").read_text())
    top1 = max(event["validation_top1_accuracy"] for event in (first, second))
    assert top1 == pytest.approx(best["validation_top1_accuracy"])


def test_the_ledger_is_one_from_end_to_end(way):
    data, labels = json.loads((way / "data/manifest.json").read_text()), Ledger(str(labels_of(way)))
    epoch = json.loads((way / "run/best.json").read_text())["epoch"]
    checkpoint = json.loads((way / f"run/checkpoints/epoch-{epoch:04d}/checkpoint.json").read_text())
    assert (
        checkpoint["info"]["manifest_sha256"] == hashlib.sha256((way / "data/manifest.json").read_bytes()).hexdigest()
    )
    assert checkpoint["config"]["preprocessing"]["frames_per_clip"] == data["config"]["frames_per_clip"] == 2
    assert labels.run_info()["config"]["checkpoint_sha256"] == checkpoint["sha256"]["model.safetensors"]


def test_every_scored_clip_has_a_row_and_a_state(way):
    summary = json.loads((labels_of(way) / "summary.json").read_text())
    assert (summary["inputs"], summary["scored"], summary["no_face"], summary["quarantined"]) == (6, 4, 1, 1)
    clips = pd.read_parquet(labels_of(way) / "clips").set_index("path")
    assert sorted(clips.state) == [State.DONE] * 4 + [State.NO_FACE, State.QUARANTINED]
    done = clips[clips.state == State.DONE]
    assert set(done.emotion.dropna()) <= set(EMOTIONS)
    assert set(done.reason[done.emotion.isna()]) <= {"abstained"}
    assert all(abs(sum(row.values()) - 1) < 1e-5 for row in done.probabilities)
    assert clips.loc["nobody.avi"].reason == "no_face_found"
    faces = pd.read_parquet(labels_of(way) / "frames")
    assert len(faces) == done.num_faces.sum() == summary["examples"]
    means = pd.DataFrame(faces.probabilities.tolist()).groupby(faces.clip_id).mean()
    for row in done.itertuples():
        assert means.loc[row.clip_id].to_dict() == pytest.approx(row.probabilities, abs=1e-5)


def test_scoring_again_scores_only_what_is_new(way):
    before = harness.entries_of(labels_of(way))
    shutil.copy(sorted((way / "corpus" / "test").rglob("*.*"))[5], way / "new" / "later.avi")
    job("score.py", "--input", way / "new", "--checkpoint", way / "run", "--output", way / "labels", log=way / "log")
    summary = json.loads((labels_of(way) / "summary.json").read_text())
    assert (summary["inputs"], summary["scored"]) == (7, 1)
    assert before.items() <= harness.entries_of(labels_of(way)).items()


def test_scoring_cuts_the_faces_out_as_preprocessing_did(way):
    examples, faces = pd.read_parquet(way / "data/examples"), pd.read_parquet(labels_of(way) / "frames")
    boxes = {(row.frame_index, *row.box.values()) for row in examples.itertuples()}
    assert {(row.frame_index, *row.box.values()) for row in faces.itertuples()} <= boxes


@pytest.mark.slow
def test_interrupting_ends_with_130_and_a_way_to_resume(way, tmp_path):
    log = tmp_path / "log"
    arguments = ("--input", str(way / "corpus"), "--output", str(tmp_path / "out"), "--detector", "dlib-hog")
    process = harness.start_job("preprocess.py", *arguments, "--upsample", "1", "--clips-per-shard", "2", log=log)
    while not harness.entries_of(tmp_path / "out"):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # the harder one: Ray's core has a handler of its own for it
    assert process.wait(timeout=60) == 130, log.read_text()
    assert "run the same command again" in log.read_text().splitlines()[-1]
    assert "Traceback" not in log.read_text()
    assert "SIGTERM received" not in log.read_text()
    committed = harness.entries_of(tmp_path / "out")
    job("preprocess.py", *arguments, "--upsample", "1", "--clips-per-shard", "2", log=log)
    assert committed.items() <= harness.entries_of(tmp_path / "out").items()


@pytest.fixture(scope="module")
def real(real_clips_dir, nasty_dir, tmp_path_factory):
    """The real clips and the broken ones together, preprocessed once with the default detector."""
    top = tmp_path_factory.mktemp("real")
    (top / "in").mkdir()
    (top / "in" / "clips").symlink_to(real_clips_dir)
    (top / "in" / "nasty").symlink_to(nasty_dir)
    arguments = ("--input", top / "in", "--output", top / "out", "--frames-per-clip", "4", "--clips-per-shard", "8")
    job("preprocess.py", *arguments, "--follow-links", log=top / "log")
    return top


def test_every_real_and_every_nasty_file_is_in_one_state(real, real_clips_dir, nasty_dir):
    files = {f"{folder.name}/{path.name}" for folder in (real_clips_dir, nasty_dir) for path in folder.iterdir()}
    outcomes = harness.outcomes_of(real / "out")
    ignored = {each["path"] for each in json.loads((real / "out/ignored.json").read_text())}
    paths = [outcome["path"] for outcome in outcomes]
    assert len(paths) == len(set(paths))
    assert set(paths) | ignored == files
    assert not set(paths) & ignored
    assert ignored == {"clips/MANIFEST.tsv", "nasty/MANIFEST.tsv"}
    assert all(outcome["reason"] and outcome["detail"] for outcome in outcomes if outcome["state"] != State.DONE)
    assert not [outcome for outcome in outcomes if outcome["reason"] in ("crash", "hang", "memory", "exception")]


def test_five_codecs_of_one_scene_give_the_same_faces(real):
    """On the frames in which Dlib's own network finds the face in every encoding: it is some 75 px wide, under the 80
    that the network was made for, and from frame 23 on neither run of it finds it in the two coarser MPEG-4 files."""
    frame = pd.read_parquet(real / "out/examples")
    ids = {outcome["path"]: outcome["clip_id"] for outcome in harness.outcomes_of(real / "out")}
    names = ("mpf_h264_aac.mp4", "mpf_h265_aac.mp4", "mpf_mp4v_aac.mp4", "mpf_vp8_opus.webm", "mpf_xvid_aac.avi")
    frame = frame[frame.frame_index < 23].sort_values("frame_index")
    found = [frame[frame.clip_id == ids[f"clips/{name}"]] for name in names]
    for rows in found:
        assert list(rows.frame_index) == [3, 11, 19]
        for ours, theirs in zip(found[0].box, rows.box, strict=True):
            assert iou(Box(**ours), Box(**theirs)) > 0.8
