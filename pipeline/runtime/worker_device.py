"""Where the actors of a run compute: what is asked for in, a device of the cluster or of this machine out."""

from __future__ import annotations

import os

from pipeline.faces.devices import resolve_device
from pipeline.runtime.console import log_status


def resolve_worker_device(asked: str, *, no_ray: bool = False) -> str:
    """`cpu` or `cuda`, where the actors of a run compute: auto is CUDA where the cluster has a GPU.

    Joins the cluster that RAY_ADDRESS names to ask it; one without a GPU may bring it later, so cuda is taken at its
    word there. A local Ray has what this machine has. no_ray: auto is then the CPU, since actors share GPUs by Ray.
    Raises UsageError where cuda cannot be had.
    """
    if no_ray:
        return resolve_device("cpu" if asked == "auto" else asked)
    if asked == "cpu" or not os.environ.get("RAY_ADDRESS"):
        return resolve_device(asked)
    # Loads PyTorch before the cluster is joined: nodes that share a machine each unpack the job's folder anew then, and
    # MKL ends a process whose folder was removed before.
    import torch  # noqa: F401

    from pipeline.runtime.cluster import num_cluster_gpus  # Ray, which a local run that misses nothing does without.

    has_gpu = num_cluster_gpus() >= 1
    if asked == "cuda" and not has_gpu:
        log_status("the cluster has no GPU now: asking it for one, as one that scales from zero needs")
    return "cuda" if has_gpu or asked == "cuda" else "cpu"
