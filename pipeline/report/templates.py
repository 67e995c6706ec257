"""Renders the HTML of pages: one Jinja2 environment, which escapes whatever a template prints."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pipeline.report.values import counted, is_numeric, percent, short, shown

CAVEAT = "Labels and probabilities are a model's guess from pictures. They do not say what a person felt."


def render(template: str, **values: Any) -> str:
    """A page out of a template of this folder and its values, which are escaped where the template prints them.

    Style, script and Plotly are in the page, and its content security policy names them by their hashes, so that
    nothing else in it can act.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # With "<" as \u003c, which a name could else close the element with.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"counted": counted, "percent": percent, "short": short}
    environment.tests["numeric"] = is_numeric
    style, script, plotly = _file("page.css"), _file("page.js"), get_plotlyjs()
    environment.globals |= {
        "caveat": CAVEAT,
        "style": Markup(style),
        "script": Markup(script),
        "plotly": Markup(plotly),
        # Plotly would add the style of its maps, which the policy forbids, unless an element of this id is there.
        "map_style": re.findall(r'getElementById\("([0-9a-f]{64})"\)', plotly),
        "policy": _policy(style, script, plotly),
    }
    return environment


def _policy(style: str, script: str, plotly: str) -> str:
    """The content security policy. Plotly fills an empty style element rule by rule, hence the hash of nothing, and
    draws a PNG by way of an image in memory (blob:)."""
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: blob:;"
        f" style-src {_hash(style)} {_hash('')}; script-src {_hash(script)} {_hash(plotly)}"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _file(name: str) -> str:
    return resources.files("pipeline.report").joinpath("static", name).read_text(encoding="utf-8")
