"""Ctrl-C ends a job in one line with code 130, at whatever moment it comes."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HEAD = "import builtins, os, signal, sys, time\nsys.path[:0] = ['jobs', 'tests/support', '.']\n"


def run(code):
    """Exit code and stderr of a Python that has a process group of its own."""
    found = subprocess.run(
        [sys.executable, "-c", HEAD + code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        start_new_session=True,
    )
    return found.returncode, found.stderr


@pytest.mark.parametrize("loaded", ["jsonargparse", "argparse", "importlib.metadata", "traceback"])
def test_while_the_command_line_itself_is_loaded(loaded):
    code, told = run(
        "real = builtins.__import__\n"
        "def interrupted(name, *rest, **named):\n"
        f"    if name in ({loaded!r}, {loaded.rpartition('.')[0]!r}):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *rest, **named)\n"
        f"sys.modules.pop({loaded!r}, None)\n"
        "builtins.__import__ = interrupted\n"
        "import command_line\n"
    )
    assert (code, told) == (130, "-c: interrupted before it began\n")


@pytest.mark.parametrize("place", ["a destructor", "a callback of the garbage collector", "plain code"])
def test_where_python_itself_would_drop_it(place):
    code, told = run(
        "import gc\n"
        "from dataclasses import dataclass\n"
        "from command_line import run_job\n"
        "@dataclass\n"
        "class Config:\n"
        "    pass\n"
        "class Fragile:\n"
        "    def __del__(self):\n"
        "        interrupt()\n"
        "def interrupt(*_):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    sum(range(100000))\n"
        "def main(config):\n"
        f"    place = {place!r}\n"
        "    if place == 'a destructor':\n"
        "        Fragile()\n"
        "    elif place == 'plain code':\n"
        "        interrupt()\n"
        "    else:\n"
        "        gc.callbacks.append(interrupt)\n"
        "        gc.collect()\n"
        "        gc.callbacks.clear()\n"
        "    time.sleep(50)\n"
        "run_job(Config, main, description='sleeps')\n"
    )
    assert code == 130
    assert told == "-c: interrupted; what was committed is kept. To resume, run the same command again\n"


def test_a_fork_server_that_starts_tells_nothing_of_it():
    code, told = run(
        "import threading\n"
        "from pipeline.sandbox.supervisor import Sandbox\n"
        "from pipeline.sandbox.limits import SandboxLimits\n"
        "from sandbox_work import build\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"  # Of this process alone: what it starts has Python's own.
        "over = threading.Event()\n"
        "def interrupt():\n"
        "    while not over.wait(0.005):\n"
        "        os.killpg(0, signal.SIGINT)\n"
        "thread = threading.Thread(target=interrupt, daemon=True)\n"
        "thread.start()\n"
        "with Sandbox(build, {}, limits=SandboxLimits(), preload=('pyarrow',)) as sandbox:\n"
        "    sandbox.start()\n"
        "over.set()\n"
        "thread.join()\n"
    )
    assert (code, told) == (0, "")
