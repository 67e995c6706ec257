"""Work for the fence's tests: each task says what the child shall do."""

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import time


class OddFile(Exception):
    reason = "odd_file"


def build(*, greeting="hello", fail=False, killed=False):
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
    if fail:
        raise RuntimeError("no weights")
    leaked = []

    def work(task, stage):
        stage("decode")
        kind = task["kind"]
        if kind == "echo":
            for number in range(task.get("count", 1)):
                yield f"{greeting} {number}"
            return os.getpid()
        if kind == "signal":
            os.write(2, b"about to go\n")
            os.kill(os.getpid(), getattr(signal, task["name"]))
        if kind == "exit":
            os._exit(7)
        if kind == "hang":
            stage("detect")
            time.sleep(3600)
        if kind == "slow":
            for _ in range(4):
                time.sleep(task["seconds"])
                yield "still here"
            return None
        if kind == "memory":
            hoard = []
            while True:
                hoard.append(b"x" * 2**25)
                time.sleep(0.02)
        if kind == "burst":
            stage("allocate")
            return len(bytearray(task["num_bytes"]))
        if kind == "abort for memory":
            operator_new = ctypes.CDLL("libstdc++.so.6")._Znwm
            operator_new(ctypes.c_size_t(task["num_bytes"]))
        if kind == "leak":
            leaked.append(b"x" * task["num_bytes"])
            return os.getpid()
        if kind == "spin":
            stage("detect")
            yield "spins from here"
            while True:
                pass
        if kind == "sleep with the GIL":
            stage("detect")
            ctypes.PyDLL(None).sleep(3600)
        if kind == "connect":
            with socket.create_connection(task["address"], timeout=5) as connection:
                return connection.send(b"stolen")
        if kind == "shell":
            return subprocess.run(["/bin/sh", "-c", task["command"]], check=True).returncode
        if kind == "write":
            with open(task["path"], "wb") as file:
                return file.write(b"x")
        if kind == "remove":
            return os.remove(task["path"])
        if kind == "say much":
            return os.write(2, b"x" * task["num_bytes"]) + os.write(2, b"x")
        if kind == "open many":
            return len([open("/dev/null") for _ in range(task["count"])])
        if kind == "core":
            return resource.getrlimit(resource.RLIMIT_CORE)
        if kind == "odd":
            raise OddFile("an odd file")
        if kind == "bug":
            raise KeyError("bug")
        if kind == "environment":
            with open("/proc/self/environ" if sys.platform == "linux" else os.devnull) as shown:
                return dict(os.environ), shown.read()
        return None

    return work
