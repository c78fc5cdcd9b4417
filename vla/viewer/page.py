"""The viewer's page: one HTML file with style, scripts and, in standalone pages, the episodes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template

from vla.files.reading import JsonMapping
from vla.report.page import COLOURS

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("scene.js", "plots.js", "episode.js", "app.js")


def viewer_page(title: str, data: JsonMapping | None) -> str:
    """The page; with `data` None it fetches its episodes from the server, else it contains them."""
    return Template((STATIC / "page.html").read_text()).substitute(
        title=escape(title),
        style=COLOURS + (STATIC / "style.css").read_text(),
        script="\n".join((STATIC / name).read_text() for name in SCRIPTS),
        data=to_script_json(data),
    )


def to_script_json(value: object) -> str:
    """JSON for a page's script.

    "<" is escaped, because "</script>" or "<!--<script" in a text would end or hide the page's
    scripts. NaN and infinity, which JSON lacks, become null.
    """
    return json.dumps(replace_non_finite(value), separators=(",", ":"), allow_nan=False).replace(
        "<", "\\u003c"
    )


def replace_non_finite(value: object) -> object:
    """Nested mappings and lists with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: replace_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
