"""Format rewards: tags around reasoning and answer, JSON against a schema, and tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace

from vla.rewards.code_blocks import find_code_blocks
from vla.rewards.sample import Sample, Verifier

THINK_ANSWER = re.compile(
    r"\s*<think>(?P<think>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def think_format(sample: Sample) -> float:
    """1 when the completion is exactly <think>...</think> <answer>...</answer>, each tag once and
    neither part empty.

    The format reward of DeepSeek-R1 (Guo et al. 2025, section 2.2.2).
    """
    match = THINK_ANSWER.fullmatch(sample.completion)
    if match is None or any(sample.completion.count(tag) != 1 for tag in TAGS):
        return 0.0
    return float(bool(match["think"].strip()) and bool(match["answer"].strip()))


def think_tags(sample: Sample) -> float:
    """A quarter for each of the four tags that occurs exactly once: a dense form of
    `think_format`."""
    return sum(sample.completion.count(tag) == 1 for tag in TAGS) / len(TAGS)


def inside_answer(verifier: Verifier) -> Verifier:
    """Apply a verifier to the text between the last <answer> and </answer>; 0 without them."""

    def verify(sample: Sample) -> float:
        answers = re.findall(r"<answer>(.*?)</answer>", sample.completion, re.DOTALL)
        return verifier(replace(sample, completion=answers[-1])) if answers else 0.0

    return verify


def json_value(sample: Sample) -> float:
    """1 when the completion is JSON (a code fence around is allowed) that satisfies
    `facts["schema"]`."""
    value, ok = _parse(_without_fence(sample.completion))
    return float(ok and _satisfies(value, sample.facts.get("schema", {})))


def tool_call(sample: Sample) -> float:
    """1 when the completion holds exactly one valid <tool_call>{"name": ..., "arguments":
    {...}}</tool_call>.

    `facts["tools"]` maps the name of each tool to the JSON schema of its arguments. `facts["call"]`
    is optional: the right call, which name and arguments must equal. Malformed JSON, an unknown
    tool or arguments against the schema score 0.
    """
    calls = TOOL_CALL.findall(sample.completion)
    if len(calls) != 1:
        return 0.0
    value, ok = _parse(calls[0])
    if not ok or not isinstance(value, Mapping) or set(value) != {"name", "arguments"}:
        return 0.0
    tools = sample.facts.get("tools", {})
    right = sample.facts.get("call")
    if not isinstance(value["name"], str) or value["name"] not in tools:
        return 0.0
    if not _satisfies(value["arguments"], tools[value["name"]]):
        return 0.0
    return float(right is None or value == right)


def _without_fence(text: str) -> str:
    blocks = find_code_blocks(text)
    return blocks[0].content if len(blocks) == 1 and blocks[0].is_all else text


def _parse(text: str) -> tuple[object, bool]:
    try:
        return json.loads(text), True
    except (ValueError, RecursionError):
        return None, False


def _satisfies(value: object, schema: Mapping[str, object]) -> bool:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(schema).is_valid(value)
