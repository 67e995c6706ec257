"""Work for the sandbox's tests: each task says what the child shall do."""

import ctypes
import multiprocessing.connection
import os
import pickle
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

from attacks import succeeded

from pipeline.sandbox.messages import send


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def the_pipe():
    """The descriptor of this child's pipe, the one socket that it has."""
    for number in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                return number
        except OSError:
            continue
    raise AssertionError("no pipe")


def answer_raw(how):
    """Write to the parent what a decoder that was taken over might."""
    pipe = the_pipe()
    if how["name"] == "pickle":
        multiprocessing.connection.Connection(os.dup(pipe)).send(("item", Bomb(how["path"])))
    elif how["name"] == "pickle inside":
        data = pickle.dumps(Bomb(how["path"]))
        os.write(pipe, struct.pack("<II", len(data), 0) + data)
    elif how["name"] == "oversize":
        os.write(pipe, struct.pack("<II", 20, 2**32 - 1))
    elif how["name"] == "garbage":
        os.write(pipe, bytes(range(256)) * 4)
    elif how["name"] == "empty":
        os.write(pipe, bytes(64))
    elif how["name"] == "half":
        os.write(pipe, struct.pack("<II", 20, 0) + b"half")
    elif how["name"] == "closed":
        os.close(pipe)
    time.sleep(3600)


class OddFile(Exception):
    reason = "odd_file"


def build(*, greeting="hello", greeting_path=None, fail=False, killed=False, sleeps=0):
    time.sleep(sleeps)
    if greeting_path:
        with open(greeting_path) as file:
            greeting = file.read()
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
    if fail:
        raise RuntimeError("no weights")
    leaked = []

    def work(task, stage):
        stage("decode")
        kind = task["kind"]
        if kind == "attacks":
            return succeeded({**task["at"], "socket": the_pipe(), "pipe": the_pipe()})
        if kind == "ask":
            return [len(stage.ask(number)) for number in range(task["count"])]
        if kind == "ask and read nothing":
            send(the_pipe(), ["ask", 1])
            time.sleep(3600)
        if kind == "echo":
            for number in range(task.get("count", 1)):
                yield f"{greeting} {number}"
            return os.getpid()
        if kind == "signal":
            os.write(2, b"about to go\n")
            os.kill(os.getpid(), getattr(signal, task["name"]))
        if kind == "exit":
            os._exit(task.get("code", 7))
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
            raise OddFile(task.get("text", "an odd file"))
        if kind == "bug":
            raise KeyError("bug")
        if kind == "many stages":
            for number in range(200):
                stage(f"a {'x' * (number % 18)} {'y' * (number // 18)}")
        if kind == "large items":
            for _ in range(100):
                yield bytes(task["num_bytes"])
        if kind == "answer raw":
            answer_raw(task["how"])
        if kind == "answer":
            send(the_pipe(), task["message"])
            time.sleep(3600)
        if kind == "read":
            with open(task["path"], "rb") as file:
                return file.read(20)
        if kind == "list":
            return os.listdir(task["path"])
        if kind == "kill":
            return os.kill(task["pid"], signal.SIGTERM)
        if kind == "fork" and os.fork() == 0:
            os._exit(0)
        if kind == "chmod":
            return os.chmod(task["path"], 0o777)
        if kind == "limit":
            return resource.prlimit(task["pid"], resource.RLIMIT_CPU, (1, 1))
        if kind == "threads":
            thread = threading.Thread(target=leaked.append, args=[b"from a thread"])
            thread.start()
            thread.join()
            return leaked.pop()
        if kind == "environment":
            with open("/proc/self/environ" if sys.platform == "linux" else os.devnull) as shown:
                return dict(os.environ), shown.read()
        return None

    return work
