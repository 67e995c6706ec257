"""An HTTP proxy before the S3 server of the tests that breaks what it is told to break: once, some times, or always.

    proxy.fail("reset_body", method="GET", path="in/a.mp4", times=2)

The next two GETs of a path that holds `in/a.mp4` are cut in mid-body; everything else passes. `proxy.log` has each
request with the fault it met.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

# The answers of S3: status, code, message.
ANSWERS = {
    "internal_error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "bad_gateway": (502, "", ""),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (403, "ExpiredToken", "The provided token has expired."),
    "forbidden": (403, "AccessDenied", "Access Denied"),
    "no_bucket": (404, "NoSuchBucket", "The specified bucket does not exist"),
}
# What is done to a true answer, or before it.
CUTS = (
    "reset",  # the connection, before the store hears of it
    "lost_answer",  # the store does it, and the connection is cut before the answer
    "reset_body",  # half of the body, then a reset
    "short",  # half of the body under the full Content-Length, then the end
    "short_length",  # half of the body under a Content-Length of half: only the checksum tells
    "short_unsummed",  # the same from a store without checksums: only the object's size, known before, tells
    "stall",  # half of the body, then nothing
    "slow",  # all of it, in pieces
)
STALL_SECONDS = 3.0
SLOW_PIECES, SLOW_SECONDS = 8, 0.1


@dataclass
class Fault:
    kind: str
    method: str
    path: str
    times: float
    skip: int
    spreads: bool


class FaultProxy:
    """A proxy on a port of its own; `endpoint` is its address."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream).netloc
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.log: list[tuple[str, str, str | None]] = []
        self.drop_header = "expect"  # never passed on: the request is whole already
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def fail(
        self,
        kind: str,
        *,
        method: str = "",
        path: str = "",
        times: float = float("inf"),
        skip: int = 0,
        spreads: bool = False,
    ) -> None:
        """Break the requests of this method (any, if empty) whose path holds `path` (a regular expression): after the
        first `skip` of them, `times` times. spreads: once it has begun, all requests of any kind."""
        assert kind in ANSWERS or kind in CUTS
        with self._lock:
            self._faults.append(Fault(kind, method, path, times, skip, spreads))

    def mend(self) -> None:
        """Break nothing any more, and forget the log."""
        with self._lock:
            self._faults.clear()
            self.log.clear()

    def met(self, kind: str | None) -> int:
        """How many requests met this fault (None: passed)."""
        with self._lock:
            return sum(found == kind for _, _, found in self.log)

    def _fault_of(self, method: str, path: str) -> str | None:
        with self._lock:
            found = None
            for fault in self._faults:
                if fault.method in ("", method) and re.search(fault.path, path) and fault.times > 0:
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    found = fault.kind
                    if fault.spreads:
                        fault.method = fault.path = ""
                    break
            self.log.append((method, path, found))
            return found

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                kind = proxy._fault_of(self.command, self.path)
                if kind in ANSWERS:
                    return self._answer(*ANSWERS[kind])
                if kind == "reset":
                    return self._reset()
                connection = http.client.HTTPConnection(proxy._upstream, timeout=30)
                with contextlib.closing(connection):
                    headers = {name: value for name, value in self.headers.items() if name.lower() != proxy.drop_header}
                    connection.request(self.command, self.path, body=body, headers=headers)
                    answer = connection.getresponse()
                    content = answer.read()
                if kind == "lost_answer":
                    return self._reset()
                half = content[: len(content) // 2]
                length = (
                    len(half)
                    if kind in ("short_length", "short_unsummed")
                    else int(answer.headers.get("Content-Length") or 0)
                )
                self.send_response(answer.status)
                dropped = ["content-length", "connection", "transfer-encoding", "server", "date"]
                dropped += ["x-amz-checksum-"] if kind == "short_unsummed" else []
                for name, value in answer.headers.items():
                    if not name.lower().startswith(tuple(dropped)):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                if kind == "slow":
                    size = max(1, len(content) // SLOW_PIECES)
                    for at in range(0, len(content), size):
                        self.wfile.write(content[at : at + size])
                        self.wfile.flush()
                        time.sleep(SLOW_SECONDS)
                    return None
                self.wfile.write(half if kind in CUTS else content)
                self.wfile.flush()
                if kind == "stall":
                    time.sleep(STALL_SECONDS)
                if kind in ("reset_body", "stall"):
                    self._reset()
                self.close_connection = kind is not None
                return None

            do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

            def _answer(self, status: int, code: str, message: str) -> None:
                text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
                content = b"" if self.command == "HEAD" else text.encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _reset(self) -> None:
                # With a linger of 0 s, closing sends RST instead of FIN.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.close()

        return Handler

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultProxy]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
