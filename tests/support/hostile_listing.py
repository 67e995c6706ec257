"""Listers of archives that were taken over: each task says what the child shall do."""

import os
import signal
import time

MEMBER = ["a.mp4", 3, "0" * 32, [["tar", [512, 3]]], None, None]


def build(how):
    def work(_task, line):
        line("list")
        if how == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "hangs":
            time.sleep(3600)
        if how == "eats":
            hoard = []
            while True:
                hoard.append(b"x" * 2**25)
        if how == "reads without end":
            while True:
                line.ask(["read", 0, 2**22])
        if how == "spools without end":
            line.ask(["spool"])
            while True:
                line.ask(["write", bytes(2**26)])
        if isinstance(how, list):
            line.ask(how)
        if how == "members without end":
            while True:
                yield [MEMBER] * 10_000
        yield [how["member"]] if isinstance(how, dict) else [MEMBER]

    return work
