"""A calculator as a tool: <calc>12 * (3 + 4)</calc>. It evaluates four operations on numbers."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable

CALL = re.compile(r"<calc>(.*?)</calc>", re.DOTALL)
INSTRUCTION = (
    "You can calculate by writing <calc>expression</calc>, for example <calc>7 * 8</calc>."
)
MAX_LENGTH = 100
"""Longest expression, in characters."""
MAX_VALUE = 1e15
LONGEST_RESULT = len(str(-int(MAX_VALUE)))
"""Most characters of a result, and so an upper bound of its tokens."""

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate_calls(text: str) -> str | None:
    """The result of the last call in a text; None without a call (see `calculate`)."""
    calls = CALL.findall(text)
    return calculate(calls[-1]) if calls else None


def calculate(expression: str) -> str:
    """The value of an expression of numbers, + - * / and parentheses, as text.

    It is "error" for any other text, a division by zero, and values above `MAX_VALUE`.
    """
    if len(expression) > MAX_LENGTH:
        return "error"
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError, OverflowError):
        return "error"
    if abs(value) > MAX_VALUE:
        return "error"
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left), _value(right))
        case _:
            raise ValueError("not arithmetic")
