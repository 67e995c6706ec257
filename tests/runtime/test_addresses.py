"""RAY_ADDRESS that is wrong, dead or silent ends a job in one line with code 2, and holds no lock."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).resolve().parents[2]
KEPT = REPOSITORY / "tests" / "kept" / "0.1.0"


def job_command(tmp_path):
    flags = [
        "--detector",
        "dlib-hog",
        "--page=false",
        "--input",
        str(KEPT / "uploads"),
        "--output",
        str(tmp_path / "out"),
    ]
    return [sys.executable, REPOSITORY / "jobs" / "preprocess.py", *flags]


def job(tmp_path, address):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": address, "RAY_TMPDIR": str(tmp_path)}
    return subprocess.Popen(
        job_command(tmp_path), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def dead_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:8265", "the address for `ray job submit --address`"),
        ("127.0.0.1:DEAD", "nothing answers there"),
        ("ray://127.0.0.1:DEAD", "nothing answers there"),
        ("auto", "no Ray runs on this machine"),
        ("headnode", "it is not of the form HOST:PORT"),
        ("headnode.invalid:6379", "nothing answers there"),
        ("127.0.0.1:", "it is not of the form HOST:PORT"),
        ("127.0.0.1:99999", "nothing answers there"),
    ],
)
def test_a_wrong_or_dead_address_is_one_line(tmp_path, address, told, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    address = address.replace("DEAD", str(dead_port()))
    process = job(tmp_path, address)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2, said
    last = said.strip().splitlines()[-1]
    assert f"RAY_ADDRESS is '{address}'" in last
    assert told in last
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "lock.json").exists()


def test_a_signal_ends_a_job_that_asks_a_silent_head(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = job(tmp_path, f"127.0.0.1:{silent.getsockname()[1]}")
        silent.accept()[0].close()  # It asks.
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
        waited = time.monotonic() - began
    assert process.returncode == 130, said
    assert "interrupted" in said.strip().splitlines()[-1]
    assert waited < 10  # Not the 40 s for which Ray's own client waits.


STARTS = """
import os, sys
from pipeline.runtime.cluster import quiet_unless_it_fails
try:
    with quiet_unless_it_fails():
        os.write(2, b"Set ray log level from environment variable RAY_BACKEND_LOG_LEVEL to 4\\n")
        os.write(2, b"the core warns\\n")
        print("the library warns", file=sys.stderr)
        if sys.argv[1] == "fail":
            raise RuntimeError
except RuntimeError:
    pass
print("afterwards", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("how", "told"), [("start", "afterwards\n"), ("fail", "the core warns\nthe library warns\nafterwards\n")]
)
def test_what_ray_says_while_it_starts_is_told_where_it_fails(how, told):
    found = subprocess.run(
        [sys.executable, "-c", STARTS, how],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stderr == told


@pytest.mark.slow
def test_a_ray_that_cannot_start_says_why(tmp_path):
    """The limit of open files is too low for it, of which its library warns and its core does not."""
    found = subprocess.run(
        ["bash", "-c", 'ulimit -n 40; exec "$@"', "bash", *job_command(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2, found.stderr
    warnings, _, last = found.stderr.strip().rpartition("\n")
    assert "File descriptor limit 40 is too low" in warnings
    assert "Ray does not start on this machine; see its lines above" in last
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "out" / "lock.json").exists()
