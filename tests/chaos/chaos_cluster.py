"""A real Ray cluster on this machine, a head without CPUs and two nodes, whose parts can be killed and replaced."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import psutil
import ray._raylet
from ray.cluster_utils import Cluster

NUM_NODES = 2
CPUS_PER_NODE = 2
STORE_BYTES = 80 * 2**20  # Ray's least is 75 MiB
# A node that was killed refuses connections at once and is dead after 5 x 0.5 s instead of Ray's 13 s; one that is only
# slow, on a busy machine, gets 10 s for each answer.
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "5",
}
SHARED_ACTORS = ("ActorLocationTracker", "_AutoscalingCoordinatorActor", "_StatsActor")
# Ray Train's detached actor that outlives a killed controller; it asks the dashboard whether that is alive, for ever
# where there is none, as here.
CLEANER = "ray::PlacementGroupCleaner"
# Ray's own services, which touch no data: they outlive a killed raylet by some minutes, or belong to the cluster.
SERVICES = ("raylet/raylet", "gcs_server", "agent", "log_monitor", "monitor.py", "dashboard", "ray_process_reaper")
# Workers that wait for a task, those that move objects between the store and the disk, and actors that Ray Data starts
# once on a cluster for all jobs.
IDLE = ("ray::IDLE", "ray::SPILL", "ray::RESTORE", CLEANER, *(f"ray::{name}" for name in SHARED_ACTORS))


class ChaosCluster:
    """A cluster that jobs find through `environment`; use it as a context manager."""

    def __init__(self) -> None:
        # Short, because the path of a Unix socket ends at 107 bytes; of its own, because bare `ray.init()` of anybody
        # on this machine joins the cluster that is named in Ray's default folder.
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.settings = {
            **HEALTH_CHECKS,
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_BACKEND_LOG_LEVEL": "fatal",
            "RAY_worker_niceness": "0",
            # As on a cluster whose nodes have the repository installed.
            "PYTHONPATH": str(harness.REPOSITORY),
        }

    def __enter__(self) -> ChaosCluster:
        with self._set():
            raylet: Any = ray._raylet  # Ray read both when it was imported, which was before they were set.
            raylet.Config.initialize("")
            raylet.AuthenticationTokenLoader.instance().reset_cache()
            self.cluster = Cluster(
                initialize_head=True,
                head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False},
            )
        self.restore()
        return self

    def __exit__(self, *_: object) -> None:
        with self._set():
            self.cluster.shutdown()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a job that shall run here."""
        return {**os.environ, **self.settings, "RAY_ADDRESS": str(self.cluster.address)}

    def restore(self) -> None:
        """Replace the nodes that were killed, until there are NUM_NODES again."""
        for node in list(self.cluster.worker_nodes):
            if not is_alive(raylet_of(node)):
                with self._set():
                    self.cluster.remove_node(node, allow_graceful=False)
        while len(self.cluster.worker_nodes) < NUM_NODES:
            with self._set():
                self.cluster.add_node(num_cpus=CPUS_PER_NODE, object_store_memory=STORE_BYTES)

    def processes(self) -> list[psutil.Process]:
        """Every process of the cluster and its jobs, also those whose parent is gone, but not this one."""
        mark = {"RAY_TMPDIR": str(self.folder)}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and mark.items() <= process.environ().items():
                    found.append(process)
        return found

    def at_work(self) -> list[psutil.Process]:
        """What could still compute or write: actors, fork servers, sandboxed children, drivers; no service, no idle
        worker."""
        return [process for process in self.processes() if works(process)]

    # What can be killed: each gives a function that kills one, or None if there is none at this moment.

    def actor(self, chance: random.Random) -> Callable[[], None] | None:
        """One of the job's actors: those of the pool or of the training, and Ray's own."""
        found = [process for process in self.processes() if is_actor(process)]
        return _killing([chance.choice(found)]) if found else None

    def sandboxed_child(self, chance: random.Random) -> Callable[[], None] | None:
        """A decoding child of an actor, or the fork server that it came from."""
        found = self.at_work()
        servers = {process.pid for process in found if harness.is_fork_server(process)}
        children = [each for each in found if each.pid in servers or harness.parent_of(each) in servers]
        return _killing([chance.choice(children)]) if children else None

    def raylet(self, chance: random.Random) -> Callable[[], None] | None:
        """The raylet of a node at work; its workers must see that it is gone."""
        node = self._node_at_work(chance)
        return _killing([node]) if node is not None else None

    def node(self, chance: random.Random) -> Callable[[], None] | None:
        """A node at work: its raylet, agents, actors and their children, all at once."""
        node = self._node_at_work(chance)
        return _killing([node, *children_of(node)]) if node is not None else None

    def _node_at_work(self, chance: random.Random) -> psutil.Process | None:
        raylets = [raylet_of(node) for node in self.cluster.worker_nodes]
        busy = [raylet for raylet in raylets if any(is_actor(child) for child in children_of(raylet))]
        return chance.choice(sorted(busy, key=lambda raylet: raylet.pid)) if busy else None

    @contextlib.contextmanager
    def filled(self) -> Iterator[subprocess.Popen]:
        """Another driver holds more than the object store of every node until it is killed at the end."""
        command = [sys.executable, str(Path(__file__).with_name("fill_object_store.py")), str(STORE_BYTES)]
        filler = subprocess.Popen(command, stdout=subprocess.PIPE, env=self.environment, start_new_session=True)
        assert filler.stdout is not None
        with filler.stdout:
            try:
                assert filler.stdout.readline() == b"full\n"
                yield filler
            finally:
                filler.kill()
                filler.wait()

    @contextlib.contextmanager
    def _set(self) -> Iterator[None]:
        """The settings in this process's environment, from which Ray starts its services. Ray, which takes SIGTERM for
        itself there, gives it back."""
        on_sigterm = signal.getsignal(signal.SIGTERM)
        kept = {name: os.environ.get(name) for name in self.settings}
        os.environ.update(self.settings)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)
            for name, value in kept.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def raylet_of(node: Any) -> psutil.Process:
    return node.all_processes["raylet"][0].process


def is_alive(process: Any) -> bool:
    return process.poll() is None


def children_of(raylet: Any) -> list[psutil.Process]:
    try:
        return psutil.Process(raylet.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def works(process: psutil.Process) -> bool:
    command = harness.command_of(process)
    return bool(command) and not command.startswith(IDLE) and not any(name in command.lower() for name in SERVICES)


def is_actor(process: psutil.Process) -> bool:
    return works(process) and harness.command_of(process).startswith("ray::")


def _killing(processes: list[Any]) -> Callable[[], None]:
    def kill() -> None:
        # Stopped first: a whole node then dies at one moment, with nobody left to see the others go.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in processes:
                with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                    os.kill(process.pid, number)

    return kill


def wait_until_idle(cluster: ChaosCluster, *, seconds: float) -> list[str]:
    """The commands of what still works after `seconds`; [] as soon as nothing does."""
    deadline = time.monotonic() + seconds
    while True:
        alive = [command for process in cluster.at_work() if (command := harness.command_of(process))]
        if not alive or time.monotonic() > deadline:
            for process in cluster.processes():
                if harness.command_of(process).startswith(CLEANER):
                    process.kill()
            return alive
        time.sleep(0.3)
