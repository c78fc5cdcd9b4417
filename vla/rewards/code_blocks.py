"""Fenced blocks of Markdown as models write them: backticks or tildes, any label, either line end,
perhaps unclosed."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

_FENCE = re.compile(
    r"(?<![`~])(?P<fence>`{3,}+|~{3,}+)[ \t]*(?P<label>[^\n`]*)\n(?P<content>.*?)(?:(?P=fence)[`~]*|\Z)",
    re.DOTALL,
)


@dataclass(frozen=True)
class CodeBlock:
    """`label` is the first word behind the fence, in small letters; `is_all`: nothing stands around
    the block."""

    label: str
    content: str
    is_all: bool


def find_code_blocks(text: str) -> list[CodeBlock]:
    """The blocks of a text in their order; one that is not closed runs to the end."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    found = []
    for match in _FENCE.finditer(text):
        label = re.sub(r"[{}.]", "", match["label"].lower()).split()[:1]
        is_all = not text[: match.start()].strip() and not text[match.end() :].strip()
        found.append(CodeBlock("".join(label), textwrap.dedent(match["content"]), is_all))
    return found
