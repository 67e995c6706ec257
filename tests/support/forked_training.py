"""Trainings in processes of their own, forked from one that has imported everything: kills, and groups of workers.

python tests/support/forked_training.py kill CONFIG.json STEP,STEP,...   SIGKILL soon after these steps, then to the end
python tests/support/forked_training.py workers CONFIG.json N            to the end on N workers joined by gloo
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.train.config import TrainConfig
from pipeline.train.worker import train_worker


def forked(work: Callable[[], None]) -> int:
    """The id of a child that does `work` and ends."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def killed_and_resumed(config: TrainConfig, kill_steps: list[int]) -> None:
    """Print the step of the last resume point at each kill."""
    for step in kill_steps:
        child = forked(lambda: train_worker(config))
        while (at := last_resume_point(config.output)) < step:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"the training ended before its kill at step {step}"
        print(at)
    child = forked(lambda: train_worker(config))
    assert os.waitpid(child, 0)[1] == 0


def last_resume_point(run_url: str) -> int:
    names = (path.parent.name for path in Path(run_url).glob("checkpoints/step-*/checkpoint.json"))
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def on_workers(config: TrainConfig, world_size: int) -> None:
    """Train into OUTPUT-N."""
    config = replace(config, output=f"{config.output}-{world_size}")
    with tempfile.TemporaryDirectory() as folder:

        def worker(rank: int) -> None:
            dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world_size)
            train_worker(config, rank=rank, world_size=world_size)
            dist.destroy_process_group()

        children = [forked(lambda rank=rank: worker(rank)) for rank in range(world_size)]
        assert all(os.waitpid(child, 0)[1] == 0 for child in children)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, action, config_path, argument = sys.argv
    config = TrainConfig(**json.loads(Path(config_path).read_text()))
    if action == "kill":
        killed_and_resumed(config, [int(step) for step in argument.split(",")])
    else:
        for world_size in argument.split(","):
            on_workers(config, int(world_size))
