"""Work for the fence's tests: each task says what the child shall do."""

import os
import signal
import time


class OddFile(Exception):
    reason = "odd_file"


def build(*, greeting="hello", fail=False):
    if fail:
        raise RuntimeError("no weights")

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
        if kind == "odd":
            raise OddFile("an odd file")
        if kind == "bug":
            raise KeyError("bug")
        if kind == "environment":
            return dict(os.environ)
        return None

    return work
