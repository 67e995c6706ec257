"""The system calls that a child may still make: an allow-list, enforced by the kernel (seccomp).

What is not listed fails, also what a later kernel adds. Numbers are those of x86-64 and ARM64. Built here and not by
libseccomp: its wrapper for Python has had no release since 2020, and it would be one more library of the system.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from pathlib import Path

# System call -> its number on x86-64 and on ARM64, None where it has none. Each acts on this process alone, or on what
# it has open; which files may be opened, and how, is Landlock's to say.
_ALLOWED = {
    # files that are open, names that are read
    "read": (0, 63), "pread64": (17, 67), "readv": (19, 65), "preadv": (295, 69), "preadv2": (327, 286),
    "write": (1, 64), "pwrite64": (18, 68), "writev": (20, 66), "pwritev": (296, 70), "sendfile": (40, 71),
    "close": (3, 57), "close_range": (436, 436), "lseek": (8, 62), "ftruncate": (77, 46), "fadvise64": (221, 223),
    "fsync": (74, 82), "fdatasync": (75, 83), "fstat": (5, 80), "stat": (4, None), "lstat": (6, None),
    "newfstatat": (262, 79), "statx": (332, 291), "statfs": (137, 43), "fstatfs": (138, 44),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "umask": (95, 166),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "eventfd2": (290, 19),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    # memory
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "brk": (12, 214),
    "madvise": (28, 233), "mincore": (27, 232), "msync": (26, 227), "mlock": (149, 228), "munlock": (150, 229),
    "pkey_mprotect": (329, 288), "pkey_alloc": (330, 289), "pkey_free": (331, 290), "get_mempolicy": (239, 236),
    "membarrier": (324, 283),
    # threads of this process, their signals and their end
    "futex": (202, 98), "futex_waitv": (449, 449), "set_robust_list": (273, 99), "get_robust_list": (274, 100),
    "set_tid_address": (218, 96), "rseq": (334, 293), "gettid": (186, 178), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "sched_getscheduler": (145, 120), "sched_getparam": (143, 121),
    "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126), "getcpu": (309, 168),
    "arch_prctl": (158, None), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "pause": (34, None),
    "sigaltstack": (131, 132), "restart_syscall": (219, 128), "exit": (60, 93), "exit_group": (231, 94),
    # time
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getitimer": (36, 102),
    "setitimer": (38, 103), "alarm": (37, None), "timerfd_create": (283, 85), "timerfd_settime": (286, 86),
    "timerfd_gettime": (287, 87),
    # what this process and this system are
    "getpid": (39, 172), "getppid": (110, 173), "getpgid": (121, 155), "getpgrp": (111, None), "getsid": (124, 156),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158),
    "getresuid": (118, 148), "getresgid": (120, 150), "getrlimit": (97, 163), "setrlimit": (160, 164),
    "getrusage": (98, 165), "getpriority": (140, 141), "capget": (125, 90), "uname": (63, 160),
    "sysinfo": (99, 179), "getrandom": (318, 278),
}  # fmt: skip


# Calls of which one argument decides: its place, and the values with which it is allowed. What is left out reaches
# others: SIGIO to any process of this user (F_SETOWN, F_SETSIG), a lease that makes whoever opens the file wait
# (F_SETLEASE), the end of its death with its parent (PR_SET_PDEATHSIG), the priority of another process.
_F_DUPFD_CLOEXEC, _F_GETPIPE_SZ, _F_GET_SEALS = 1030, 1032, 1034
_PR_SET_NAME, _PR_GET_NAME, _PR_GET_DUMPABLE, _PR_CAPBSET_READ, _PR_SET_VMA = 15, 16, 3, 23, 0x53564D41
_TCGETS, _TIOCGWINSZ, _FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX = 0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451
_BY_ARGUMENT = {
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, _F_DUPFD_CLOEXEC, _F_GETPIPE_SZ, _F_GET_SEALS)),
    "prctl": ((157, 167), 0, (_PR_SET_NAME, _PR_GET_NAME, _PR_GET_DUMPABLE, _PR_CAPBSET_READ, _PR_SET_VMA)),
    "ioctl": ((16, 29), 1, (_TCGETS, _TIOCGWINSZ, _FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX)),
    "sched_setaffinity": ((203, 122), 0, (0,)),
}


# With the process's own id (prlimit64: or 0) as the first argument.
_OF_ITSELF = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}


# Place of the flags. Landlock looks at how a file is open, and until its third version not at a truncation: one that
# is open for reading, or for neither (3), could be emptied.
_OPENS = {"open": ((2, None), 1), "openat": ((257, 56), 2)}


_CLONE, _CLONE3, _CLONE_THREAD = (56, 220), (435, 435), 0x10000


# Of NVIDIA's (F, and plain numbers), AMD's (K) and all others' (d) GPUs: which byte of the request names the driver.
_GPU_REQUESTS = (ord("F"), ord("K"), ord("d"), 0)
GPU_DEVICES = ("nvidia*", "kfd", "dri")


# Numbers from here on are of calls that came later than this list (Linux 6.4); libraries know how to do without.
_FIRST_UNKNOWN = 452


# Machine -> audit architecture, and its place in the numbers above.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _AND, _GIVE = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _DENY, _ABSENT = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


_Instruction = tuple[int, int, int, int]  # code, instructions to pass over if true and if false, operand


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def allow_few_system_calls(libc: ctypes.CDLL) -> bool:
    """Let all other calls of this thread and its children fail with EPERM, for good; whether this system could.

    Those that are newer than the list, and `clone3`, whose arguments a filter cannot read, fail with ENOSYS: libraries
    then do without, and make their threads by `clone`. Privileges cannot have been gained after this
    (`PR_SET_NO_NEW_PRIVS` is set).
    """
    if platform.machine() not in _MACHINES:
        return False
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _program(*_MACHINES[platform.machine()]))
    program = _Filter(len(code) // 8, code)
    return libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) == 0


def _program(architecture: int, place: int) -> list[_Instruction]:
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture),
        _verdict(_DENY),
        (_LOAD, 0, 0, _NUMBER_AT),
        *_unless(_EQUAL, _CLONE3[place], then=_ABSENT),
        *_unless(_AT_LEAST, _FIRST_UNKNOWN, then=_ABSENT),
    ]
    for numbers in _ALLOWED.values():
        if (number := numbers[place]) is not None:
            program += _unless(_EQUAL, number, then=_ALLOW)
    by_argument: list[tuple[int | None, list[_Instruction]]] = [
        (numbers[place], [*_argument(at), *_any_of(values)]) for numbers, at, values in _BY_ARGUMENT.values()
    ]
    by_argument += [
        (numbers[place], [*_argument(0), *_any_of((os.getpid(), *([0] if name == "prlimit64" else [])))])
        for name, numbers in _OF_ITSELF.items()
    ]
    by_argument += [(numbers[place], _open_checks(at)) for numbers, at in _OPENS.values()]
    by_argument += [(_CLONE[place], [*_argument(0), *_unless(_HAS_BITS, _CLONE_THREAD, then=_ALLOW), _verdict(_DENY)])]
    if any(next(Path("/dev").glob(name), None) for name in GPU_DEVICES):
        request = _BY_ARGUMENT["ioctl"]
        checks = [*_argument(request[1]), *_any_of(request[2])[:-1], (_AND, 0, 0, 0xFF00)]
        checks += _any_of([letter << 8 for letter in _GPU_REQUESTS])
        by_argument.insert(0, (request[0][place], checks))
    for number, checks in by_argument:
        if number is not None:
            program += [(_EQUAL, 0, len(checks), number), *checks]
    return [*program, _verdict(_DENY)]


def _verdict(what: int) -> _Instruction:
    return _GIVE, 0, 0, what


def _unless(test: int, operand: int, *, then: int) -> list[_Instruction]:
    """The verdict where the test holds, else what follows."""
    return [(test, 0, 1, operand), _verdict(then)]


def _any_of(values: tuple[int, ...] | list[int]) -> list[_Instruction]:
    """Allow what is one of the values, deny all else."""
    return [step for value in values for step in _unless(_EQUAL, value, then=_ALLOW)] + [_verdict(_DENY)]


def _argument(place: int) -> list[_Instruction]:
    """Load the lower half of an argument: all that the kernel reads of those that are looked at here."""
    return [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * place)]


def _open_checks(place: int) -> list[_Instruction]:
    checks = [*_argument(place), (_AND, 0, 0, os.O_TRUNC | os.O_ACCMODE)]
    for flags in (os.O_TRUNC, os.O_ACCMODE, os.O_TRUNC | os.O_ACCMODE):
        checks += _unless(_EQUAL, flags, then=_DENY)
    return [*checks, _verdict(_ALLOW)]
