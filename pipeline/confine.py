"""What a process gives up before it meets foreign bytes: in go limits, out comes what the system granted.

Resource limits everywhere; on Linux (x86-64, ARM64) also no sockets and no programs (seccomp), and no writing to any
file (Landlock, Linux 5.13). None of it needs root or a namespace, so it holds in a container too, and nothing of it
can be taken back by the process.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable

# What the log of last words may hold. Python ignores SIGXFSZ, so a write beyond it fails with EFBIG.
MOST_FILE_BYTES = 2**20
# 8 are open in a child that waits.
MOST_OPEN_FILES = 256
# For what is mapped and never resident. Over 100 real and broken clips the address space of a child grew by at most
# 25 MiB more than its resident memory.
SPARE_ADDRESS_BYTES = 2**29

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
# Execute, write, remove, make, and (from its third version) truncate; reading stays (linux/landlock.h).
_LANDLOCK_WRITES, _LANDLOCK_TRUNCATE, _LANDLOCK_WRITE_FILE = 0b1111111110011, 1 << 14, 1 << 1
# machine -> (audit architecture, numbers of socket, execve, execveat, io_uring_setup).
_SYSTEM_CALLS = {
    "x86_64": (0xC000003E, (41, 59, 322, 425)),
    "aarch64": (0xC00000B7, (198, 221, 281, 425)),
}


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def confine() -> dict[str, str]:
    """Give up what a decoder does not need; returns `network` and `file_writes`: "none" or "allowed".

    Call it while the process has one thread: others that run already keep their rights.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, MOST_FILE_BYTES)
    _lower(resource.RLIMIT_NOFILE, MOST_OPEN_FILES)
    is_without_network = is_read_only = False
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # Without it the next two are for root alone.
        is_without_network = _forbid_sockets_and_programs(libc)
        is_read_only = _forbid_writing(libc)
    words = {True: "none", False: "allowed"}
    return {"network": words[is_without_network], "file_writes": words[is_read_only]}


def limit_memory(num_bytes: int) -> None:
    """Linux: allow this many bytes on top of what is mapped now; an allocation beyond them fails."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, mapped + num_bytes + SPARE_ADDRESS_BYTES)


def keep_environment(names: Iterable[str]) -> None:
    """Forget all other variables of the environment, on Linux also what /proc/self/environ shows of them."""
    kept = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.clear()
    os.environ.update(kept)  # Copied to new memory, so that nothing refers to the old any more.
    if sys.platform == "linux":
        with open("/proc/self/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        begin, end = int(fields[47]), int(fields[48])  # env_start and env_end (proc_pid_stat)
        ctypes.memset(begin, 0, end - begin)


def allow_cpu_seconds(seconds: float) -> None:
    """Let this process be killed by SIGXCPU after so much more CPU time, unless it is allowed more before."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def die_with_parent() -> None:
    """Linux: let this process be killed when the process that forked it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _forbid_sockets_and_programs(libc: ctypes.CDLL) -> bool:
    """Let `socket`, `execve`, `execveat` and `io_uring_setup` (which makes sockets too) fail with EPERM."""
    if platform.machine() not in _SYSTEM_CALLS:
        return False
    architecture, forbidden = _SYSTEM_CALLS[platform.machine()]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    deny, allow = 0x00050000 | 1, 0x7FFF0000
    # (code, jump if true, jump if false, operand); a jump counts from the next instruction to the last, which denies.
    body = [(load, 0, 0, 4), (equal, 0, None, architecture), (load, 0, 0, 0), (at_least, None, 0, 0x40000000)]
    body += [(equal, None, 0, number) for number in forbidden]
    last = len(body) + 1
    code = b"".join(
        struct.pack("HBBI", op, *(last - at - 1 if jump is None else jump for jump in jumps), operand)
        for at, (op, *jumps, operand) in enumerate([*body, (give, 0, 0, allow), (give, 0, 0, deny)])
    )
    program = _Filter(len(code) // 8, code)
    return libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) == 0


def _forbid_writing(libc: ctypes.CDLL) -> bool:
    """Let opening for writing, making, removing and executing any file fail with EACCES; what is open stays open.

    Devices may be written: libraries open /dev/null, and dlib, where it was built for them, GPUs.
    """
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    rights = ctypes.c_uint64(_LANDLOCK_WRITES | (_LANDLOCK_TRUNCATE if version >= 3 else 0))
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(rights), ctypes.c_size_t(8), 0)
    if rules < 0:
        return False
    devices = os.open("/dev", os.O_PATH)
    try:
        beneath = struct.pack("=Qi", _LANDLOCK_WRITE_FILE, devices)
        libc.syscall(_LANDLOCK_ADD_RULE, rules, 1, beneath, 0)
        return libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0) == 0
    finally:
        os.close(devices)
        os.close(rules)
