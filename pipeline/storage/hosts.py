"""Tells hosts of this machine and of private networks from public ones.

Whoever writes a manifest, or owns a public server, could else have this machine ask what only it may reach: the
credentials that a cloud gives under 169.254.169.254, a service on the loopback address, a printer.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

# In the URLs of others what stands there is the name of a bucket or container.
SCHEMES_WITH_HOSTS = frozenset(
    ("dav", "davs", "ftp", "ftps", "hdfs", "http", "https", "sftp", "smb", "ssh", "webdav", "webhdfs")
)

# Of IPv6, whose last four bytes are an address of IPv4: translated by a gateway, and an old form of the same address.
_HOLD_IPV4 = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "::/96")))
# Public by the registry, or in some releases of Python, and yet within a network: of protocols and of clouds (Oracle's
# and Azure's machines are told their secrets there), translated within a site, of the site, of segment routing.
_WITHIN = tuple(
    map(
        ipaddress.ip_network,
        ("192.0.0.0/24", "168.63.129.16/32", "64:ff9b:1::/48", "fec0::/10", "5f00::/16"),
    )
)


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
    return first_private(str(each[4][0]) for each in found)


def first_private(addresses: Iterable[str]) -> str | None:
    """The first of these addresses that is not public; None where all are."""
    for text in addresses:
        address: Any = ipaddress.ip_address(text.partition("%")[0])
        inner = address
        if address.version == 6:
            inner = address.ipv4_mapped or address.sixtofour or address
            if any(address in network for network in _HOLD_IPV4):
                inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if not inner.is_global or inner.is_multicast or any(inner in network for network in _WITHIN):
            return text
    return None


def is_address(host: str) -> bool:
    """Whether a host is given as an address, and not as a name."""
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True


def same_host(host: str) -> str:
    """A host in the one form in which it is compared: as it is asked for in the name system."""
    host = host.strip("[]").rstrip(".").lower()
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return host


def leads_inside(here: str, there: str) -> bool:
    """Whether a redirect leads from a public host to one that is not."""
    host, other = host_of(here), host_of(there)
    return other is not None and private_address(other) is not None and (host is None or private_address(host) is None)
