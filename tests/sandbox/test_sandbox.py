import json
import multiprocessing.forkserver
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from sandbox_work import build

from pipeline.sandbox.limits import SandboxError, SandboxLimits, SandboxStartError
from pipeline.sandbox.supervisor import Sandbox

LIMITS = SandboxLimits(timeout_seconds=60, memory_bytes=500 * 2**20, start_seconds=60)
IMPATIENT = SandboxLimits(timeout_seconds=2.0, memory_bytes=500 * 2**20, start_seconds=60)


@pytest.fixture
def sandbox():
    with Sandbox(build, {"greeting": "hi"}, limits=LIMITS) as sandbox:
        yield sandbox


def test_items_and_the_last_value_come_back(sandbox):
    items, pid = sandbox.run({"kind": "echo", "count": 3})
    assert items == ["hi 0", "hi 1", "hi 2"]
    assert pid == sandbox.pid != os.getpid()


def test_one_child_serves_many_tasks(sandbox):
    pids = {sandbox.run({"kind": "echo"})[1] for _ in range(5)}
    assert len(pids) == 1
    assert sandbox.num_starts == 1


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGBUS"])
def test_a_crash_names_its_signal_stage_and_last_words_and_the_next_task_runs(sandbox, name):
    with pytest.raises(SandboxError, match=rf"{name} in decode: about to go") as caught:
        sandbox.run({"kind": "signal", "name": name})
    reason = "killed" if name == "SIGKILL" else "crash"
    assert (caught.value.reason, caught.value.stage, caught.value.fatal) == (reason, "decode", True)
    assert sandbox.run({"kind": "echo"})[0] == ["hi 0"]
    assert sandbox.num_starts == 2


def test_an_exit_is_a_crash(sandbox):
    with pytest.raises(SandboxError, match="exit code 7"):
        sandbox.run({"kind": "exit"})


@pytest.mark.lengthy
def test_a_hang_is_killed_and_names_the_stage(sandbox):
    sandbox.limits = IMPATIENT
    sandbox.start()
    child = psutil.Process(sandbox.pid)
    with pytest.raises(SandboxError, match="no progress for 2 s in detect") as caught:
        sandbox.run({"kind": "hang"})
    assert (caught.value.reason, caught.value.stage) == ("hang", "detect")
    assert not child.is_running()


@pytest.mark.lengthy
def test_slow_progress_is_no_hang(sandbox):
    sandbox.limits = IMPATIENT
    assert sandbox.run({"kind": "slow", "seconds": 0.8})[0] == ["still here"] * 4


@pytest.mark.lengthy
def test_a_memory_hog_is_killed(sandbox):
    with pytest.raises(SandboxError, match="more than 500 MiB") as caught:
        sandbox.run({"kind": "memory"})
    assert caught.value.reason == "memory"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_an_allocation_past_the_limit_fails_at_once_and_is_named(sandbox):
    with pytest.raises(SandboxError, match="asked for more than 500 MiB: MemoryError") as caught:
        sandbox.run({"kind": "burst", "num_bytes": 8 * 2**30})
    assert (caught.value.reason, caught.value.stage, caught.value.fatal) == ("memory", "allocate", False)
    assert sandbox.peak_memory_bytes < 500 * 2**20
    assert sandbox.run({"kind": "burst", "num_bytes": 100 * 2**20})[1] == 100 * 2**20
    assert sandbox.num_starts == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_an_abort_for_want_of_memory_is_named_memory(sandbox):
    with pytest.raises(SandboxError, match=r"more than 500 MiB; .* SIGABRT in decode: .*bad_alloc") as caught:
        sandbox.run({"kind": "abort for memory", "num_bytes": 8 * 2**30})
    assert (caught.value.reason, caught.value.fatal) == ("memory", True)


def test_a_child_that_keeps_memory_is_recycled_between_tasks_and_no_task_is_lost(sandbox):
    pids = [sandbox.run({"kind": "leak", "num_bytes": 60 * 2**20})[1] for _ in range(12)]
    # How many depends on what a fresh child weighs, which the fork server's imports decide.
    assert 1 < len(set(pids)) == sandbox.num_starts == sandbox.num_recycled + 1 < 12
    assert sandbox.peak_memory_bytes < 500 * 2**20


