"""Where a network runs: what is asked for comes in, a device that is there goes out."""

from __future__ import annotations

import ctypes
import os
import re
import sys

from pipeline.records.vocabulary import UsageError


def resolve_device(asked: str) -> str:
    """`cpu`, `cuda` or `cuda:N`, as torch.device takes them.

    Args:
        asked: one of these, or auto, which is CUDA where PyTorch sees it on this machine.

    Raises:
        UsageError: for another name, and for a CUDA device that PyTorch does not see here.
    """
    if asked not in ("auto", "cpu", "cuda") and not re.fullmatch(r"cuda:\d{1,3}", asked):
        raise UsageError(f"device {asked!r} is not known; use auto, cpu, cuda or cuda:N")
    if asked == "cpu" or (asked == "auto" and not _may_have_gpu()):
        return "cpu"
    import torch  # Not before: it takes a second, and a job that detects on CPU with dlib alone needs none.

    num_there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        return "cuda" if num_there else "cpu"
    if asked == "cuda" and not num_there:
        raise UsageError("device cuda: PyTorch sees no CUDA device here; use device auto or cpu")
    if int(asked.partition(":")[2] or 0) >= num_there:
        raise UsageError(f"device {asked!r} is not there: PyTorch sees {num_there} GPUs here; use auto or cpu")
    return asked


def _may_have_gpu() -> bool:
    """Whether PyTorch could see one here: the driver of NVIDIA or AMD is there. True where that cannot be told."""
    if sys.platform != "linux" or os.path.exists("/dev/kfd"):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")  # As PyTorch itself looks for it.
    except OSError:
        return False
    return True
