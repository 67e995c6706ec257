"""A node of a real cluster that does not have the output, or may not write it, is named before any work is done.

Nodes of one machine differ by a mount namespace of their own, in which another folder lies over the output.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.records.vocabulary import UsageError
from pipeline.runtime.cluster import check_nodes

pytestmark = pytest.mark.ray

HIDDEN = 'mount -t tmpfs none "$0"'
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"'
CAN_UNSHARE = (
    bool(shutil.which("unshare"))
    and not subprocess.run(
        ["unshare", "--mount", "sh", "-c", HIDDEN, "/tmp"], capture_output=True, check=False
    ).returncode
)


@pytest.fixture
def cluster(monkeypatch):
    """A head, in whose own folder of Ray nobody else joins it."""
    folder = tempfile.mkdtemp(prefix="nodes-")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    # Node processes find the package as on a cluster that has it installed.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    head = {"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def node(cluster, output, *, address, mounts):
    """A node with an address of its own, for which `mounts` has been done to the output."""
    program = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--address={cluster.address}"]
    program += [f"--node-ip-address={address}", "--num-cpus=1", f"--object-store-memory={80 * 2**20}"]
    before = sum(each["Alive"] for each in ray.nodes())
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', str(output), *program],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while sum(each["Alive"] for each in ray.nodes()) <= before:
            assert process.poll() is None
            time.sleep(0.1)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(not CAN_UNSHARE, reason="this user may not mount a folder for one process alone")
def test_a_node_without_the_output_or_that_may_not_write_it_is_named(cluster, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with node(cluster, output, address="127.0.0.3", mounts=HIDDEN):
        told = rf"^node 127\.0\.0\.3: output {output} is not what the driver sees; mount it on every node, or give"
        with pytest.raises(UsageError, match=told):
            check_nodes(str(output))
    with node(cluster, output, address="127.0.0.4", mounts=READ_ONLY):
        told = rf"^node 127\.0\.0\.4: output {output}/preflight/\w+ cannot be written: Read-only file system; make it"
        with pytest.raises(UsageError, match=told) as caught:
            check_nodes(str(output))
        assert "\n" not in str(caught.value)
    assert list(output.iterdir()) == []
