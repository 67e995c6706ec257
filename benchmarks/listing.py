"""What listing a bucket costs: made-up keys on an S3 server in, seconds, requests and memory of `read_corpus` out.

The server is a process of its own, reached over HTTP: moto's, which sorts all keys anew for every page, or one that
makes up each page when it is asked for it, for more keys than moto holds. Its CPU time is told apart, and beside ours
stands boto3's bare paginator, which makes nothing of what it lists.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import parse_qs, urlparse

import fsspec
import psutil
from rich.console import Console

from benchmarks.machine import machine
from benchmarks.tables import table
from pipeline.corpus.read import read_corpus
from pipeline.records.vocabulary import EMOTIONS, SPLITS, UsageError
from pipeline.runtime.console import log_status
from pipeline.storage.remote import open_filesystem
from pipeline.storage.store import Storage

BUCKET = "made"
SERVERS = ("moto", "pages")
KEYS_PER_PAGE = 1000
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "made", "AWS_SECRET_ACCESS_KEY": "made", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True, kw_only=True)
class ListingConfig:
    """Lists a bucket of made-up keys on an S3 server, over HTTP, as a job lists its input; no object is read."""

    study: str
    """listing."""
    output: str = "build/listing"
    """Folder of listing.json; a path or any fsspec URL."""
    keys: int = 100_000
    """Keys in the bucket (count)."""
    server: str = "moto"
    """moto (in its memory), or pages (made up one by one, for millions of keys)."""

    def __post_init__(self) -> None:
        if self.keys < 1:
            raise ValueError(f"--keys is {self.keys}; give 1 or more")
        if self.server not in SERVERS:
            raise ValueError(f"--server is {self.server!r}; give one of {', '.join(SERVERS)}")


def listing(config: ListingConfig) -> dict[str, Any]:
    """List the keys by `read_corpus` and by boto3's paginator; writes listing.json and returns what it holds.

    Raises UsageError where moto is not installed.
    """
    with _serving(config.keys, server=config.server) as (endpoint, server), reached(endpoint):
        rows = {"read_corpus": _measured(_read, server), "boto3's paginator": _measured(_paginated, server)}
    results = {"machine": machine(), "keys": config.keys, "server": config.server, "ways": rows}
    Storage(config.output).put("listing.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


def key_of(number: int) -> str:
    """The name of a made-up key: CAER's layout, in which no file needs to be opened."""
    return f"{SPLITS[number % 3]}/{EMOTIONS[number % 7]}/{number:09d}.avi"


@contextmanager
def _serving(num_keys: int, *, server: str) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a server with that many keys, and its process."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    serve = _serve_moto if server == "moto" else _serve_pages
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(num_keys, theirs), daemon=True)
    log_status(f"making {num_keys:,} keys")
    process.start()
    try:
        endpoint = ours.recv()
        if endpoint is None:
            raise UsageError("moto is not installed; pip install 'moto[server]'")
        assert process.pid is not None, "it has answered"
        yield endpoint, psutil.Process(process.pid)
    finally:
        process.kill()
        process.join()


@contextmanager
def reached(endpoint: str) -> Iterator[None]:
    """S3 is at this address, for all that reads the AWS variables."""
    before = dict(os.environ)
    stores: Any = fsspec.get_filesystem_class("s3")
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, **CREDENTIALS}
    stores.clear_instance_cache()  # One that was made before is at its own address.
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
        stores.clear_instance_cache()


def _serve_pages(num_keys: int, connection: Connection) -> None:
    """Answer list_objects_v2 with the keys from the one that the continuation token counts."""

    class Pages(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = parse_qs(urlparse(self.path).query)
            start = int(asked.get("continuation-token", ["0"])[0])
            body = _page(range(start, min(start + KEYS_PER_PAGE, num_keys)), num_keys=num_keys).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:  # type: ignore[override] - a line for each request
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    connection.send(f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()


def _page(numbers: range, *, num_keys: int) -> str:
    """One page of a listing as S3 writes it, in the order of the keys."""
    found = "".join(
        f"<Contents><Key>{_sorted_key(number, num_keys=num_keys)}</Key>"
        f"<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{_etag(number)}&quot;</ETag>"
        f"<Size>{number}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for number in numbers
    )
    more = numbers.stop < num_keys
    token = f"<NextContinuationToken>{numbers.stop}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><Prefix></Prefix><KeyCount>{len(numbers)}</KeyCount><MaxKeys>{KEYS_PER_PAGE}</MaxKeys>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{found}</ListBucketResult>"
    )


def _sorted_key(number: int, *, num_keys: int) -> str:
    """Like `key_of`, and in the order of the numbers: split by split, class by class."""
    place = number * len(SPLITS) * len(EMOTIONS) // num_keys
    split, emotion = divmod(place, len(EMOTIONS))
    return f"{sorted(SPLITS)[split]}/{sorted(EMOTIONS)[emotion]}/{number:09d}.avi"


def _etag(number: int) -> str:
    """Like that of an object's bytes: an MD5, whose digits say nothing of its place."""
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()


def _serve_moto(num_keys: int, connection: Connection) -> None:
    try:
        from moto.backends import get_backend
        from moto.core.models import DEFAULT_ACCOUNT_ID
        from moto.server import ThreadedMotoServer
    except ImportError:
        return connection.send(None)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a line for each request)
    backend = get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    for number in range(num_keys):
        backend.put_object(BUCKET, key_of(number), b"", etag=_etag(number), disable_notification=True)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    connection.send(f"http://{host}:{port}")
    while True:
        time.sleep(3600)


def _measured(work: Callable[[], tuple[int, int]], server: psutil.Process) -> dict[str, Any]:
    """work: gives the keys that it found and the requests that it made."""
    wall, cpu, theirs = time.monotonic(), time.process_time(), sum(server.cpu_times()[:2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    num_keys, num_requests = work()
    seconds = time.monotonic() - wall
    return {
        "keys": num_keys,
        "requests": num_requests,
        "seconds": seconds,
        "keys_per_second": num_keys / seconds,
        "cpu_seconds": time.process_time() - cpu,
        "server_cpu_seconds": sum(server.cpu_times()[:2]) - theirs,
        "memory_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def _read() -> tuple[int, int]:
    requests: list[str] = []
    store = open_filesystem(f"s3://{BUCKET}")[0]  # the one that read_corpus takes
    store.connect()
    store.s3.meta.events.register("before-call.s3", lambda model, **_: requests.append(model.name))
    corpus = read_corpus(f"s3://{BUCKET}")
    return corpus.num_clips, len(requests)


def _paginated() -> tuple[int, int]:
    import boto3

    sizes = [page["KeyCount"] for page in boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET)]
    return sum(sizes), len(sizes)


def print_listing(results: Mapping[str, Any]) -> None:
    """Print a row a way of listing."""
    rows = [
        [
            name,
            f"{way['seconds']:.1f}",
            f"{way['keys_per_second']:,.0f}",
            f"{way['requests']:,}",
            f"{way['cpu_seconds']:.1f}",
            f"{way['server_cpu_seconds']:.1f}",
            f"{way['memory_mib']:.0f}",
        ]
        for name, way in results["ways"].items()
    ]
    columns = ("", "s", "keys/s", "requests", "our CPU s", "server's CPU s", "peak memory grew by, MiB")
    title = f"Listing of {results['keys']:,} keys on an S3 server ({results['server']})"
    Console(width=None if sys.stdout.isatty() else 120).print(table(title, columns, rows))
