import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from fence_work import build

from pipeline.fence import Fence, FenceError, FenceLimits, FenceStartError

LIMITS = FenceLimits(timeout_seconds=2.0, memory_bytes=500 * 2**20, start_seconds=60)


@pytest.fixture
def fence():
    with Fence(build, {"greeting": "hi"}, limits=LIMITS) as fence:
        yield fence


def test_items_and_the_last_value_come_back(fence):
    items, pid = fence.run({"kind": "echo", "count": 3})
    assert items == ["hi 0", "hi 1", "hi 2"]
    assert pid == fence.pid != os.getpid()


def test_one_child_serves_many_tasks(fence):
    pids = {fence.run({"kind": "echo"})[1] for _ in range(5)}
    assert len(pids) == 1
    assert fence.num_starts == 1


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGBUS"])
def test_a_crash_names_its_signal_stage_and_last_words_and_the_next_task_runs(fence, name):
    with pytest.raises(FenceError, match=rf"{name} in decode: about to go") as caught:
        fence.run({"kind": "signal", "name": name})
    reason = "killed" if name == "SIGKILL" else "crash"
    assert (caught.value.reason, caught.value.stage, caught.value.fatal) == (reason, "decode", True)
    assert fence.run({"kind": "echo"})[0] == ["hi 0"]
    assert fence.num_starts == 2


def test_an_exit_is_a_crash(fence):
    with pytest.raises(FenceError, match="exit code 7"):
        fence.run({"kind": "exit"})


def test_a_hang_is_killed_and_names_the_stage(fence):
    fence.start()
    child = psutil.Process(fence.pid)
    with pytest.raises(FenceError, match="no progress for 2 s in detect") as caught:
        fence.run({"kind": "hang"})
    assert (caught.value.reason, caught.value.stage) == ("hang", "detect")
    assert not child.is_running()


def test_slow_progress_is_no_hang(fence):
    assert fence.run({"kind": "slow", "seconds": 0.8})[0] == ["still here"] * 4


def test_a_memory_hog_is_killed(fence):
    with pytest.raises(FenceError, match="more than 500 MiB") as caught:
        fence.run({"kind": "memory"})
    assert caught.value.reason == "memory"


def test_an_error_of_the_work_keeps_its_reason_and_its_child(fence):
    with pytest.raises(FenceError, match=r"^an odd file$") as caught:
        fence.run({"kind": "odd"})
    assert (caught.value.reason, caught.value.fatal) == ("odd_file", False)
    with pytest.raises(FenceError, match="KeyError: 'bug'") as caught:
        fence.run({"kind": "bug"})
    assert caught.value.reason == "exception"
    assert fence.num_starts == 1


def test_a_child_that_cannot_be_built_is_a_fault_of_the_installation():
    with Fence(build, {"fail": True}, limits=LIMITS) as fence, pytest.raises(FenceStartError, match="no weights"):
        fence.run({"kind": "echo"})


def test_the_child_sees_no_credentials(fence, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    environment = fence.run({"kind": "environment"})[1]
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert "PATH" in environment


def test_a_child_dies_with_a_killed_parent():
    script = (
        "import sys; sys.path[:0] = ['.', 'tests']\n"
        "from fence_work import build\nfrom pipeline.fence import Fence\n"
        "fence = Fence(build, {}); fence.start(); print(fence.pid, flush=True); fence.run({'kind': 'hang'})"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.3)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="timeout_seconds is 0"):
        FenceLimits(timeout_seconds=0)
