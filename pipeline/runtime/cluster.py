"""Joins a Ray cluster or starts a local one, closed to others, and checks its nodes."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
import ray._raylet
from ray._private.utils import read_ray_address
from ray.data import DataContext
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.records.vocabulary import UsageError
from pipeline.runtime.preflight import FOLDER, check_output, clean
from pipeline.sandbox.starting import find_this_package
from pipeline.storage.retry import StorageError
from pipeline.storage.scratch import MAX_PARENT_LETTERS, ScratchFolder, sweep
from pipeline.storage.store import Storage

NODE_SECONDS = 60.0
# Ray's own client gives up on a silent head after 40 s.
ADDRESS_SECONDS, CONNECT_SECONDS = 50.0, 10.0
NOT_STARTED = (
    "Ray does not start on this machine; see its lines above, the limit of open files (ulimit -n) and the space in "
    "/dev/shm and the temporary folder (RAY_TMPDIR): "
)
# Of the lines of Ray's core, those that tell of no fault.
_BANNER = (b"RAY_BACKEND_LOG_LEVEL",)


RAY_PREFIX = "emotion-ray-"


def start_ray(*, least_cpus: int = 4) -> str:
    """Connect to the cluster that RAY_ADDRESS names, or start a local one; says which.

    A local one gets at least `least_cpus` logical CPUs: actors that hold all of them leave none for reading, and Ray
    waits for ever without a word.

    Raises UsageError where it does not start or cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        find_this_package()  # Workers get the driver's script folder and its current one; it lies beside the jobs.
        options |= {"address": "local", "num_cpus": max(least_cpus, os.cpu_count() or 1), "include_dashboard": False}
        if not ray.is_initialized():
            options["_temp_dir"] = _closed_to_others()
    if not ray.is_initialized():
        on_sigterm = signal.getsignal(signal.SIGTERM)
        check_address()
        try:
            with quiet_unless_it_fails():
                ray.init(**options)
        except SystemExit:  # the answer of Ray's own handler to a SIGTERM
            raise KeyboardInterrupt from None
        except Exception as error:  # Also a bare Exception, where a node takes too long to start.
            reason, address = " ".join(str(error).split())[:300], os.environ.get("RAY_ADDRESS")
            raise UsageError(f"RAY_ADDRESS is {address!r}: {reason}" if address else NOT_STARTED + reason) from error
        if threading.current_thread() is threading.main_thread():
            # Ray puts handlers of its own in front: its core's prints a stack and may abort, its node's ends silently.
            signal.signal(signal.SIGTERM, on_sigterm)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.use_datasource_v2 = False  # It merges small reads and ignores override_num_blocks.
    address = os.environ.get("RAY_ADDRESS")
    gpus = int(ray.cluster_resources().get("GPU", 0))
    told = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else "no GPU"
    return f"Ray cluster at {address}, {told}" if address else f"local Ray, {os.cpu_count()} CPUs, {told}"


def check_address() -> None:
    """Ask the cluster that RAY_ADDRESS names whether it is there, within a minute and while signals are heard.

    Ray itself would wait for many minutes without a word. Raises UsageError that names the address and the cure.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if not address or ray.is_initialized():
        return
    cure = "start the cluster, correct RAY_ADDRESS (HOST:PORT of the head, 6379 by default), or unset it to run here"
    if "://" in address and not address.startswith("ray://"):
        raise UsageError(
            f"RAY_ADDRESS is {address!r}, which is the address for `ray job submit --address`; give HOST:PORT of the "
            "head (6379 by default), or unset it to run here"
        )
    if address == "auto":
        found = read_ray_address()
        if not found:
            raise UsageError(f"RAY_ADDRESS is 'auto', and no Ray runs on this machine; {cure}")
        host_port = found
    else:
        host_port = address.removeprefix("ray://").partition("/")[0]
    answer: list[str] = []
    is_gcs = not address.startswith("ray://")
    thread = threading.Thread(target=lambda: answer.append(_ask_head(host_port, is_gcs=is_gcs)), daemon=True)
    with quiet_unless_it_fails():
        thread.start()
        deadline = time.monotonic() + ADDRESS_SECONDS
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(0.1)  # A signal is heard between two of these.
        fault = answer[0] if answer else f"no answer within {ADDRESS_SECONDS:.0f} s"
        if fault:
            raise UsageError(f"RAY_ADDRESS is {address!r}: {fault}; {cure}")


def _ask_head(host_port: str, *, is_gcs: bool) -> str:
    """What is wrong with a head's address, in words; empty where it answers."""
    host, _, port = host_port.rpartition(":")
    if not host or not port.isdigit():
        return "it is not of the form HOST:PORT"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        if is_gcs:
            raylet: Any = ray._raylet
            raylet.GcsClient(address=host_port)
    except OSError as error:
        return f"nothing answers there ({error.strerror or error})"
    except Exception as error:  # noqa: BLE001 - of Ray's core, told in its words
        return f"no Ray answers there ({' '.join(str(error).split())[:200]})"
    return ""


