"""Removes credentials from URLs and texts before they are written or printed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SECRET_NAMES = (
    r"x-(?:amz|goog)-(?:signature|credential|security-token)|sig|signature|[\w-]*token|password|passwd|"
    r"[\w-]*secret[\w-]*|aws_?access_?key_?id|api_?key"
)


def redacted(text: str) -> str:
    """Text for people and files: no passwords, keys or tokens, and no query of a web address, which may be signed."""
    text = re.sub(r"(://)[^/\s'\"]*:[^/\s'\"]*@", r"\1…@", text)
    text = re.sub(r"(https?://)[^/@\s'\"…]+@", r"\1…@", text)
    text = re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1?…", text)
    text = re.sub(r"(%3A%2F%2F)[^\s&'\"]*%3A[^\s&'\"]*%40", r"\1…%40", text)  # in the address of an archive's member
    text = re.sub(r"(https?%3A%2F%2F[^\s&'\"]*?)%3F[^\s&'\"]*", r"\1%3F…", text)
    text = re.sub(rf"(?i)(?<![\w-])({_SECRET_NAMES})(=|['\"]\s*[:=]\s*['\"])[^\s&'\",;)…]+", r"\1\2…", text)
    return re.sub(r"\b(AKIA|ASIA)[A-Z0-9]{12,}", r"\1…", text)


def redacted_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config as it may be written down: each text without what `redacted` hides."""
    return {name: redacted(value) if isinstance(value, str) else value for name, value in values.items()}


def without_secrets(url: str) -> str:
    """The URL without its password and, on the web, without its query: what a plan may keep."""
    if "://" not in url:
        return url
    url = re.sub(r"(://)[^/]*:[^/]*@", r"\1", url)
    url = re.sub(r"(%3A%2F%2F)[^&]*%3A[^&]*%40", r"\1", url)  # An archive's member carries its archive's URL.
    url = re.sub(r"(https?%3A%2F%2F[^&]*?)%3F[^&]*", r"\1", url)
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url
