"""What a process gives up before it meets foreign bytes: in go limits, out comes what the system granted.

Resource limits everywhere; on Linux no capabilities, (x86-64, ARM64) no sockets, programs, processes of its own or of
others (`system_calls`), no writing to any file and no reading but of what is listed (Landlock, Linux 5.13). None of it
needs root or a namespace, so it holds in a container too, and nothing of it can be taken back by the process.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import resource
import signal
import site
import struct
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

from pipeline.sandbox.system_calls import GPU_DEVICES, allow_few_system_calls

# What the log of last words may hold. Python ignores SIGXFSZ, so a write beyond it fails with EFBIG.
MAX_FILE_BYTES = 2**20


# 8 are open in a child that waits.
MAX_OPEN_FILES = 256


# For what is mapped and never resident. Over 100 real and broken clips the address space of a child grew by at most
# 25 MiB more than its resident memory.
SPARE_ADDRESS_BYTES = 2**29


_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
_CAPABILITY_VERSION_3, _CAP_DAC_READ_SEARCH = 0x20080522, 2


_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446


# Execute, write, remove, make, refer; from its third version truncate, from its fifth the controls of devices
# (linux/landlock.h). Its sixth scopes Unix sockets without a name and signals.
_LANDLOCK_WRITES, _LANDLOCK_TRUNCATE, _LANDLOCK_IOCTL_DEV = 0b1111111110011, 1 << 14, 1 << 15


_LANDLOCK_WRITE_FILE, _LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR, _LANDLOCK_SCOPES = 1 << 1, 1 << 2, 1 << 3, 0b11
_VERSION_OF_TRUNCATE = 3


# What every process may write and read; GPUs are for a dlib that was built for them.
_DEVICES = ("null", "zero", "full", "random", "urandom", *GPU_DEVICES)


# Shared libraries and what they ask of the system, wherever distributions put them.
_SYSTEM_PATHS = (
    *("/usr", "/lib", "/lib64", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/ssl/openssl.cnf"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory"),
    *("/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage"),
)


def confine(readable: Collection[str] | None = None, *, landlock_version: int | None = None) -> dict[str, str]:
    """Give up what a decoder does not need; returns what the kernel granted, each in a word.

    `network` and `other_processes`: "none" or "allowed"; `file_writes`: "none", "truncation" or "allowed";
    `file_reads`: "listed" or "allowed"; `capabilities`: "none", "reading" (of any file) or their mask; `landlock`: its
    version here, "0" where there is none.

    readable: files and folders that may be read besides the libraries of this Python and of the system; None: any, as
    far as this user may, root too. landlock_version: use no rights of later versions. Call it while the process has
    one thread: others that run already keep their rights.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, MAX_FILE_BYTES)
    _lower(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    is_alone, version, capabilities = False, 0, "unknown"
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # Without it the next two are for root alone.
        version = _forbid_files(libc, readable, landlock_version)
        capabilities = _drop_capabilities(libc, kept=0 if readable is not None else 1 << _CAP_DAC_READ_SEARCH)
        is_alone = allow_few_system_calls(libc)
    words = {True: "none", False: "allowed"}
    writes = "none" if version >= _VERSION_OF_TRUNCATE or (version and is_alone) else "truncation"
    return {
        "network": words[is_alone],
        "other_processes": words[is_alone],
        "file_writes": writes if version else "allowed",
        "file_reads": "listed" if version and readable is not None else "allowed",
        "capabilities": capabilities,
        "landlock": str(version),
    }


def folder_to_read(path: str, *, name: str) -> str:
    """What to list so that the file can be read: the folder in which it is called `name`, else its own folder, or the
    file alone where that folder is the home of this user or lies above it. Links are followed."""
    real = os.path.realpath(path)
    above = os.path.realpath(path.removesuffix(name)) if name and path.endswith(f"/{name}") else ""
    for folder in (above, os.path.dirname(real)):
        if folder and is_below(real, folder) and not is_home_or_above(folder):
            return folder
    return real


def is_below(path: str, folder: str) -> bool:
    """Whether a path lies below a folder, by their names."""
    return path.startswith(f"{folder.rstrip('/')}/")


def is_home_or_above(folder: str) -> bool:
    """Whether a folder is the home folder or holds it."""
    return is_below(f"{os.path.realpath(os.path.expanduser('~'))}/", os.path.realpath(folder))


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


def _drop_capabilities(libc: ctypes.CDLL, *, kept: int) -> str:
    """Give up all capabilities but `kept` (a mask) for good, and say in a word which the kernel says are left."""
    for number in range(64):
        if not kept >> number & 1:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    held = _capabilities_held() & kept
    halves = held & 0xFFFFFFFF, held >> 32
    sets = struct.pack("=6I", *(word for half in halves for word in (half, half, 0)))  # effective, permitted, inherited
    libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), sets)
    left = _capabilities_held()
    return {0: "none", 1 << _CAP_DAC_READ_SEARCH: "reading"}.get(left, hex(left))


