"""What a process gives up before it meets foreign bytes: in go limits, out comes what the system granted.

Resource limits everywhere; on Linux (x86-64, ARM64) also no sockets, no programs, no processes of its own or of others
(seccomp), no writing to any file and no reading but of what is listed (Landlock, Linux 5.13). None of it needs root or
a namespace, so it holds in a container too, and nothing of it can be taken back by the process.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import platform
import re
import resource
import signal
import site
import struct
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

# What the log of last words may hold. Python ignores SIGXFSZ, so a write beyond it fails with EFBIG.
MAX_FILE_BYTES = 2**20


# 8 are open in a child that waits.
MAX_OPEN_FILES = 256


# For what is mapped and never resident. Over 100 real and broken clips the address space of a child grew by at most
# 25 MiB more than its resident memory.
SPARE_ADDRESS_BYTES = 2**29


_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38


_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446


# Execute, write, remove, make, refer; from its third version truncate, from its fifth the controls of devices
# (linux/landlock.h). Its sixth scopes Unix sockets without a name and signals.
_LANDLOCK_WRITES, _LANDLOCK_TRUNCATE, _LANDLOCK_IOCTL_DEV = 0b1111111110011, 1 << 14, 1 << 15


_LANDLOCK_WRITE_FILE, _LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR, _LANDLOCK_SCOPES = 1 << 1, 1 << 2, 1 << 3, 0b11


# System call -> its number on x86-64 and on ARM64, None where it has none. What they do is to others, or is what no
# Landlock rule covers: who owns a file and may read it, its times, attributes and handles, mounts, the kernel itself.
_FORBIDDEN = {
    "socket": (41, 198), "execve": (59, 221), "execveat": (322, 281), "io_uring_setup": (425, 425),
    "fork": (57, None), "vfork": (58, None),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "kcmp": (312, 272), "perf_event_open": (298, 241), "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "open_by_handle_at": (304, 265), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "fsopen": (430, 430),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "reboot": (169, 142), "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "iopl": (172, None), "ioperm": (173, None),
}  # fmt: skip


# Allowed with the process's own id (prlimit64: or 0) as the first argument.
_OF_ITSELF = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}


_CLONE, _CLONE3, _CLONE_THREAD = (56, 220), (435, 435), 0x10000


# Machine -> audit architecture, and its place in the numbers above.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


# What every process may write and read; GPUs are for a dlib that was built for them.
_DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*", "kfd", "dri")


# Shared libraries and what they ask of the system, wherever distributions put them.
_SYSTEM_PATHS = (
    *("/usr", "/lib", "/lib64", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/ssl/openssl.cnf"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory"),
    *("/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage"),
)


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def confine(readable: Collection[str] | None = None) -> dict[str, str]:
    """Give up what a decoder does not need; returns `network`, `other_processes` and `file_writes`: "none" or
    "allowed", and `file_reads`: "listed" or "allowed".

    readable: files and folders that may be read besides the libraries of this Python and of the system; None: any.
    Call it while the process has one thread: others that run already keep their rights.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, MAX_FILE_BYTES)
    _lower(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    is_alone = is_without_files = False
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # Without it the next two are for root alone.
        is_without_files = _forbid_files(libc, readable)
        is_alone = _forbid_system_calls(libc)
    words = {True: "none", False: "allowed"}
    return {
        "network": words[is_alone],
        "other_processes": words[is_alone],
        "file_writes": words[is_without_files],
        "file_reads": "listed" if is_without_files and readable is not None else "allowed",
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


def _forbid_system_calls(libc: ctypes.CDLL) -> bool:
    """Let the calls of `_FORBIDDEN` fail with EPERM, and so what would reach another process or make one.

    `clone3`, whose arguments a filter cannot read, fails with ENOSYS: libraries then make their threads by `clone`.
    """
    if platform.machine() not in _MACHINES:
        return False
    architecture, place = _MACHINES[platform.machine()]
    load, equal, at_least, has_bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, deny, absent = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    number_at, architecture_at, first_at = 0, 4, 16
    # (code, jump if true, jump if false, operand): a jump is a number of instructions to pass over, or a verdict.
    body: list[tuple[int, int | str, int | str, int]] = [
        (load, 0, 0, architecture_at),
        (equal, 0, "deny", architecture),
        (load, 0, 0, number_at),
        (at_least, "deny", 0, 0x40000000),
        (equal, "absent", 0, _CLONE3[place]),
        *((equal, "deny", 0, numbers[place]) for numbers in _FORBIDDEN.values() if numbers[place] is not None),
        (equal, 0, 2, _CLONE[place]),
        (load, 0, 0, first_at),
        (has_bits, "allow", "deny", _CLONE_THREAD),
    ]
    for name, numbers in _OF_ITSELF.items():
        own = [(equal, "allow", 0, 0)] if name == "prlimit64" else []
        checks = [(load, 0, 0, first_at), *own, (equal, "allow", "deny", os.getpid())]
        body += [(equal, 0, len(checks), numbers[place]), *checks]
    verdicts = {"allow": allow, "deny": deny, "absent": absent}
    ends = {name: len(body) + at for at, name in enumerate(verdicts)}

    def offset(jump: int | str, at: int) -> int:
        return ends[jump] - at - 1 if isinstance(jump, str) else jump

    body += [(give, 0, 0, verdict) for verdict in verdicts.values()]
    code = b"".join(
        struct.pack("HBBI", op, offset(if_true, at), offset(if_false, at), operand)
        for at, (op, if_true, if_false, operand) in enumerate(body)
    )
    program = _Filter(len(code) // 8, code)
    return libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) == 0


def _forbid_files(libc: ctypes.CDLL, readable: Collection[str] | None) -> bool:
    """Let opening for writing, making, removing and executing any file but `_DEVICES` fail with EACCES, and opening for
    reading where that is limited; what is open stays open. Where the system can, signals to others fail too."""
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    on_devices = _LANDLOCK_WRITE_FILE | _LANDLOCK_READ_FILE | (_LANDLOCK_IOCTL_DEV if version >= 5 else 0)
    reads = _LANDLOCK_READ_FILE | _LANDLOCK_READ_DIR
    handled = _LANDLOCK_WRITES | (_LANDLOCK_TRUNCATE if version >= 3 else 0) | (on_devices & _LANDLOCK_IOCTL_DEV)
    handled |= 0 if readable is None else reads
    scopes = struct.pack("=QQ", 0, _LANDLOCK_SCOPES) if version >= 6 else b""
    rights = struct.pack("=Q", handled) + scopes
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, rights, ctypes.c_size_t(len(rights)), 0)
    if rules < 0:
        return False
    allowed = [(str(device), on_devices) for name in _DEVICES for device in Path("/dev").glob(name)]
    if readable is not None:
        allowed += [(path, reads) for path in {*_SYSTEM_PATHS, *_library_paths(), *readable}]
    for path, wanted in allowed:
        _allow(libc, rules, path, rights=wanted & handled)
    try:
        return libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0) == 0
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