@pytest.mark.lengthy
def test_a_child_that_keeps_nothing_is_not_recycled(sandbox):
    for _ in range(5):
        sandbox.run({"kind": "burst", "num_bytes": 300 * 2**20})
    assert (sandbox.num_starts, sandbox.num_recycled) == (1, 0)


@pytest.mark.lengthy
def test_a_child_that_spins_while_nobody_looks_ends_by_itself_as_a_hang(sandbox):
    sandbox.limits = SandboxLimits(timeout_seconds=0.5, start_seconds=60)
    running = sandbox.stream({"kind": "spin"})
    assert next(running) == "spins from here"
    _, alive = psutil.wait_procs([psutil.Process(sandbox.pid)], timeout=60)
    assert not alive
    with pytest.raises(SandboxError, match=r"no progress in detect for 1 s of CPU time") as caught:
        next(running)
    assert (caught.value.reason, caught.value.stage) == ("hang", "detect")


@pytest.mark.lengthy
@pytest.mark.parametrize("kind", ["spin", "sleep with the GIL"])
def test_a_spin_and_a_sleep_with_the_gil_held_are_hangs(sandbox, kind):
    sandbox.limits = IMPATIENT
    with pytest.raises(SandboxError, match="no progress for 2 s in detect") as caught:
        sandbox.run({"kind": kind})
    assert caught.value.reason == "hang"


def test_an_error_of_the_work_keeps_its_reason_and_its_child(sandbox):
    with pytest.raises(SandboxError, match=r"^an odd file$") as caught:
        sandbox.run({"kind": "odd"})
    assert (caught.value.reason, caught.value.fatal) == ("odd_file", False)
    with pytest.raises(SandboxError, match="KeyError: 'bug'") as caught:
        sandbox.run({"kind": "bug"})
    assert caught.value.reason == "exception"
    assert sandbox.num_starts == 1


def test_a_child_that_cannot_be_built_is_a_fault_of_the_installation():
    with Sandbox(build, {"fail": True}, limits=LIMITS) as sandbox, pytest.raises(SandboxStartError, match="no weights"):
        sandbox.run({"kind": "echo"})


def test_a_child_that_is_killed_while_it_starts_is_no_fault_of_the_installation():
    with Sandbox(build, {"killed": True}, limits=LIMITS) as sandbox, pytest.raises(SandboxError) as caught:
        sandbox.run({"kind": "echo"})
    assert (caught.value.reason, caught.value.stage) == ("killed", "start")


_READ_ENVIRONMENT = """
import json, sys; sys.path[:0] = [".", "tests/support"]
from sandbox_work import build
from pipeline.sandbox.supervisor import Sandbox
with Sandbox(build, {}) as sandbox:
    print(json.dumps(sandbox.run({"kind": "environment"})[1]))
"""


@pytest.mark.lengthy
def test_the_child_sees_no_credentials():
    """In a process of its own, because a fork server has the environment of the moment when it starts."""
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": "very secret"}
    seen, shown = json.loads(subprocess.check_output([sys.executable, "-c", _READ_ENVIRONMENT], env=environment))
    assert "PATH" in seen
    assert not {name for name in seen if name.startswith("AWS_")}
    assert "very secret" not in shown


@pytest.fixture(scope="module")
def confined():
    """A sandbox whose child has given up all that this system lets it give up."""
    with Sandbox(build, {}, limits=LIMITS, readable=[]) as sandbox:
        sandbox.start()
        yield sandbox


def test_the_child_says_what_it_gave_up(confined):
    told = dict(confined.confinement)
    assert told.pop("landlock").isdigit()
    assert set(told) == {"network", "other_processes", "file_writes", "file_reads", "capabilities"}
    assert set(told.values()) <= {"none", "listed", "allowed"}


def test_the_child_reaches_no_network(confined):
    if confined.confinement["network"] != "none":
        pytest.skip("this system has no seccomp")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        with pytest.raises(SandboxError, match="PermissionError"):
            confined.run({"kind": "connect", "address": server.getsockname()})
        with pytest.raises(BlockingIOError):
            server.accept()


def test_the_child_runs_no_program(confined, tmp_path):
    if confined.confinement["network"] != "none":
        pytest.skip("this system has no seccomp")
    with pytest.raises(SandboxError, match="PermissionError"):
        confined.run({"kind": "shell", "command": f"touch {tmp_path}/made"})
    assert not list(tmp_path.iterdir())


