"""The viewer's page: one HTML file with style and scripts inside, and its episodes where it is to open from disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from vla.report.page import COLOURS

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("scene.js", "plots.js", "episode.js", "app.js")


def viewer_page(title: str, data: Mapping[str, Any] | None) -> str:
    """The page; `data` None asks the server that shows it, else the page holds its episodes and needs nobody."""
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    return Template((STATIC / "page.html").read_text()).substitute(
        title=escape(title),
        style=COLOURS + (STATIC / "style.css").read_text(),
        script="\n".join((STATIC / name).read_text() for name in SCRIPTS),
        data=text,
    )
