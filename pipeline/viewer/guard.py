"""Who may ask: requests of this machine that know the token, under a loopback name, and nobody else.

A page of another site can reach a server on 127.0.0.1, through a name of its own that it points there or by the
visitor's browser. So the Host has to be a loopback name, the token has to be known (from the address, then from a
cookie that goes to no other site), and what changes something has to come from a page of this server.
"""

from __future__ import annotations

import hmac
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Lets through what may ask, and says to browsers what a page may do. cookie: the name of the token's cookie."""

    def __init__(self, app: Any, *, token: str, cookie: str) -> None:
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        refusal = self._refusal(scope["method"], headers, given)

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    if name not in found:
                        found[name] = value
                if given and refusal is None:
                    found.append("set-cookie", f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/")
            await send(message)

        app = self._app if refusal is None else PlainTextResponse(refusal[1], status_code=refusal[0])
        await app(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers, given: str) -> tuple[int, str] | None:
        """A status and a line for who may not ask."""
        if _name_of(headers.get("host", "")) not in LOOPBACK:
            return 403, "This server answers to 127.0.0.1 and localhost only."
        token = given or cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return 403, "The address needs its token: open the address that the viewer printed."
        if method not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != headers["host"]:
                return 403, "Another site may change nothing here."
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return 403, "Another site may change nothing here."
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return 415, "Send application/json."
        return None


def _name_of(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""
