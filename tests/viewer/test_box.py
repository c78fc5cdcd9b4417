"""What is typed into the page, or the terminal, becomes the instruction; other sites cannot
type."""

import urllib.error
import urllib.request

import pytest

from vla.viewer.instruction_box import MAX_BYTES, InstructionBox


def post(box: InstructionBox, text: str, origin: str | None = None) -> int:
    headers = {} if origin is None else {"Origin": origin}
    with urllib.request.urlopen(
        urllib.request.Request(box.address + "say", text.encode(), headers)
    ) as answer:
        return answer.status


def test_lines_come_from_the_page_and_from_the_terminal():
    box = InstructionBox(terminal=["lift the red cube\n"])
    try:
        lines = iter(box)
        assert next(lines) == "lift the red cube"
        assert post(box, "  put it\n elsewhere ", origin=box.address.rstrip("/")) == 200
        assert post(box, "") == 200
        assert [next(lines), next(lines)] == ["put it elsewhere", ""]
        with urllib.request.urlopen(box.address) as answer:
            assert "What shall the robot do?" in answer.read().decode()
    finally:
        box.close()


@pytest.mark.parametrize(
    ("text", "origin"), [("x", "http://elsewhere.example"), ("x" * (MAX_BYTES + 1), None)]
)
def test_other_sites_and_endless_texts_are_refused(text, origin):
    box = InstructionBox(terminal=[])
    try:
        with pytest.raises(urllib.error.HTTPError, match="403"):
            post(box, text, origin)
        assert box.typed.empty()
    finally:
        box.close()