def stop_ray() -> None:
    """Leave the cluster; a local one ends, and its folder and its token with it."""
    ray.shutdown()
    if (folder := _local.pop("folder", None)) is not None:
        for name, value in _local.pop("environment").items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        folder.close()


@contextlib.contextmanager
def started_ray() -> Iterator[str]:
    """A cluster or a local Ray for as long as the block runs; in words, which it is."""
    with contextlib.ExitStack() as quiet:
        try:
            yield start_ray()
        except KeyboardInterrupt:  # Ray's core prints to stdout of every actor that ends with work in its queue.
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
            raise
        finally:
            stop_ray()


# What a local Ray of this process holds: its folder, and the variables as they were before it.
_local: dict[str, Any] = {}


def _closed_to_others() -> str:
    """Make the local Ray that starts next one that no other user can join or read; returns the folder for its files.

    Ray listens on all interfaces, and whoever joins runs code as this user: so every connection must bring a token,
    made for this run alone, unless RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH name one. Ray makes its own folders readable
    and writable for all: they lie in one that only this user may enter, as the token does.
    """
    if "folder" not in _local:
        sweep(RAY_PREFIX, parent=_ray_parent())
        _local["folder"] = folder = ScratchFolder(RAY_PREFIX, parent=_ray_parent())
        _local["environment"] = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
        if not os.environ.get("RAY_AUTH_TOKEN") and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            token = folder.path / "token"
            token.touch(mode=0o600)
            token.write_text(secrets.token_hex(32))
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        # Whatever it was: nobody but this process has a reason to join, and one exported for a cluster would open it.
        os.environ["RAY_AUTH_MODE"] = "token"
        raylet: Any = ray._raylet  # Ray read both when it was imported, and has no public way to read them again.
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    return str(_local["folder"].path / "r")


def _ray_parent() -> str:
    """Where Ray's folder is made: RAY_TMPDIR or the temporary folder, if its path leaves room for those of sockets."""
    parent = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return parent if len(os.fsencode(parent)) <= MAX_PARENT_LETTERS else "/tmp"


def check_nodes(output_url: str) -> None:
    """Try the output on every node of a cluster of several: that it sees what this process wrote, and may write too.

    Raises UsageError that names the node: most often the output is a folder that only one machine has.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    storage, mark = Storage(output_url), f"{FOLDER}/mark-{secrets.token_hex(8)}"
    storage.put(mark, b"")
    try:
        for node in nodes:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0)(fault_of_node).options(scheduling_strategy=here)
            with contextlib.suppress(RayError):  # A node that went away meanwhile.
                if fault := ray.get(task.remote(output_url, mark), timeout=NODE_SECONDS):
                    raise UsageError(f"node {node['NodeManagerAddress']}: {fault}")
    finally:
        clean(storage, mark)


def fault_of_node(output_url: str, mark: str) -> str | None:
    """Why this node cannot write to the output in which another wrote `mark`; None where it can."""
    try:
        if not Storage(output_url).exists(mark):
            return f"output {output_url} is not what the driver sees; mount it on every node, or give a URL"
        check_output(output_url)
    except (UsageError, StorageError) as error:
        return str(error)
    return None


@contextlib.contextmanager
def quiet_unless_it_fails() -> Iterator[None]:
    """Keep back what Ray writes to stderr meanwhile: banners, and warnings that tell nothing once it has started. Where
    the work fails or is interrupted, they are written after all: they may say why."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            os.write(kept, b"".join(line for line in held if not any(word in line for word in _BANNER)))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def num_cluster_gpus() -> int:
    """GPUs of the Ray cluster, which this joins."""
    start_ray()
    return int(ray.cluster_resources().get("GPU", 0))
