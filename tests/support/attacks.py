"""What a decoder that was taken over might try, by name.

`python attacks.py VERSION FILE PID SHM NEWFILE` confines itself with no rights of Landlock after this version (-1: all
that there are; -2: not at all), tries each, and prints as JSON what it gave up and what succeeded.
"""
# ruff: noqa: ARG005

import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
F_SETSIG = 10


def call(number, *arguments):
    values = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    if libc.syscall(ctypes.c_long(number), *values) == -1:
        raise OSError(ctypes.get_errno(), "the call failed")


def open_and_close(path, flags):
    os.close(os.open(path, flags))


def send_by_owner(pid, ours, *, by):
    """SIGIO, or by F_SETSIG any signal, to another process when this pipe has news."""
    if by == "ioctl":
        fcntl.ioctl(ours, 0x8901, struct.pack("i", pid))  # FIOSETOWN
    else:
        fcntl.fcntl(ours, fcntl.F_SETOWN, pid)
        fcntl.fcntl(ours, F_SETSIG, signal.SIGTERM)


def lease(path):
    """Whoever opens it then waits for 45 s."""
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)


def gain(*, capability_set):
    """Whether a capability is left, and no error says so."""
    with open("/proc/thread-self/status") as file:
        held = int(dict(line.split(":", 1) for line in file)[capability_set], 16)
    if not held:
        raise PermissionError(errno.EPERM, "none")


ATTACKS = {
    "truncate": lambda at: os.truncate(at["file"], 0),
    "truncate as it is opened for reading": lambda at: open_and_close(at["file"], os.O_RDONLY | os.O_TRUNC),
    "truncate as it is opened for nothing": lambda at: open_and_close(at["file"], os.O_TRUNC | 3),
    "truncate as it is opened for writing": lambda at: open_and_close(at["file"], os.O_WRONLY | os.O_TRUNC),
    "open for writing": lambda at: open_and_close(at["file"], os.O_WRONLY),
    "make": lambda at: open_and_close(at["new"], os.O_WRONLY | os.O_CREAT),
    "change its mode": lambda at: os.chmod(at["file"], 0o777),
    "change its times": lambda at: os.utime(at["file"]),
    "set an attribute": lambda at: os.setxattr(at["file"], "user.mark", b"x"),
    "hold a lease on it": lambda at: lease(at["file"]),
    "link": lambda at: os.link(at["file"], f"{at['new']} link"),
    "rename": lambda at: os.rename(at["file"], at["new"]),
    "remove": lambda at: os.remove(at["file"]),
    "kill": lambda at: os.kill(at["pid"], signal.SIGTERM),
    "kill by thread": lambda at: call(234, at["pid"], at["pid"], signal.SIGTERM),
    "kill by pidfd": lambda at: os.pidfd_open(at["pid"]),
    "kill as owner": lambda at: send_by_owner(at["pid"], at["pipe"], by="fcntl"),
    "kill as owner of a socket": lambda at: send_by_owner(at["pid"], at["socket"], by="fcntl"),
    "kill as owner by ioctl": lambda at: send_by_owner(at["pid"], at["socket"], by="ioctl"),
    "trace": lambda at: call(101, 16, at["pid"], 0, 0),
    "read its memory": lambda at: call(310, at["pid"], 0, 0, 0, 0, 0),
    "change its priority": lambda at: os.setpriority(os.PRIO_PROCESS, at["pid"], 19),
    "change its priority for disks": lambda at: call(251, 1, at["pid"], 3 << 13),
    "change its affinity": lambda at: os.sched_setaffinity(at["pid"], {0}),
    "change its scheduling": lambda at: os.sched_setscheduler(at["pid"], os.SCHED_BATCH, os.sched_param(0)),
    "change its limits": lambda at: call(302, at["pid"], 7, 0, 0),
    "move its memory": lambda at: call(256, at["pid"], 0, 0, 0),
    "remove its shared memory": lambda at: call(31, at["shm"], 0, 0),
    "attach its shared memory": lambda at: call(30, at["shm"], 0, 0),
    "make a message queue": lambda at: call(240, b"/queue", os.O_CREAT, 0o600, None),
    "outlive its parent": lambda at: call(157, 1, 0, 0, 0, 0),
    "leave its session": lambda at: os.setsid(),
    "fork": lambda at: os.fork() or os._exit(0),
    "run a program": lambda at: call(59, b"/bin/true", None, None),
    "a socket": lambda at: socket.socket().close(),
    "a user namespace": lambda at: call(272, 0x10000000),
    "io_uring": lambda at: call(425, 1, ctypes.create_string_buffer(120)),
    "bpf": lambda at: call(321, 0, None, 0),
    "a key": lambda at: call(250, 0, -3, 0, 0, 0),
    "a file without a name": lambda at: os.memfd_create("x"),
    "the 32-bit calls": lambda at: call(0x40000000 + 39),
    "an effective capability": lambda at: gain(capability_set="CapEff"),
    "a permitted capability": lambda at: gain(capability_set="CapPrm"),
}
if os.geteuid() == 0:  # Others cannot lower it, and gain nothing by it.
    ATTACKS["a bounding capability"] = lambda at: gain(capability_set="CapBnd")


def succeeded(at, *, left_out=()):
    """Names of the attacks that did not fail."""
    found = []
    for name, attack in ATTACKS.items():
        if name in left_out:
            continue
        try:
            attack(at)
        except OSError:
            continue
        found.append(name)
    return found


if __name__ == "__main__":
    version, file, pid, shm, new = sys.argv[1:]
    # Made before anything is given up, as the pipe of a child is.
    pair = socket.socketpair()
    at = {"file": file, "new": new, "pid": int(pid), "shm": int(shm), "pipe": os.pipe()[0], "socket": pair[0].fileno()}
    given_up = {}
    if version != "-2":
        from pipeline.sandbox.confinement import confine

        readable = [os.path.dirname(file)]
        given_up = confine(readable, landlock_version=None if version == "-1" else int(version))
    # Where it succeeds nobody is left to tell.
    left_out = ("run a program",) if not given_up else ()
    print(json.dumps([given_up, succeeded(at, left_out=left_out)]))
