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
    r"[A-Za-z][A-Za-z0-9+.-]{0,40}://[^\s'\"<>]*"
    r"|(?P<pair>(?:(?<![\w/.:%-])|(?<=:/)|(?<=[\s'\"]//))[\w+/=.~%-]{1,200}:[\w+/=.~%!-]{4,400}@)(?=[\w-])"
)


_MEMBERS_START = "archive://?"


# The start of a sign in percent codes, also of what was in percent codes already.
_CODE = "%(?:25)*"
_EQUALS = rf"(?:=|{_CODE}3D)"
_BEFORE_NAME = r"(?:(?<![\w-])|(?<=%[23][0-9A-F])|(?<=%25[23][0-9A-F]))"


# The query or fragment of a URL. In a store "?" and "#" may be part of a name: there it is what says `name=value`, or
# ends the URL like no file's name ends.
_WEB_QUERY = re.compile(rf"(?is)([?#])(?=.).*|({_CODE}(?:3F|23))[\w.~-]+{_EQUALS}.*")
_STORE_QUERY = re.compile(
    rf"(?is)([?#]|{_CODE}(?:3F|23))[\w.~%-]+{_EQUALS}.*|(?<=[^\s/])([?#])(?![^/?#]*\.\w{{2,5}}$)[^\s/?#]+$"
)
_PARAMETERS = re.compile(r"(;[\w.~%-]+=)[^/;?#]*")
_WITH_PARAMETERS = (*_WEB_SCHEMES, "ftp", "ftps", "sftp")
# In a text that has no URL, or one in percent codes.
_LOOSE_QUERY = re.compile(
    rf"(?i)(?<!://)((?:(?<=[\w/.):~-])[?]|{_CODE}(?:3F|23))[\w.~-]+{_EQUALS})"
    rf"(?!{HIDDEN}|[^\s'\"<>]*\.\w{{2,5}}(?:[\s'\"<>:,;)]|$))[^\s'\"<>]+"
)
_CODED_URL = re.compile(rf"(?i)([a-z\d]{_CODE}3A{_CODE}2F{_CODE}2F)([^\s&'\"]*)")
_CODED_USER = re.compile(rf"^.*({_CODE}40)")
_CODED_QUERY = re.compile(rf"(?i)({_CODE}3F).*")
_CODED_PARAMETERS = re.compile(rf"(?i)({_CODE}3B[\w.~-]+{_EQUALS})(?!{HIDDEN})[^\s&'\"%]+")


# What ends the name of a secret, and what is one as a whole. No part has any length, as a name may be a long one.
_ENDS = (
    r"token|password|passwd|pwd|passphrase|secret[\w-]{0,40}|api[_ -]?key|"
    r"(?:account|access|private|shared|ssh|rsa|pgp|gpg|hmac|aes|encryption|signing|storage|service|master)[_-]?key|"
    r"credentials?|connection_?string"
)
_WORDS = (
    r"x-(?:amz|goog)-(?:signature|credential|security-token)|sig|signature|pass|auth|aws_?access_?key_?id|"
    r"SharedAccessSignature|jsessionid|phpsessid|session(?:_?id)?|sid|sas|otp"
)


# What may stand between such a name and its value: =, :, and the quotes of JSON and Python.
_NAMED = re.compile(
    rf"(?i)((?:{_ENDS})|{_BEFORE_NAME}(?:{_WORDS}))((?:['\"]?\s*[:=]|{_CODE}3[AD])\s*+)((?:b?['\"])?+)"
    rf"(?!{HIDDEN})(?:(?<=')[^'\r\n{HIDDEN}]+|(?<=\")[^\"\r\n{HIDDEN}]+|[^\s&'\",;){HIDDEN}]+)"
)
# A word of letters and digits that follows such a name, and what a bare `key` is set to, unless it names a file.
_SAID = re.compile(
    r"(?i)(?<![\w-])(token|secret|password|passphrase|api[ _-]?key)((?: is)? +)"
    r"(?=[^\W_]*\d)(?=[^\W_]*[a-z])[\w.~+/-]{6,}+=*"
)
_KEY = re.compile(rf"(?i)(?<![\w-])(key=)(?!{HIDDEN})(?=[\w~+-]*\d|[\w~+-]{{16}})[\w~+-]{{6,}}+=*(?![\w./])")


# The whole of it: a scheme of authorization is followed by a blank and the credential.
_HEADER = re.compile(
    rf"(?i){_BEFORE_NAME}((?:proxy-)?authorization|(?:set-)?cookie)((?:['\"]?\s*[:=]|{_CODE}3[AD])\s*+)"
    rf"((?:b?['\"])?+)(?!{HIDDEN})(?:[^'\"\r\n{HIDDEN}]|(?<==)\"[^\"\r\n]*\")+"
)


_BEARER = re.compile(
    r"(?i)\b(?:(bearer|digest|negotiate)(:?\s+)(?=[\w.~+/-]*[\d=])[\w.~+/-]{6,}=*"
    r"|(basic)(:?\s+)(?=[\w.~+/-]*[\d=])[\w.~+/-]{8,}=*)"
)


