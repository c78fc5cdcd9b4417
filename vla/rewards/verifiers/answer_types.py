"""Selection of the verifier by the form of the answer."""

from __future__ import annotations

import re

from vla.rewards.verifiers.answer_formats import is_date, read_choice, read_quantity
from vla.rewards.verifiers.external_verifiers import is_expression
from vla.rewards.verifiers.numbers import final_answer_text, normalize_number_text, parse_number


def select_verifier(answer: str) -> str:
    """Select the verifier for an answer.

    A number or fraction has `last_number`; one letter `choice`; a date `date`; a number with a unit
    `quantity`; LaTeX or another expression `math_equal`; any other text `exact`.
    """
    text = answer.strip()
    if parse_number(text) is not None:
        return "last_number"
    if read_choice(text) is not None:
        return "choice"
    if is_date(text):
        return "date"
    if read_quantity(text) is not None:
        return "quantity"
    return "math_equal" if is_expression(text) else "exact"


def extract_final_answer(answer: str) -> str:
    """Extract the answer of a solution: after the last #### (GSM8K), or inside a \\boxed{} that is
    the whole text."""
    if "####" in answer:
        return answer.rsplit("####", 1)[1].strip() or answer
    boxed = re.fullmatch(r"\s*\$*\\boxed\s*\{.*\}\$*\s*", answer, re.DOTALL)
    return final_answer_text(normalize_number_text(answer)) if boxed else answer
