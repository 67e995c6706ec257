"""Tells hosts of this machine and of private networks from public ones, and follows no redirect from these to those.

Whoever writes a manifest, or owns a public server, could else have this machine ask what only it may reach: the
credentials that a cloud gives under 169.254.169.254, a service on the loopback address, a printer.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import urljoin, urlsplit

# In the URLs of others what stands there is the name of a bucket or container.
SCHEMES_WITH_HOSTS = frozenset(
    ("dav", "davs", "ftp", "ftps", "hdfs", "http", "https", "sftp", "smb", "ssh", "webdav", "webhdfs")
)


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def host_of(url: str) -> str | None:
    """The host that a URL is read from; None where its scheme names none."""
    try:
        parts = urlsplit(url)
        return parts.hostname if parts.scheme.lower() in SCHEMES_WITH_HOSTS else None
    except ValueError:  # as of half a bracket
        return None


def is_whole(url: str) -> bool:
    """Whether a URL of a scheme with hosts names one, and a port that may be, so that libraries can take it apart."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


@lru_cache(maxsize=4096)
def private_address(host: str) -> str | None:
    """The first address of a host that is not public, in words; None where there is none, or no such host."""
    try:
        # Of an address of this link without the interface: which one it names is of no concern.
        found = socket.getaddrinfo(host.partition("%")[0], None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None  # It cannot be asked for anything either.
    return _first_private(str(each[4][0]) for each in found)


def _first_private(addresses: Iterable[str]) -> str | None:
    for text in addresses:
        address: Any = ipaddress.ip_address(text.partition("%")[0])
        inner = address
        if address.version == 6:
            inner = address.ipv4_mapped or address.sixtofour or address
            if address in _NAT64:
                inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if not inner.is_global or inner.is_multicast:
            return text
    return None


async def public_client(**options: Any) -> Any:
    """The session of fsspec's HTTP file system, but that a redirect from a public host to a private one fails."""
    import aiohttp

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_check_redirect)
    return aiohttp.ClientSession(trace_configs=[trace], **options)


async def _check_redirect(_session: Any, _context: Any, parameters: Any) -> None:
    here = str(parameters.url)
    there = urljoin(here, parameters.response.headers.get("Location") or parameters.response.headers.get("URI") or "")
    if not await asyncio.to_thread(leads_inside, here, there):
        return
    raise PermissionError(errno.EACCES, "a redirect from a public host to a private address is not followed")


def leads_inside(here: str, there: str) -> bool:
    """Whether a redirect leads from a public host to one that is not."""
    host, other = host_of(here), host_of(there)
    return other is not None and private_address(other) is not None and (host is None or private_address(host) is None)
