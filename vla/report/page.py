"""A standalone HTML page with its style, images and videos inside, light and dark."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from vla.files.reading import JsonMapping

HERE = Path(__file__).parent
COLOURS = (HERE / "colours.css").read_text()
"""The colours of all pages, light and dark, as CSS variables."""
STYLE = COLOURS + (HERE / "page.css").read_text()


class Markup(str):
    """Text that is HTML already; all other text is escaped."""

    __slots__ = ()


def page(title: str, lead: str, parts: Sequence[str]) -> str:
    """A whole document: a title, a lead line, and sections."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main><header><h1>{escape(title)}</h1><p "
        f"class=lead>{to_html(lead)}</p></header>\n{body}\n</main></body>"
        "</html>\n"
    )


def section(title: str, *parts: str, note: str = "") -> str:
    """A heading with its parts; empty without parts."""
    inside = "\n".join(part for part in parts if part)
    explained = f"<p class=note>{to_html(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{explained}{inside}</section>" if inside else ""


def folded_section(title: str, *parts: str) -> str:
    """A section that is closed until it is clicked."""
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>"


def to_html(value: object) -> str:
    """A value as HTML: markup unchanged, numbers with four digits, mappings in lines, the rest
    escaped."""
    if isinstance(value, Markup):
        return str(value)
    if isinstance(value, Mapping):
        return (
            "<br>".join(f"{escape(str(key))}: {to_html(item)}" for key, item in value.items())
            or "none"
        )
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(to_html(item) for item in value)
    return escape(str(value))


def fact_list(values: JsonMapping) -> str:
    """{name: value} as a list of two columns; mappings are shown in lines."""
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{to_html(value)}</dd>" for name, value in values.items()
    )
    return f"<dl>{rows}</dl>" if rows else ""


def table(header: Sequence[str], rows: Sequence[Sequence[object]], classes: str = "") -> str:
    """A table with cells by `to_html`; empty without rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{to_html(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{to_html(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        "<div class=wide><table "
        f'class="{classes}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def number_tiles(values: Mapping[str, tuple[str, str]]) -> str:
    """A few large numbers: {title: (number, text below)}."""
    inside = "".join(
        "<div "
        f"class=tile><p>{escape(name)}</p><b>{to_html(number)}</b><small>{to_html(under)}</small>"
        "</div>"
        for name, (number, under) in values.items()
    )
    return f"<div class=tiles>{inside}</div>" if inside else ""


def command_block(text: str) -> str:
    """A command to copy."""
    return f"<pre class=command>{escape(text)}</pre>"


def data_uri(path: Path) -> str:
    """A file as a data URI."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def videos(paths: Mapping[str, Path]) -> str:
    """Videos inside the page, each with its caption."""
    inside = "".join(
        f'<figure><video src="{data_uri(path)}" controls muted loop playsinline '
        "preload=metadata></video>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, path in paths.items()
    )
    return f"<div class=films>{inside}</div>" if inside else ""


def grid(*parts: str) -> str:
    """Charts side by side where there is room."""
    inside = "".join(part for part in parts if part)
    return f"<div class=grid>{inside}</div>" if inside else ""
