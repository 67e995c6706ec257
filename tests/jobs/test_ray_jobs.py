"""`ray job submit` against a head and two nodes on this machine, as a user types it: every job, its log, its end."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import harness
import pytest

from pipeline.synthetic.corpus import make_corpus

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
RAY = str(Path(sys.executable).with_name("ray"))
DETECT = [
    *("--detector", "dlib-hog", "--frames-per-clip", "2"),
    *("--face-px", "64", "--context-px", "64", "--clips-per-shard", "3"),
]
# HOG at twice the size keeps an actor about a second at each clip: a job can be looked at, or stopped, in the middle.
DETECT_SLOWLY = [*DETECT, "--upsample", "1"]


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass(frozen=True)
class Cluster:
    dashboard: str
    metrics_ports: tuple[int, ...]

    def submit(self, *command, options=(), variables=None):
        """`ray job submit ... -- python jobs/...` from a clone; the finished process, with all that reached it.

        variables: of the submitter, in place of those of somebody who has the token."""
        line = [RAY, "job", "submit", "--address", self.dashboard, "--working-dir", ".", *options, "--", "python"]
        return subprocess.run(
            [*line, *map(str, command)],
            check=False,
            cwd=harness.REPOSITORY,
            env=environment() if variables is None else variables,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def job(self, *arguments):
        """`ray job ARGUMENTS`; what it printed."""
        line = [RAY, "job", arguments[0], "--address", self.dashboard, *arguments[1:]]
        return subprocess.run(line, check=True, env=environment(), capture_output=True, text=True, timeout=120).stdout


def environment():
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # A submitted job gets nothing from the submitter's environment: neither does it here.
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    return {**kept, "PATH": path, "RAY_metrics_report_interval_ms": "500"}


@pytest.fixture(scope="module")
def cluster():
    gcs, dashboard, *ports = free_ports(9)
    metrics = tuple(ports[:3])
    agents, client = ports[3:6], ports[6]
    common = ["--num-cpus=1", "--min-worker-port=0", "--max-worker-port=0", "--block"]
    nodes = []

    def start(number, *options):
        port = [f"--metrics-export-port={metrics[number]}", f"--dashboard-agent-listen-port={agents[number]}"]
        command = [RAY, "start", *options, *port, *common]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
        nodes.append(subprocess.Popen(command, env=environment(), **quiet))

    address = f"http://127.0.0.1:{dashboard}"

    def num_nodes():
        return json.loads(reads(f"{address}/api/v0/nodes") or "{}").get("data", {}).get("result", {}).get("total")

    try:
        head = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        start(0, "--head", "--dashboard-host=127.0.0.1", *head)
        wait_for(lambda: num_nodes() == 1)
        for number in (1, 2):
            start(number, f"--address=127.0.0.1:{gcs}")
            wait_for(lambda wanted=number + 1: num_nodes() == wanted)
        yield Cluster(address, metrics)
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            try:
                node.wait(timeout=60)
            except subprocess.TimeoutExpired:
                node.kill()


def reads(url):
    bearer = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=bearer), timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def wait_for(condition, *, seconds=240):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, clips_per_class=(3, 3, 0), seed=3)
    return folder


@pytest.fixture(scope="module")
def submitted(cluster, corpus, tmp_path_factory):
    """Preprocess, train, evaluate and score, each submitted; the outputs' folder and what reached the submitter."""
    top = tmp_path_factory.mktemp("submitted")
    shutil.copytree(corpus / "validation" / "Happy", top / "new")
    told = {}
    small = ("--epochs", "1", "--batch-size", "8", "--input-px", "32", "--cache-dir", top / "cache")
    for name, *arguments in (
        ("preprocess", "--input", corpus, "--output", top / "data", *DETECT),
        ("train", "--data", top / "data", "--output", top / "run", *small),
        (
            "evaluate",
            "--data",
            top / "data",
            "--checkpoint",
            top / "run",
            "--output",
            top / "evaluation",
            "--splits",
            "validation",
        ),
        ("score", "--input", top / "new", "--checkpoint", top / "run", "--output", top / "labels"),
        ("quarantine", "list", top / "data"),
    ):
        found = cluster.submit(f"jobs/{name}.py", *arguments)
        told[name] = found.stdout + found.stderr
        assert found.returncode == 0, told[name]
    return top, told


