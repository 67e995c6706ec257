"""Removes credentials, and what would act on a terminal, from texts before they are written or printed.

In a URL of any scheme the userinfo and each value of the query, the fragment and the parameters are secret; in other
text what stands behind a name such as `password` or `Authorization`, and tokens that are known by their shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote_plus

HIDDEN = "…"

# In these the part before the "@" is the name of a container, as long as no key follows it.
_CONTAINER_SCHEMES = ("abfs", "abfss", "wasb", "wasbs")


_WEB_SCHEMES = ("http", "https", "ws", "wss", "webdav", "dav", "davs")


# Or what botocore makes of `s3://key:secret@bucket`: the same without its scheme.
_URL = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]*|(?P<pair>(?<![\w/.:%-])[\w+/=.~%-]+:[\w+/=.~%!-]{4,}@)(?=[\w-])"
)


_MEMBERS_START = "archive://?"


_SECRET_NAMES = (
    r"x-(?:amz|goog)-(?:signature|credential|security-token)|sig|signature|[\w-]*token|[\w-]*password|[\w-]*passwd|pwd|"
    r"pass|auth|[\w-]*passphrase|[\w-]*secret[\w-]*|aws_?access_?key_?id|[\w-]*api[_ -]?key|"
    r"[\w-]*(?:account|access|private|shared)_?-?key|SharedAccessSignature|[\w-]*credentials?|jsessionid|phpsessid|session_?id"
)


# What may stand between such a name and its value: =, :, and the quotes of JSON and Python.
_NAMED = re.compile(rf"(?i)(?<![\w-])({_SECRET_NAMES})(['\"]?\s*[:=]\s*+)(['\"]?+)(?!{HIDDEN})[^\s&'\",;){HIDDEN}]+")


# The whole of it: a scheme of authorization is followed by a blank and the credential.
_HEADER = re.compile(
    r"(?i)(?<![\w-])((?:proxy-)?authorization|(?:set-)?cookie)(['\"]?\s*[:=]\s*+)((?:b?['\"])?+)"
    rf"(?!{HIDDEN})[^'\"\r\n{HIDDEN}]+"
)


_BEARER = re.compile(r"(?i)\b(bearer|basic)(\s+)(?=[\w.~+/-]*[\d=])[\w.~+/-]{8,}=*")


_SHAPES = re.compile(
    r"\b(?:(AKIA|ASIA)[A-Z0-9]{12,}|(hf_)(?=[A-Za-z0-9]*[A-Z0-9]|[a-z]{16})[A-Za-z0-9]{6,}"
    r"|(gh[pousr]_)[A-Za-z0-9]{6,}|(github_pat_)\w{6,}|(gl(?:pat|rt|dt|ft)-)[\w-]{6,}"
    r"|(npm_|dckr_pat_|shp(?:at|ss|ca|pa)_|[rs]k_(?:live|test)_)\w{8,}|(pypi-|AGE-SECRET-KEY-)[\w-]{8,}"
    r"|(SG\.)[\w-]{8,}\.[\w-]{6,}|(xox[abeprs]-)[\w-]{6,}"
    r"|(sk-)[\w-]{16,}|(AIza)[\w-]{16,}|(ya29\.)[\w-]{8,}|(eyJ)[\w-]{6,}\.[\w-]{4,}\.[\w-]*)"
)


# The query of a URL in whose path there is a blank, and what is given to a flag.
_AFTER_BLANK = re.compile(rf"(://[^\n? ]*+ [^\n?]*+\?[\w.~%-]+=)(?!{HIDDEN})[^\s&'\"<>]+")
_FLAG = re.compile(rf"(?i)(--?[\w-]*(?:password|passwd|passphrase|secret|token|api-?key)\s+)(?!{HIDDEN})[^\s'\"]+")


_PRIVATE_KEY = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:(?=-----END)|$)", re.DOTALL)


def redacted(text: str) -> str:
    """Text for people and files: no passwords, keys or tokens, no userinfo of a URL and no value of its query."""
    text = _PRIVATE_KEY.sub(rf"\1{HIDDEN}", text)
    text = _URL.sub(lambda found: f"{HIDDEN}@" if found["pair"] else _redacted_url(found[0], HIDDEN), text)
    # The address of an archive's member, which holds a URL in percent codes, may have been cut.
    text = re.sub(r"(?i)(%3A%2F%2F)[^\s&'\"]*%40", rf"\1{HIDDEN}%40", text)
    text = re.sub(r"(?i)([a-z]%3A%2F%2F[^\s&'\"]*?)%3F[^\s&'\"]*", rf"\1%3F{HIDDEN}", text)
    text = _AFTER_BLANK.sub(rf"\1{HIDDEN}", text)
    text = _FLAG.sub(rf"\1{HIDDEN}", text)
    text = _HEADER.sub(rf"\1\2\3{HIDDEN}", text)
    text = _BEARER.sub(rf"\1\2{HIDDEN}", text)
    text = _NAMED.sub(rf"\1\2\3{HIDDEN}", text)
    return _SHAPES.sub(lambda found: f"{next(filter(None, found.groups()))}{HIDDEN}", text)


def unquoted(text: str) -> str:
    """What a library says of a file, without what it quotes of it: the first bytes of any file may be that."""
    return re.sub(r"""b?([`'"]).*?(\1|$)""", "...", text)


def printable(text: str) -> str:
    """The text in one line for terminals, pages and tables: a blank for each character that prints nothing.

    Those are controls, among them the escape that begins a command to a terminal, reversals of direction, and what is
    no character.
    """
    return "".join(letter if letter.isprintable() else " " for letter in text)


def terminal_text(text: str) -> str:
    """What may be printed to a terminal: one printable line without secrets."""
    return printable(redacted(text))


def redacted_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config as it may be written down: each text without what `redacted` hides."""
    return {name: _redacted_value(value) for name, value in values.items()}


def _redacted_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return redacted_values(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_redacted_value, value))
    return redacted(value) if isinstance(value, str) else value


def without_secrets(url: str) -> str:
    """The URL without userinfo, query and fragment: what a plan, an entry and a clip's path may keep.

    A local path, which is no URL, stays as it is.
    """
    return _redacted_url(url, "") if "://" in url else url


def without_query(place: str) -> str:
    """A name in a store, or a URL, without its query, parameters and fragment.

    On the web all that follows a "?" or "#"; elsewhere, where both may be part of a name, only what is written
    `?name=value` or `#name=value`.
    """
    if place.partition("://")[0].lower() in _WEB_SCHEMES:
        return re.sub(r";[\w.~%-]+=[^/;]*", "", re.split("[?#]", place, maxsplit=1)[0])
    return re.sub(r"[?#][\w.~%-]+=.*", "", place, flags=re.DOTALL)


def _redacted_url(url: str, hidden: str) -> str:
    """One URL with each secret replaced by `hidden`; where that is "", what stands around it goes too."""
    if url.startswith(_MEMBERS_START):
        return _redacted_member(url, hidden)
    scheme, _, rest = url.partition("://")
    scheme_name = scheme.lower().rpartition("::")[2]
    if scheme_name in ("archive", "file", "local"):
        return url
    user, rest = _split_userinfo(scheme_name, rest)
    if user is not None and (scheme_name not in _CONTAINER_SCHEMES or ":" in user):
        user = hidden
    if not hidden:
        rest = without_query(f"{scheme_name}://{rest}").partition("://")[2]
    else:
        start = r"[?#]." if scheme_name in _WEB_SCHEMES else r"[?#][\w.~%-]+="
        if found := re.search(start, rest, flags=re.DOTALL):
            rest = rest[: found.start() + 1] + hidden
        rest = re.sub(r"(;[\w.~%-]+=)[^/;?#]*", rf"\1{hidden}", rest)
    return f"{scheme}://{f'{user}@' if user else ''}{rest}"


def _split_userinfo(scheme: str, rest: str) -> tuple[str | None, str]:
    """The userinfo of what follows the "://" (None where there is none), and the rest."""
    authority = rest.partition("/")[0]
    before_query = re.split("[?#]", authority, maxsplit=1)[0]
    if "@" in authority and ("@" in before_query or ":" in before_query):
        user, _, host = authority.rpartition("@")
        return user, host + rest[len(authority) :]
    # A secret key of S3 may hold slashes, which a port does not; stores other than web servers have no ports.
    port = before_query.partition(":")[2]
    if ":" in before_query and "@" in rest and not (scheme in _WEB_SCHEMES and port.isdigit()):
        return rest.rpartition("@")[0], rest.rpartition("@")[2]
    return None, rest


def _redacted_member(url: str, hidden: str) -> str:
    fields = parse_qsl(url.removeprefix(_MEMBERS_START), keep_blank_values=True)
    if not fields:
        return url
    shown = [
        (name, _redacted_url(value, hidden) if name == "file" and "://" in value else redacted(value))
        for name, value in fields
    ]
    if shown == fields:
        return url
    return _MEMBERS_START + "&".join(f"{name}={quote_plus(value)}" for name, value in shown).replace(
        quote_plus(HIDDEN), HIDDEN
    )