_SHAPES = re.compile(
    r"\b(?:(AKIA|ASIA)[A-Z0-9]{12,}|(hf_)(?=[A-Za-z0-9]*[A-Z0-9]|[a-z]{16})[A-Za-z0-9]{6,}"
    r"|(gh[pousr]_)[A-Za-z0-9]{6,}|(github_pat_)\w{6,}|(gl(?:pat|rt|dt|ft)-)[\w-]{6,}"
    r"|(npm_|dckr_pat_|shp(?:at|ss|ca|pa)_|[rs]k_(?:live|test)_)\w{8,}|(pypi-|AGE-SECRET-KEY-)[\w-]{8,}"
    r"|(SG\.)[\w-]{8,}\.[\w-]{6,}|(do[opr]_v1_)\w{8,}|(xox[abeprs]-)[\w-]{6,}"
    r"|(sk-)[\w-]{16,}|(AIza)[\w-]{16,}|(ya29\.)[\w-]{8,}|(eyJ)[\w-]{6,}\.[\w-]{4,}\.[\w-]*)"
)


# The query of a URL in whose path there is a blank, and what is given to a flag.
_AFTER_BLANK = re.compile(rf"(://[^\n? ]*+ [^\n?]*+\?[\w.~%-]+=)(?!{HIDDEN})[^\s&'\"<>]+")
_FLAG = re.compile(
    rf"(?i)(?<![\w-])(--?[\w-]{{0,40}}?(?:password|passwd|passphrase|secret|token|api-?key)\s+)(?!{HIDDEN})[^\s'\"]+"
)
_USER_FLAG = re.compile(rf"(?<![\w-])((?:-u|--user|--proxy-user|-U)[ =]['\"]?[\w.@-]{{1,80}}:)(?!{HIDDEN})[^\s'\"]+")


_PRIVATE_KEY = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----).*?(?:(?=-----END)|$)", re.DOTALL)


def redacted(text: str) -> str:
    """Text for people and files: no passwords, keys or tokens, no userinfo of a URL and no value of its query."""
    text = _PRIVATE_KEY.sub(rf"\1{HIDDEN}", text)
    text = _URL.sub(lambda found: f"{HIDDEN}@" if found["pair"] else _redacted_url(found[0], HIDDEN), text)
    # The address of an archive's member, which holds a URL in percent codes, may have been cut.
    text = _CODED_URL.sub(_redacted_codes, text)
    for after in (_CODED_PARAMETERS, _AFTER_BLANK, _LOOSE_QUERY, _FLAG, _USER_FLAG):
        text = after.sub(rf"\1{HIDDEN}", text)
    text = _HEADER.sub(rf"\1\2\3{HIDDEN}", text)
    text = _BEARER.sub(lambda found: f"{found[1] or found[3]}{found[2] or found[4]}{HIDDEN}", text)
    text = _NAMED.sub(rf"\1\2\3{HIDDEN}", text)
    text = _KEY.sub(rf"\1{HIDDEN}", _SAID.sub(rf"\1\2{HIDDEN}", text))
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
    `?name=value` or `#name=value`, and what ends it like no file's name ends.
    """
    scheme = place.partition("://")[0].lower()
    place = (_WEB_QUERY if scheme in _WEB_SCHEMES else _STORE_QUERY).sub("", place)
    return _PARAMETERS.sub("", place) if scheme in _WITH_PARAMETERS else place


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
        query = _WEB_QUERY if scheme_name in _WEB_SCHEMES else _STORE_QUERY
        rest = query.sub(lambda found: f"{found[1] or found[2]}{hidden}", rest)
        rest = _PARAMETERS.sub(rf"\1{hidden}", rest)
    return f"{scheme}://{f'{user}@' if user else ''}{rest}"


def _split_userinfo(scheme: str, rest: str) -> tuple[str | None, str]:
    """The userinfo of what follows the "://" (None where there is none), and the rest."""
    authority = rest.partition("/")[0]
    before_query = re.split("[?#]", authority, maxsplit=1)[0]
    if "@" not in authority and (coded := re.match(rf"(.*){_CODE}40", authority)) and re.search("(?i):|3A", coded[1]):
        return coded[1], rest[coded.end() :]
    if "@" in authority and ("@" in before_query or ":" in before_query):
        user, _, host = authority.rpartition("@")
        return user, host + rest[len(authority) :]
    # A secret key of S3 may hold slashes, which a port does not; stores other than web servers have no ports.
    port = before_query.partition(":")[2]
    if ":" in before_query and "@" in rest and not (scheme in _WEB_SCHEMES and port.isdigit()):
        return rest.rpartition("@")[0], rest.rpartition("@")[2]
    return None, rest


def _redacted_codes(found: re.Match[str]) -> str:
    rest = _CODED_QUERY.sub(rf"\1{HIDDEN}", found[2])
    return found[1] + _CODED_USER.sub(rf"{HIDDEN}\1", rest)


def _redacted_member(url: str, hidden: str) -> str:
    fields = parse_qsl(url.removeprefix(_MEMBERS_START), keep_blank_values=True)
    if not fields:
        return url
    shown = [(name, _redacted_part(name, value, hidden)) for name, value in fields]
    if shown == fields:
        return url
    return _MEMBERS_START + "&".join(f"{name}={quote_plus(value)}" for name, value in shown).replace(
        quote_plus(HIDDEN), HIDDEN
    )


def _redacted_part(name: str, value: str, hidden: str) -> str:
    if name != "file" or "://" not in value:
        return redacted(value)
    # No archive's own address is that of a member; one in the other would have no end.
    return hidden if value.startswith(_MEMBERS_START) else _redacted_url(value, hidden)
