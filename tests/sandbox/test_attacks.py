"""What a child that was taken over can do to others: each attack is tried, on this kernel and as on older ones."""

import ctypes
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from sandbox_work import build

from pipeline.sandbox.limits import SandboxLimits
from pipeline.sandbox.supervisor import Sandbox

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the attacks are calls of Linux by number"
)

SCRIPT = Path(__file__).parents[1] / "support" / "attacks.py"
LANDLOCK = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) if sys.platform == "linux" else 0
# What only Landlock can tell from the opening of /dev/null.
BY_NAME = {"truncate as it is opened for writing", "open for writing", "make"}


@pytest.fixture
def victim():
    """A process of this user, and shared memory of this user."""
    libc = ctypes.CDLL(None)
    shm = libc.shmget(0, 4096, 0o1600)
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process, shm
        process.kill()
    libc.shmctl(shm, 0, None)


def tried(victim, tmp_path, version):
    process, shm = victim
    kept = tmp_path / "kept"
    kept.write_text("kept")
    arguments = map(str, (version, kept, process.pid, shm, tmp_path / "new"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    told = subprocess.run([sys.executable, SCRIPT, *arguments], env=environment, capture_output=True, check=True)
    given_up, succeeded = json.loads(told.stdout)
    return given_up, set(succeeded)


@pytest.mark.skipif(LANDLOCK < 1, reason="this system has no Landlock")
@pytest.mark.parametrize("version", [-1, 1, 2, 5])
def test_a_confined_child_does_nothing_to_others_also_without_later_rights(victim, tmp_path, version):
    given_up, succeeded = tried(victim, tmp_path, version)
    assert succeeded == set()
    assert victim[0].poll() is None
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"kept": "kept"}
    assert given_up == {
        "network": "none",
        "other_processes": "none",
        "file_writes": "none",
        "file_reads": "listed",
        "capabilities": "none",
        "landlock": str(LANDLOCK if version == -1 else min(version, LANDLOCK)),
    }


@pytest.mark.skipif(LANDLOCK < 1, reason="this system has no Landlock")
def test_the_child_of_a_sandbox_does_nothing_to_others(victim, tmp_path):
    process, shm = victim
    (tmp_path / "kept").write_text("kept")
    at = {"file": str(tmp_path / "kept"), "new": str(tmp_path / "new"), "pid": process.pid, "shm": shm}
    with Sandbox(build, {}, limits=SandboxLimits(start_seconds=60), readable=[str(tmp_path)]) as sandbox:
        assert sandbox.run({"kind": "attacks", "at": at})[1] == []
    assert process.poll() is None


def test_without_landlock_files_are_open_and_the_facts_say_so(victim, tmp_path):
    given_up, succeeded = tried(victim, tmp_path, 0)
    assert succeeded == BY_NAME
    assert victim[0].poll() is None
    assert (given_up["file_writes"], given_up["file_reads"], given_up["landlock"]) == ("allowed", "allowed", "0")
    assert (given_up["other_processes"], given_up["capabilities"]) == ("none", "none")


def test_the_attacks_are_real(victim, tmp_path):
    """Without any of it they succeed, so that a failure above is a defence and no fault of the attack."""
    _, succeeded = tried(victim, tmp_path, -2)
    always = {
        *("truncate", "truncate as it is opened for reading", "change its priority", "change its affinity"),
        *("change its scheduling", "kill as owner", "outlive its parent", "a socket", "a file without a name"),
        *("hold a lease on it", "kill as owner of a socket", "kill as owner by ioctl", "make", "change its mode"),
    }
    assert always <= succeeded