def test_the_child_writes_and_removes_no_file(confined, tmp_path):
    if confined.confinement["file_writes"] != "none":
        pytest.skip("this system has no Landlock")
    kept = tmp_path / "kept"
    kept.write_text("kept")
    for task in ({"kind": "write", "path": tmp_path / "new"}, {"kind": "write", "path": kept}, {"kind": "remove"}):
        with pytest.raises(SandboxError, match="PermissionError"):
            confined.run({"path": kept, **task})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]
    assert confined.run({"kind": "write", "path": os.devnull})[1] == 1


def test_the_child_reads_its_libraries_and_what_is_listed_and_no_more(confined, tmp_path, monkeypatch):
    if confined.confinement["file_reads"] != "listed":
        pytest.skip("this system has no Landlock")
    home, clips = tmp_path / "home", tmp_path / "clips"
    for folder in (home / ".aws", clips / "train"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("secret")
    monkeypatch.setenv("HOME", str(home))
    secrets = [home / ".aws" / "file", clips / "train" / "file", f"/proc/{os.getpid()}/environ", __file__]
    for task in (*({"kind": "read", "path": path} for path in secrets), {"kind": "list", "path": tmp_path}):
        with pytest.raises(SandboxError, match="PermissionError"):
            confined.run(task)
    assert len(confined.run({"kind": "read", "path": os.__file__})[1]) == 20
    confined.let_read(str(clips / "train" / "file"), name="train/file")
    assert confined.run({"kind": "read", "path": clips / "train" / "file"})[1] == b"secret"
    # A clip that lies in a home opens itself alone.
    (home / "clip").write_text("a clip")
    confined.let_read(str(home / "clip"), name="clip")
    assert confined.run({"kind": "read", "path": home / "clip"})[1] == b"a clip"
    for path in (home / ".aws" / "file", home / "other"):
        (home / "other").write_text("secret")
        with pytest.raises(SandboxError, match="PermissionError"):
            confined.run({"kind": "read", "path": path})


def test_clips_in_ever_other_folders_open_the_one_above_all(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folders = [tmp_path / "clips" / f"{number:02d}" for number in range(12)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "a.mp4").write_text("a clip")
    with Sandbox(build, {}, limits=LIMITS, readable=[]) as sandbox:
        for folder in folders[:-1]:
            sandbox.let_read(str(folder / "a.mp4"), name="a.mp4")
        sandbox.start()
        pid = sandbox.pid
        sandbox.let_read(str(folders[-1] / "a.mp4"), name="a.mp4")
        assert sandbox.run({"kind": "read", "path": folders[-1] / "a.mp4"})[1] == b"a clip"
        assert sandbox.pid == pid


def test_a_link_opens_what_it_leads_to(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.mp4").write_text("a clip")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").symlink_to(tmp_path / "elsewhere" / "a.mp4")
    with Sandbox(build, {}, limits=LIMITS, readable=[]) as sandbox:
        sandbox.let_read(str(tmp_path / "clips" / "a.mp4"), name="a.mp4")
        assert sandbox.run({"kind": "read", "path": tmp_path / "clips" / "a.mp4"})[1] == b"a clip"


def test_a_work_that_needs_other_files_is_built_where_all_can_be_read_by_that_child_alone(tmp_path):
    (tmp_path / "greeting").write_text("hello from a file")
    with Sandbox(build, {"greeting_path": str(tmp_path / "greeting")}, limits=LIMITS, readable=[]) as sandbox:
        assert sandbox.run({"kind": "echo"})[0] == ["hello from a file 0"]
        if sandbox.num_starts == 1:
            pytest.skip("this system has no Landlock")
        assert (sandbox.confinement["file_reads"], sandbox.num_starts) == ("allowed", 2)
        assert "PermissionError" in sandbox.fault_of_build
        sandbox.let_read(str(tmp_path / "greeting"))
        assert sandbox.run({"kind": "echo"})[0] == ["hello from a file 0"]
        assert (sandbox.confinement["file_reads"], sandbox.num_starts) == ("listed", 3)


@pytest.mark.lengthy
@pytest.mark.parametrize("fault", [{"fail": True}, {"sleeps": 60}, {"killed": True}])
def test_a_child_that_is_slow_or_fails_keeps_its_limits_of_reading(fault):
    limits = SandboxLimits(start_seconds=2 if "sleeps" in fault else 60)
    with Sandbox(build, fault, limits=limits, readable=[]) as sandbox:
        with pytest.raises((SandboxStartError, SandboxError)):
            sandbox.start()
        assert (sandbox.num_starts, sandbox.fault_of_build) == (1, None)
        sandbox._arguments, sandbox.limits = {}, LIMITS
        sandbox.start()
        assert sandbox.confinement["file_reads"] == ("listed" if int(sandbox.confinement["landlock"]) else "allowed")


def test_what_a_work_asks_for_comes_from_whoever_runs_it(sandbox):
    running = sandbox.stream({"kind": "ask", "count": 3}, answer=lambda number: bytes(1000 * number))
    with pytest.raises(StopIteration) as ended:
        next(running)
    assert ended.value.value == [0, 1000, 2000]
    with pytest.raises(SandboxError, match="it is not what was asked for"):
        sandbox.run({"kind": "ask", "count": 1})


def test_a_fault_of_the_answer_is_the_callers_and_the_next_task_runs(sandbox):
    def broken(_):
        raise OSError("the store went away")

    with pytest.raises(OSError, match="the store went away"):
        next(sandbox.stream({"kind": "ask", "count": 1}, answer=broken))
    assert sandbox.run({"kind": "echo"})[0] == ["hi 0"]


@pytest.mark.lengthy
def test_a_child_that_asks_and_does_not_read_is_a_hang():
    with Sandbox(build, {}, limits=IMPATIENT) as impatient:
        with pytest.raises(SandboxError, match="no progress for 2 s in decode") as caught:
            next(impatient.stream({"kind": "ask and read nothing"}, answer=lambda _: bytes(2**24)))
        assert caught.value.reason == "hang"


@pytest.mark.lengthy
def test_a_task_ends_when_its_time_is_over_however_often_it_tells(sandbox):
    with pytest.raises(SandboxError, match="its time was over in decode") as caught:
        sandbox.run({"kind": "slow", "seconds": 0.5}, seconds=1)
    assert (caught.value.reason, caught.value.fatal) == ("over_budget", True)
    assert sandbox.run({"kind": "echo"})[0] == ["hi 0"]


def test_what_a_child_says_for_people_is_short(sandbox):
    with pytest.raises(SandboxError, match=r"^x{200}$"):
        sandbox.run({"kind": "odd", "text": "x" * 5000})


def test_the_child_reaches_no_other_process_and_makes_none_but_threads(confined, tmp_path):
    if confined.confinement["other_processes"] != "none":
        pytest.skip("this system has no seccomp")
    for task in (
        {"kind": "kill", "pid": os.getpid()},
        {"kind": "kill", "pid": 0},
        {"kind": "limit", "pid": os.getpid()},
        {"kind": "fork"},
        {"kind": "chmod", "path": tmp_path},
    ):
        with pytest.raises(SandboxError, match="PermissionError"):
            confined.run(task)
    assert confined.run({"kind": "threads"})[1] == b"from a thread"


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("name", "reason", "told"),
    [
        ("pickle", "bad_answer", "cannot be read"),
        ("pickle inside", "bad_answer", "cannot be read"),
        ("oversize", "bad_answer", "it claims 20 and 4294967295 bytes"),
        ("garbage", "bad_answer", "it claims"),
        ("empty", "bad_answer", "it claims 0 and 0 bytes"),
        ("half", "hang", "no progress for 2 s in decode"),
    ],
)
def test_what_a_hostile_child_writes_is_never_run_and_ends_that_task(sandbox, tmp_path, name, reason, told):
    sandbox.limits = IMPATIENT
    with pytest.raises(SandboxError, match=told) as caught:
        sandbox.run({"kind": "answer raw", "how": {"name": name, "path": str(tmp_path / "made")}})
    assert (caught.value.reason, caught.value.fatal) == (reason, True)
    assert not list(tmp_path.iterdir())
    assert sandbox.run({"kind": "echo"})[0] == ["hi 0"]


@pytest.mark.parametrize(
    "message",
    [
        None,
        "item",
        ["ready", {}],
        ["stage", "\x1b[2J"],
        ["stage", "x" * 100],
        ["result", 1],
        ["result", 1, -1],
        ["result", 1, 2**60],
        ["error", "killed", "by nobody", 1],
        ["error", "odd", {}, 1],
        ["item", 1, 2],
    ],
)
def test_an_answer_of_another_form_ends_that_task(sandbox, message):
    with pytest.raises(SandboxError, match="it is not what was asked for") as caught:
        sandbox.run({"kind": "answer", "message": message})
    assert caught.value.reason == "bad_answer"


@pytest.mark.lengthy
def test_stages_without_end_and_items_beyond_the_memory_are_refused(sandbox):
    with pytest.raises(SandboxError, match="it is not what was asked for"):
        sandbox.run({"kind": "many stages"})
    assert len(sandbox.stage_seconds) <= 41
    sandbox.limits = SandboxLimits(memory_bytes=400 * 2**20, start_seconds=60)
    with pytest.raises(SandboxError, match="its results have more than 400 MiB") as caught:
        sandbox.run({"kind": "large items", "num_bytes": 20 * 2**20})
    assert (caught.value.reason, caught.value.fatal) == ("memory", True)
    assert sandbox.run({"kind": "echo"})[0] == ["hi 0"]


def test_what_a_child_says_comes_as_one_printable_line(sandbox):
    with pytest.raises(SandboxError, match=r"^an odd  \[2J file of   a$") as caught:
        sandbox.run({"kind": "odd", "text": "an odd \x1b[2J file\nof \udc80 a"})
    assert caught.value.reason == "odd_file"


def test_files_open_files_and_core_dumps_are_bounded(confined):
    with pytest.raises(SandboxError, match="File too large"):
        confined.run({"kind": "say much", "num_bytes": 2**20})
    with pytest.raises(SandboxError, match="Too many open files"):
        confined.run({"kind": "open many", "count": 300})
    assert confined.run({"kind": "core"})[1] == [0, 0]
    assert confined.run({"kind": "echo"})[0] == ["hello 0"]


def test_a_killed_supervisor_leaves_no_file_behind(tmp_path):
    script = (
        "import os, signal, sys; sys.path[:0] = ['.', 'tests/support']\n"
        "from sandbox_work import build\nfrom pipeline.sandbox import supervisor as sandbox\n"
        "sandbox.Connection = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sandbox.Sandbox(build, {}).start()"
    )
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not list(tmp_path.rglob("*.log"))


@pytest.mark.lengthy
def test_a_child_dies_with_a_killed_parent():
    script = (
        "import sys; sys.path[:0] = ['.', 'tests/support']\n"
        "from sandbox_work import build\nfrom pipeline.sandbox.supervisor import Sandbox\n"
        "sandbox = Sandbox(build, {}); sandbox.start(); print(sandbox.pid, flush=True); sandbox.run({'kind': 'hang'})"
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
        SandboxLimits(timeout_seconds=0)


@pytest.mark.lengthy
def test_a_fork_server_that_is_killed_while_it_starts_a_child_costs_one_try(sandbox):
    server = getattr(multiprocessing.forkserver, "_forkserver")  # noqa: B009 - no public name for it
    sandbox.run({"kind": "echo"})
    sandbox.restart()
    os.kill(server._forkserver_pid, signal.SIGSTOP)
    killing = threading.Timer(0.5, os.kill, args=(server._forkserver_pid, signal.SIGKILL))
    killing.start()
    with pytest.raises(SandboxError, match="the fork server ended") as caught:
        sandbox.run({"kind": "echo"})
    killing.join()
    assert (caught.value.reason, caught.value.stage, caught.value.fatal) == ("killed", "start", True)
    assert sandbox.run({"kind": "echo"})[0] == ["hi 0"]


@pytest.mark.lengthy
def test_a_fork_server_that_is_killed_while_its_child_works_says_nothing_of_the_task(sandbox):
    server = getattr(multiprocessing.forkserver, "_forkserver")  # noqa: B009 - no public name for it
    sandbox.run({"kind": "echo"})
    killing = threading.Timer(0.3, os.kill, args=(server._forkserver_pid, signal.SIGKILL))
    killing.start()
    with pytest.raises(SandboxError) as caught:
        sandbox.run({"kind": "hang"})
    killing.join()
    assert (caught.value.reason, caught.value.fatal) == ("killed", True)
    assert sandbox.run({"kind": "echo"})[0] == ["hi 0"]


def test_a_child_that_ends_itself_as_if_its_server_were_gone_has_crashed(sandbox):
    with pytest.raises(SandboxError) as caught:
        sandbox.run({"kind": "exit", "code": 255})
    assert caught.value.reason == "crash"
