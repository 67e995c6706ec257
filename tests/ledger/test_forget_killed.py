"""jobs/forget.py is killed by SIGKILL at one point after another, on a disk and on S3; the same command ends it."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_forget import CLIPS, check_forgotten, made

REPOSITORY = Path(__file__).resolve().parents[2]
KILLED = REPOSITORY / "tests" / "support" / "killed_forget.py"
FLAGS = ("--path", "up/[ad]")

pytestmark = pytest.mark.chaos


def killed_and_ended(ledger, point):
    """Kill the command at a point, run it again to its end, and check the proof; False where it ended before."""
    first = [sys.executable, KILLED, str(point), ledger.storage.url, *FLAGS]
    killed = subprocess.run(first, check=False, capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    if killed.returncode == 0:
        return False
    assert killed.returncode == -9, killed.stderr
    again = [sys.executable, REPOSITORY / "jobs" / "forget.py", ledger.storage.url, *FLAGS]
    ended = subprocess.run(again, check=False, capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    assert ended.returncode == 0, ended.stderr
    assert "0 of them hold something of it" in ended.stdout + ended.stderr
    assert "trained on data that held it" in ended.stdout + ended.stderr
    check_forgotten(ledger, [CLIPS[0], CLIPS[3]], [CLIPS[1], CLIPS[2], CLIPS[4]])
    return True


@pytest.mark.lengthy
@pytest.mark.parametrize("point", [3, 14])
def test_a_kill_on_a_disk_is_mended_by_the_same_command(point, tmp_path):
    assert killed_and_ended(made(str(tmp_path / "out")), point)


@pytest.mark.lengthy
@pytest.mark.parametrize("point", [9])
def test_a_kill_on_s3_is_mended_by_the_same_command(point, s3):
    assert killed_and_ended(made(s3.url("out")), point)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_kills_at_every_point_are_mended_by_the_same_command(place, tmp_path, s3):
    top = str(tmp_path / "out") if place == "disk" else s3.url("out")
    script = REPOSITORY / "tests" / "support" / "forget_kills.py"
    done = subprocess.run([sys.executable, script, top], check=False, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-3000:]
    told = done.stdout.splitlines()[-1].split()
    print(f"\n{place}: {done.stdout}")
    assert int(told[told.index("kills,") - 1]) >= 20
