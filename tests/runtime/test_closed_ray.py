"""A local Ray is closed: nobody without the token of its run joins it, and no other user reads its files."""

import os
import pwd
import stat
import subprocess
import sys
from dataclasses import dataclass
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


# What the owner's environment says, whatever it is: nothing, that Ray is open, a token of his own.
SETTINGS = {"nothing": {}, "open": {"RAY_AUTH_MODE": "disabled"}, "a token": {"RAY_AUTH_TOKEN": "of the user himself"}}
WAYS = {
    "a driver": lambda address: (sys.executable, "-c", INTRUDER, address),
    "a node": lambda address: (str(Path(sys.executable).with_name("ray")), "start", f"--address={address}", "--block"),
}
INTRUDERS = {
    "without a token": {"RAY_AUTH_MODE": "disabled"},
    "with a token of his own": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a guess"},
}


@dataclass(frozen=True)
class Owner:
    """A process with a local Ray, and those that try to join it."""

    process: subprocess.Popen
    home: Path
    address: str
    session: Path
    attempts: dict[str, subprocess.Popen]


def started(*command, stdin=None, **changes):
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment(**changes), stdin=stdin, stdout=pipe, stderr=pipe, text=True)


def run(*command, **changes):
    process = started(*command, **changes)
    stdout, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def owners(tmp_path_factory):
    """One for each of the settings. Each intruder asks for 20 s: all side by side."""
    processes = {}
    for name, settings in SETTINGS.items():
        home = tmp_path_factory.mktemp("home")
        processes[name] = home, started(sys.executable, "-c", OWNER, stdin=subprocess.PIPE, HOME=str(home), **settings)
    found = {}
    for name, (home, process) in processes.items():
        address, session = process.stdout.readline().split()
        attempts = {
            f"{way} {how}": started(*command(address), RAY_TMPDIR=str(tmp_path_factory.mktemp("node")), **changes)
            for way, command in WAYS.items()
            for how, changes in INTRUDERS.items()
        }
        found[name] = Owner(process, home, address, Path(session), attempts)
    yield found
    for process in [each for owner in found.values() for each in (owner.process, *owner.attempts.values())]:
        process.kill()
        process.wait()


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_intruder_is_refused_and_reads_nothing_and_the_owners_token_opens(owners, setting):
    owner, given = owners[setting], SETTINGS[setting]
    folder = owner.session.parents[1]
    token = folder / "token"
    assert token.exists() == (not given.get("RAY_AUTH_TOKEN"))  # One that the user set is respected.
    for path in (folder, *folder.glob("token")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody").pw_uid
        code = f"import os; os.setuid({nobody}); os.listdir({str(owner.session)!r})"
        assert "PermissionError" in run(sys.executable, "-c", code).stderr
    for name, attempt in owner.attempts.items():
        stdout, stderr = attempt.communicate(timeout=120)
        assert attempt.returncode != 0, name
        assert "joined" not in stdout, name
        assert "Failed to connect" in stderr or "RAY_AUTH_TOKEN" in stderr, (name, stderr)
    known = given if given.get("RAY_AUTH_TOKEN") else {"RAY_AUTH_TOKEN_PATH": str(token)}
    joined = run(*WAYS["a driver"](owner.address), **{**known, "RAY_AUTH_MODE": "token"})
    assert joined.stdout.split() == ["joined", str(os.getuid())], joined.stderr
    told, _ = owner.process.communicate("\n", timeout=60)
    # One node: the intruder's never came. And the environment is again what it was.
    assert told.splitlines() == ["1", "[]"]
    assert not folder.exists()
    assert not list(owner.home.iterdir())  # No token is left in the home folder.


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
