"""Fixtures that several rooms' tests share: a real S3 server, the folders of real clips, and a quiet Ray."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from pipeline.storage.web import let_reach

# Read by Ray when it is imported or starts. One token for all that the tests start: a cluster of several processes, and
# the jobs that join it.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_worker_niceness": "0",
}.items():
    os.environ.setdefault(_name, _value)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts Ray comes first: few tests of many seconds, of which one left for the end keeps a process alone. What
    asks a store over HTTP is lengthy."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    for item in items:
        if "s3_endpoint" in getattr(item, "fixturenames", ()) or re.search(r"(\[|-)s3(-|\])", item.name):
            item.add_marker(pytest.mark.lengthy)


@pytest.fixture(autouse=True)
def reach() -> Iterator[None]:
    """What an actor or a viewer let this process read is of one test; in their own processes it holds to the end."""
    yield
    let_reach(None)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch on one thread while the tests of a module run."""
    from benchmarks.timing import one_thread  # Loads PyTorch, which most tests do without.

    with one_thread():
        yield


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server on this machine, over HTTP, for the whole test session."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@dataclass(frozen=True)
class S3:
    """A fresh bucket. Every library that reads the AWS variables, in this and in child processes, finds it."""

    endpoint: str
    bucket: str
    fs: s3fs.S3FileSystem

    def url(self, path: str = "") -> str:
        """The s3:// URL of a path in the bucket."""
        return f"s3://{self.bucket}/{path}".rstrip("/")

    def put(self, path: str, content: bytes) -> None:
        """Write one object by a single PUT."""
        self.fs.pipe_file(f"{self.bucket}/{path}", content)


def aws_settings(endpoint: str) -> dict[str, str]:
    """The variables by which a process reaches that S3 server and nothing else."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nowhere/aws-config",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere/aws-credentials",
    }


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A fresh bucket on a real S3 server, with the environment set to reach it and nothing else."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in aws_settings(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    # A filesystem kept from another test would still hold that test's environment and listings.
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    fs.mkdir(bucket)
    yield S3(s3_endpoint, bucket, fs)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[..., bool]]]:
    """A disk of 256 KiB, which can be made larger and read-only; unmounted in the end."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(*options: str) -> bool:
        return subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode == 0

    if shutil.which("mount") is None or not mounted("-t", "tmpfs", "-o", "size=256k", "tmpfs"):
        pytest.skip("this user may not mount a disk")
    yield folder, mounted
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def ray_cluster(s3_endpoint: str) -> Iterator[str]:
    """The address of a Ray cluster for the whole test session, whose workers reach the S3 server."""
    from ray.cluster_utils import Cluster

    repository = Path(__file__).resolve().parents[1]
    folder = tempfile.mkdtemp(prefix="ray-")  # Short: the path of a Unix socket ends at 107 bytes.
    paths = os.pathsep.join(str(repository / each) for each in (".", "tests/support", "tests/chaos"))
    with pytest.MonkeyPatch.context() as patch:
        settings = {"RAY_TMPDIR": folder, "PYTHONPATH": paths, **aws_settings(s3_endpoint)}
        for name, value in settings.items():
            patch.setenv(name, value)
        node = {"num_cpus": 2, "object_store_memory": 200 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
    yield str(cluster.address)
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def shared_ray(ray_cluster: str) -> Iterator[None]:
    """The runs of a module join one cluster: to start a local Ray takes longer than most of them. For what is no matter
    of Ray itself, and sets no variables for its workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", ray_cluster)
        yield


@pytest.fixture(scope="session")
def real_clips_dir() -> Path:
    """The folder of real clips that REAL_CLIPS_DIR names."""
    if not (folder := os.environ.get("REAL_CLIPS_DIR")):
        pytest.skip("REAL_CLIPS_DIR is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def nasty_dir(real_clips_dir: Path) -> Path:
    """The folder of broken and odd files beside the real clips."""
    folder = real_clips_dir.parent / "nasty"
    if not folder.is_dir():
        pytest.skip(f"there is no folder nasty beside {real_clips_dir.name}")
    return folder
