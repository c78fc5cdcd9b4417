"""Fenced blocks of Markdown as models write them: backticks or tildes, any label, perhaps
unclosed."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

_FENCE = re.compile(
    r"(?<![`~])(?P<fence>`{3,}+|~{3,}+)[ \t]*(?P<label>[^\n`]*)\n"
    r"(?P<content>.*?)(?:(?P=fence)[`~]*|\Z)",
    re.DOTALL,
)


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block.

    `label` is the first word after the fence in lower case; `is_all`: no text surrounds the block.
    """

    label: str
    content: str
    is_all: bool


def find_code_blocks(text: str) -> list[CodeBlock]:
    """Find the blocks of a text in their order; an unclosed one runs to the end."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    blocks = []
    for match in _FENCE.finditer(text):
        label = re.sub(r"[{}.]", "", match["label"].lower()).split()[:1]
        is_all = not text[: match.start()].strip() and not text[match.end() :].strip()
        blocks.append(CodeBlock("".join(label), textwrap.dedent(match["content"]), is_all))
    return blocks
