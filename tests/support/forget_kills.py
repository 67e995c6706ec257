"""Kills the work of jobs/forget.py by SIGKILL before and after each of its changes, and ends it by the same command.

`python forget_kills.py URL` gives each point an output of its own below the URL, and processes forked from this
one: starting Python takes longer than the work. Prints how many kills there were; ends with 1 where a proof fails.
"""

import faulthandler
import os
import signal
import sys
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), *(str(REPOSITORY / "tests" / name) for name in ("support", "ledger"))]

from killed_forget import kill_at  # noqa: E402 - the path is set above
from test_forget import CLIPS, check_forgotten, made  # noqa: E402

from pipeline.ledger.config import ForgetConfig  # noqa: E402
from pipeline.ledger.ledger import Ledger  # noqa: E402
from pipeline.ledger.outputs import runs_in  # noqa: E402
from pipeline.score.forget_job import forget_in  # noqa: E402


def forget(url):
    return [line for line, _ in forget_in(runs_in(url), ForgetConfig(output=url, path="up/[ad]"))]


def forget_until(url, point):
    kill_at(point)
    forget(url)


def forget_to_the_end(url):
    told = forget(url)
    assert any("0 of them hold something of it" in line for line in told), told
    assert any("trained on data that held it" in line for line in told), told
    check_forgotten(Ledger(url), [CLIPS[0], CLIPS[3]], [CLIPS[1], CLIPS[2], CLIPS[4]])


def forked(work, *arguments):
    """The code with which a process of its own ends that does the work."""
    if (pid := os.fork()) == 0:
        faulthandler.dump_traceback_later(240, exit=True)
        code = 1
        try:
            work(*arguments)
            code = 0
        except BaseException:  # noqa: BLE001 - told, and by the code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(top):
    point = 0
    while True:
        url = f"{top}/{point}"
        assert forked(made, url) == 0
        if (code := forked(forget_until, url, point)) == 0:
            print(f"{point} kills, each mended by the same command, with its proof")
            return
        assert code == -signal.SIGKILL, code
        assert forked(forget_to_the_end, url) == 0, f"after point {point}"
        point += 1
        print(point, end=" ", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
