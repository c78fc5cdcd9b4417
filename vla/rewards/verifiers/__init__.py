"""The verifiers that score completions, by name.

`VERIFIERS` is the only list of them. An installed package adds one through an entry point of the
group `vla.verifiers`: a function from a `vla.rewards.sample.Sample` to a score in [0, 1].
"""

from __future__ import annotations

from vla.plugins import extend_table

GROUP = "vla.verifiers"
"""Entry points of users' verifiers."""
VERIFIERS = {
    "exact": "vla.rewards.verifiers.answer_matching:exact",
    "contains": "vla.rewards.verifiers.answer_matching:contains",
    "last_number": "vla.rewards.verifiers.answer_matching:last_number",
    "only_number": "vla.rewards.verifiers.answer_matching:only_number",
    "choice": "vla.rewards.verifiers.answer_formats:choice",
    "date": "vla.rewards.verifiers.answer_formats:date",
    "quantity": "vla.rewards.verifiers.answer_formats:quantity",
    "think_format": "vla.rewards.verifiers.format_rewards:think_format",
    "think_tags": "vla.rewards.verifiers.format_rewards:think_tags",
    "json_value": "vla.rewards.verifiers.format_rewards:json_value",
    "tool_call": "vla.rewards.verifiers.format_rewards:tool_call",
    "bleu": "vla.rewards.verifiers.text_metrics:bleu",
    "chrf": "vla.rewards.verifiers.text_metrics:chrf",
    "rouge_l": "vla.rewards.verifiers.text_metrics:rouge_l",
    "math_equal": "vla.rewards.verifiers.external_verifiers:math_equal",
    "reasoning_gym_score": "vla.rewards.verifiers.external_verifiers:reasoning_gym_score",
}
ANSWER_PREFIX = "answer."
"""`answer.last_number` applies `last_number` to the text between the answer tags only."""


def verifier_table() -> dict[str, str]:
    """{name: "module:function"} of our verifiers and of installed packages'."""
    return extend_table(VERIFIERS, GROUP)
