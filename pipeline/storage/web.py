"""HTTP sessions that look at the address which a connection really uses.

A name can lead to a public address where it is checked and to a private one a moment later, and a redirect can lead
anywhere. So the check is made where the session resolves a name and where it opens a socket, and holds for each
connection of its own.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.storage.hosts import (
    first_private,
    host_of,
    is_address,
    leads_inside,
    private_address,
    same_host,
)
from pipeline.storage.retry import REQUEST_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Of one request; what is slow is ended before.
LONGEST_SECONDS = 6 * 3600.0
REFUSED = "is no public address, and a redirect or a manifest may not lead there; give --allow-private-hosts"

# Hosts that this process may read though they lie at private addresses and a manifest names them. None: all, as where
# no input was read and a program gave each URL itself.
_reachable: frozenset[str] | None = None


def reach_of(input_url: str | None, *, allow_private_hosts: bool) -> frozenset[str] | None:
    """The private hosts that the URLs of an input may lead to, for `let_reach`: all, or the one that it lies on."""
    if allow_private_hosts:
        return None
    host = None if input_url is None else host_of(input_url)
    return frozenset() if host is None or private_address(host) is None else frozenset({same_host(host)})


def let_reach(hosts: frozenset[str] | None) -> None:
    """Let this process read what an input lists from these hosts, also where their addresses are private.

    hosts: of `reach_of`. What was let before is not any more.
    """
    global _reachable  # noqa: PLW0603 (sessions live in file systems that fsspec keeps for the process)
    _reachable = hosts


@contextmanager
def reaching(hosts: frozenset[str] | None) -> Iterator[None]:
    """`let_reach` for as long as the block runs."""
    before = _reachable
    let_reach(hosts)
    try:
        yield
    finally:
        let_reach(before)


async def typed_client(**options: Any) -> Any:
    """fsspec's HTTP session for addresses that the user gave: only redirects are held to public addresses."""
    return _session(_Gate(is_typed=True), options)


async def listed_client(**options: Any) -> Any:
    """fsspec's HTTP session for addresses that a manifest gave: public ones, and hosts of `let_reach`."""
    return _session(_Gate(is_typed=False), options)


def _session(gate: _Gate, options: dict[str, Any]) -> Any:
    import aiohttp

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(gate.on_start)
    trace.on_request_redirect.append(gate.on_redirect)
    connector = aiohttp.TCPConnector(resolver=_resolver(gate), socket_factory=gate.open_socket, use_dns_cache=False)
    # aiohttp's own ends each request after five minutes, in which no long film comes.
    timeout = aiohttp.ClientTimeout(total=LONGEST_SECONDS, connect=REQUEST_SECONDS, sock_read=REQUEST_SECONDS)
    return aiohttp.ClientSession(trace_configs=[trace], connector=connector, **{"timeout": timeout, **options})


class _Gate:
    """What one session may connect to: public addresses, and those of hosts that were let in."""

    def __init__(self, *, is_typed: bool) -> None:
        self._is_typed = is_typed
        self._reach = _reachable
        self._hosts: set[str] = set()  # that the user gave, or a private host that was let in redirected to
        self._resolved: defaultdict[str, set[str]] = defaultdict(set)  # addresses of hosts that were let in, with these
        self._inside: set[str] = set()  # names that were let in and lead to private addresses alone

    def lets(self, host: str) -> bool:
        """Whether a host may lie at a private address."""
        if not self._is_typed and self._reach is not _reachable:
            self._reach = _reachable
            self._hosts.clear()
        return same_host(host) in self._hosts or _reachable is None or same_host(host) in _reachable

    async def on_start(self, _session: Any, _context: Any, parameters: Any) -> None:
        if self._is_typed and parameters.url.raw_host:
            self._hosts.add(same_host(parameters.url.raw_host))

    async def on_redirect(self, _session: Any, _context: Any, parameters: Any) -> None:
        """Refuse what is seen to lead inside; let a private host that was let in name another one."""
        headers = parameters.response.headers
        here = parameters.url
        there = here.join(type(here)(headers.get("Location") or headers.get("URI") or ""))
        if await asyncio.to_thread(leads_inside, str(here), str(there)):
            raise _refusal("a redirect from a public host to a private address is not followed")
        if there.raw_host and here.raw_host and self._is_inside(here.raw_host):
            self._hosts.add(same_host(there.raw_host))

    def _is_inside(self, host: str) -> bool:
        """Whether a host that was let in is known to be private, by what was connected to."""
        return same_host(host) in self._inside or (
            self.lets(host) and is_address(host) and _is_private(same_host(host))
        )

    def check_names(self, host: str, addresses: Iterable[str]) -> None:
        """Raise PermissionError where a name leads to a private address and was not let in, or was and does no more:
        whoever answers for it could else name what is private as its own."""
        addresses = tuple(addresses)
        if _reachable and same_host(host) in _reachable and not any(map(_is_private, addresses)):
            raise _refusal(f"host {host} was at a private address when it was first asked for, and is at a public one")
        if self.lets(host):
            for address in addresses:
                self._resolved[address].add(host)
            if all(map(_is_private, addresses)):
                self._inside.add(same_host(host))
            else:
                self._inside.discard(same_host(host))
        elif (address := first_private(addresses)) is not None:
            raise _refusal(f"host {host} is at {address}, which {REFUSED}")

    def open_socket(self, address_info: Any) -> socket.socket:
        """A socket for the address that is about to be connected to: of a literal one no name was resolved."""
        family, kind, protocol, _, (address, *_) = address_info
        if _is_private(address) and not any(map(self.lets, (address, *self._resolved[address]))):
            raise _refusal(f"{address} {REFUSED}")
        return socket.socket(family, kind, protocol)


def _is_private(address: str) -> bool:
    return first_private((address,)) is not None


def _resolver(gate: _Gate) -> Any:
    from aiohttp.abc import AbstractResolver
    from aiohttp.resolver import DefaultResolver

    class Checked(AbstractResolver):
        """The resolver of aiohttp, whose answers are checked and are those that are connected to."""

        def __init__(self) -> None:
            self._inner = DefaultResolver()

        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
            found = await self._inner.resolve(host, port, family)
            gate.check_names(host, (each["host"] for each in found))
            return found

        async def close(self) -> None:
            await self._inner.close()

    return Checked()


def _refusal(reason: str) -> PermissionError:
    return PermissionError(errno.EACCES, reason)
