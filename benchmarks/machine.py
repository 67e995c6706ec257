"""This machine, described: what the figures depend on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil

from pipeline.preprocess.config import versions

FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, flags that matter, cores, memory, load, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {
        "cpu": told.get("model name", platform.processor() or platform.machine()),
        "cpu_family_model": f"{told.get('cpu family', '?')}/{told.get('model', '?')}",
        "flags": [flag for flag in FLAGS if flag in told.get("flags", "").split()],
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "load_average": os.getloadavg()[0],
        "versions": versions(),
    }