def test_who_has_no_token_submits_nothing(cluster, tmp_path):
    """With it the other tests submit. Without: as of a stranger, and as a user whose shell lacks the variable."""
    stranger = {name: value for name, value in environment().items() if not name.startswith("RAY_AUTH")}
    stranger["HOME"] = str(tmp_path)
    (tmp_path / "empty").mkdir()
    command = ("jobs/preprocess.py", "--input", tmp_path / "empty", "--output", tmp_path / "out")
    for variables in (stranger, {**stranger, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a guess"}):
        found = cluster.submit(*command, variables=variables)
        assert found.returncode != 0
        assert "AuthenticationError" in found.stderr, found.stderr
        assert not (tmp_path / "out").exists()


def test_every_job_runs_and_tells_its_submitter(submitted):
    top, told = submitted
    assert "Ray cluster at" in told["preprocess"]
    assert "on 3 actors" in told["preprocess"]
    for name in ("preprocess", "score"):
        assert "nothing is missing" in told[name]
    assert "epoch 1/1" in told["train"]
    assert "undecodable" in told["quarantine"]
    for name in ("data/_SUCCESS", "run/best.json", "evaluation/evaluation.json"):
        assert (top / name).exists(), name


@pytest.mark.slow
def test_a_submitted_job_writes_what_a_local_one_writes(submitted, corpus, tmp_path):
    top, _ = submitted
    command = ("--input", str(corpus), "--output", str(tmp_path / "out"), *DETECT)
    assert harness.finish_job("preprocess.py", *command, log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert harness.rows_of(tmp_path / "out") == harness.rows_of(top / "data")
    assert harness.outcomes_of(tmp_path / "out") == harness.outcomes_of(top / "data")


def test_the_metrics_endpoint_carries_what_the_dashboard_shows(cluster, corpus, submitted, tmp_path):
    dashboard = json.loads((harness.REPOSITORY / "cluster" / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    wanted = {name for expression in expressions for name in re.findall(r"ray_emotion_\w+", expression)}
    assert len(wanted) >= 7
    wanted -= {"ray_emotion_retries_total"}  # Absent until something was tried twice.
    del submitted  # One job at a time.
    command = ("jobs/preprocess.py", "--input", corpus, "--output", tmp_path / "out", *DETECT_SLOWLY)
    name = f"measured-{os.getpid()}"
    assert cluster.submit(*command, options=("--no-wait", "--submission-id", name)).returncode == 0
    seen, states = set(), set()

    def all_seen():  # An actor's figures go with it: look while it works.
        for port in cluster.metrics_ports:
            told = reads(f"http://127.0.0.1:{port}/metrics")
            seen.update(re.findall(r"^(ray_emotion_\w+)\{", told, re.MULTILINE))
            states.update(re.findall(r'^ray_emotion_clips_total\{.*\bstate="(\w+)"', told, re.MULTILINE))
        return wanted <= seen and {"done", "quarantined"} <= states

    wait_for(all_seen)
    cluster.job("stop", name)


def test_a_wrong_flag_reaches_the_submitter_as_one_line_and_a_failed_job(cluster):
    found = cluster.submit("jobs/preprocess.py", "--inptu", "x", "--output", "y")
    assert found.returncode == 1  # Ray's own code for a failed job, whatever the script's.
    said = found.stdout + found.stderr
    assert "did you mean --input?" in said
    assert "exit code 2" in said or "code 2" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_stopped_job_keeps_what_it_committed_and_goes_on(cluster, corpus, submitted, tmp_path):
    del submitted  # One job at a time.
    command = ("jobs/preprocess.py", "--input", corpus, "--output", tmp_path / "out", *DETECT_SLOWLY)
    name = f"stopped-{os.getpid()}"
    assert cluster.submit(*command, options=("--no-wait", "--submission-id", name)).returncode == 0
    wait_for(lambda: harness.entries_of(tmp_path / "out"))
    assert f"Job '{name}' was stopped" in cluster.job("stop", name)
    assert "interrupted; what was committed is kept" in cluster.job("logs", name)
    committed = harness.entries_of(tmp_path / "out")
    assert not (tmp_path / "out" / "lock.json").exists()
    found = cluster.submit(*command)
    assert found.returncode == 0, found.stdout
    assert committed.items() <= harness.entries_of(tmp_path / "out").items()
    command = ("--input", str(corpus), "--output", str(tmp_path / "local"), *DETECT_SLOWLY)
    assert harness.finish_job("preprocess.py", *command, log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert harness.rows_of(tmp_path / "out") == harness.rows_of(tmp_path / "local")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["audit_holds"]
