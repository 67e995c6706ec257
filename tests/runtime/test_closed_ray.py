"""A local Ray is closed: nobody without the token of its run joins it, and no other user reads its files."""

import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.storage.scratch import ScratchFolder, sweep

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).resolve().parents[2]
OWNER = """
import os, sys, ray
from pipeline.runtime.cluster import start_ray, stop_ray
before = dict(os.environ)
start_ray()
session = ray._private.worker.global_worker.node.get_session_dir_path()
print(ray.get_runtime_context().gcs_address, session, flush=True)
sys.stdin.readline()
print(len(ray.nodes()), flush=True)
stop_ray()
changed = {name for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name) != before.get(name)}
print(sorted(changed), flush=True)
"""
INTRUDER = """
import sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print("joined")
print(ray.get(ray.remote(lambda: __import__("os").getuid()).remote(), timeout=30))
"""


def environment(**changes):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0", **changes}


@pytest.fixture(params=[{}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "of the user himself"}], ids=str)
def owner(request, tmp_path):
    """A process with a local Ray, whatever its environment says; its address, its session folder, and the process."""
    home = tmp_path / "home"
    home.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env=environment(HOME=str(home), **request.param),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    address, session = process.stdout.readline().split()
    yield process, address, Path(session), request.param
    process.kill()
    process.wait()
    assert not list(home.iterdir())  # No token is left in the home folder.


def started(*command, **changes):
    return subprocess.Popen(
        command, env=environment(**changes), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*command, **changes):
    process = started(*command, **changes)
    stdout, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def test_an_intruder_is_refused_and_reads_nothing_and_the_owners_token_opens(owner, tmp_path_factory):
    process, address, session, given = owner
    token = session.parents[1] / "token"
    assert token.exists() == (not given.get("RAY_AUTH_TOKEN"))  # One that the user set is respected.
    for path in (session.parents[1], *session.parents[1].glob("token")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody").pw_uid
        code = f"import os; os.setuid({nobody}); os.listdir({str(session)!r})"
        assert "PermissionError" in run(sys.executable, "-c", code).stderr
    ways = {
        "a driver": (sys.executable, "-c", INTRUDER, address),
        "a node": (str(Path(sys.executable).with_name("ray")), "start", f"--address={address}", "--block"),
    }
    tokens = {
        "without a token": {"RAY_AUTH_MODE": "disabled"},
        "with a token of his own": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a guess"},
    }
    # Each of them asks for 20 s: side by side.
    attempts = {
        f"{way} {how}": started(*command, RAY_TMPDIR=str(tmp_path_factory.mktemp("node")), **changes)
        for way, command in ways.items()
        for how, changes in tokens.items()
    }
    for name, attempt in attempts.items():
        stdout, stderr = attempt.communicate(timeout=120)
        assert attempt.returncode != 0, name
        assert "joined" not in stdout, name
        assert "Failed to connect" in stderr or "RAY_AUTH_TOKEN" in stderr, (name, stderr)
    known = given if given.get("RAY_AUTH_TOKEN") else {"RAY_AUTH_TOKEN_PATH": str(token)}
    joined = run(*ways["a driver"], **{**known, "RAY_AUTH_MODE": "token"})
    assert joined.stdout.split() == ["joined", str(os.getuid())], joined.stderr
    told, _ = process.communicate("\n", timeout=60)
    # One node: the intruder's never came. And the environment is again what it was.
    assert told.splitlines() == ["1", "[]"]
    assert not session.parents[1].exists()


def test_a_folder_of_a_killed_run_is_swept_and_that_of_a_living_one_is_not(tmp_path):
    alive = ScratchFolder("swept-", parent=str(tmp_path))
    code = (
        "import os; from pipeline.storage.scratch import ScratchFolder; "
        f"folder = ScratchFolder('swept-', parent={str(tmp_path)!r}); os.kill(os.getpid(), 9)"
    )
    assert run(sys.executable, "-c", code).returncode == -9
    (tmp_path / "swept-other").mkdir()  # Not one of ours: it has no lock.
    assert len(list(tmp_path.iterdir())) == 3
    sweep("swept-", parent=str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {alive.path.name, "swept-other"}
    alive.close()
    assert not alive.path.exists()