def _capabilities_held() -> int:
    with open("/proc/thread-self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["CapEff"], 16) | int(lines["CapPrm"], 16)


def _forbid_files(libc: ctypes.CDLL, readable: Collection[str] | None, latest: int | None) -> int:
    """Let opening for writing, making, removing and executing any file but `_DEVICES` fail with EACCES, and opening for
    reading where that is limited; what is open stays open. Where the system can, signals to others fail too.

    Returns the version whose rights are in force, 0 for none.
    """
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    version = version if latest is None else min(version, latest)
    if version < 1:
        return 0
    on_devices = _LANDLOCK_WRITE_FILE | _LANDLOCK_READ_FILE | (_LANDLOCK_IOCTL_DEV if version >= 5 else 0)
    reads = _LANDLOCK_READ_FILE | _LANDLOCK_READ_DIR
    handled = _LANDLOCK_WRITES | (on_devices & _LANDLOCK_IOCTL_DEV)
    handled |= _LANDLOCK_TRUNCATE if version >= _VERSION_OF_TRUNCATE else 0
    handled |= 0 if readable is None else reads
    scopes = struct.pack("=QQ", 0, _LANDLOCK_SCOPES) if version >= 6 else b""
    rights = struct.pack("=Q", handled) + scopes
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, rights, ctypes.c_size_t(len(rights)), 0)
    if rules < 0:
        return 0
    allowed = [(str(device), on_devices) for name in _DEVICES for device in Path("/dev").glob(name)]
    if readable is not None:
        allowed += [(path, reads) for path in {*_SYSTEM_PATHS, *_library_paths(), *readable}]
    for path, wanted in allowed:
        _allow(libc, rules, path, rights=wanted & handled)
    try:
        return version if libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0) == 0 else 0
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str, *, rights: int) -> None:
    """Add a rule for the path and all below it; nothing where it is not there."""
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not os.path.isdir(path):
        rights &= ~_LANDLOCK_READ_DIR
    libc.syscall(_LANDLOCK_ADD_RULE, rules, 1, struct.pack("=Qi", rights, opened), 0)
    if not path.startswith("/proc/"):  # There a path that nobody holds may be another one when it is opened again.
        os.close(opened)


def _library_paths() -> set[str]:
    """Where this Python and its libraries lie: its prefixes, folders of packages, and what is mapped already."""
    paths = {sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages(), site.getusersitepackages()}
    paths |= {path for path in sys.path if path.endswith(("site-packages", "dist-packages", "lib-dynload", ".zip"))}
    for module in list(sys.modules.values()):
        # Of packages alone: a module by itself may lie in a user's home, and it is loaded already.
        paths |= set(getattr(module, "__path__", None) or ()) if "." not in getattr(module, "__name__", ".") else set()
    with open("/proc/self/maps") as maps:
        mapped = re.findall(r" (/.*\.so[.\d]*)$", maps.read(), re.MULTILINE)
    paths |= {os.path.dirname(path) for path in mapped}
    paths |= set(filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)))
    return {path for path in paths if not is_home_or_above(path)}
