"""What a model is shown before RL because no reward reaches what it never says: tags around
thoughts and answers, and calls of a tool.
"""

from __future__ import annotations

from collections.abc import Sequence

from vla.data.chat import ChatFormat
from vla.text.calculator import calculate
from vla.text.problems import Problem
from vla.text.supervised import Example


def tag_examples(problems: Sequence[Problem], chat: ChatFormat) -> list[Example]:
    """Right answers between <answer> and </answer>, behind a thought."""
    examples = []
    for problem in problems:
        thought = problem.facts.get("expression")
        thought = f"{thought} = {problem.answer}" if thought else f"The answer is {problem.answer}."
        text = f"<think>{thought}</think>\n<answer>{problem.answer}</answer>"
        examples.append(Example(chat.prompt(problem.asked), chat.reply(problem.asked, text)))
    return examples


def call_examples(problems: Sequence[Problem], chat: ChatFormat) -> list[Example]:
    """Calls of the calculator and, as further examples, what is said once it has answered; its
    words carry no loss.

    Raises ValueError where no problem says what there is to calculate.
    """
    examples = []
    for problem in problems:
        expression = problem.facts.get("expression")
        if expression is None:
            continue
        call, result = (
            f"<calc>{expression}</calc>",
            {"role": "tool", "content": calculate(str(expression))},
        )
        asked, called = chat.prompt(problem.asked), chat.reply(problem.asked, call)
        told = [*asked, *called, *chat.next_turn(result, finished=True)]
        behind = [*problem.asked, {"role": "assistant", "content": call}, result]
        examples += [Example(asked, called), Example(told, chat.reply(behind, problem.answer))]
    if not examples:
        raise ValueError(
            "text.format_steps with text.tool=calculator shows how to calculate, and no family of text.families says"
            " what: add one of arithmetic (add2, mul3 ...), or set text.format_steps=0"
        )
    return examples


def check_room(examples: Sequence[Example], room: int, width: int) -> None:
    """Raises ValueError naming the setting where an example is longer than what RL would let the
    model read or say."""
    longest = max(len(example.completion) for example in examples)
    if longest > room:
        raise ValueError(
            f"text.max_new_tokens ({room}) is too short for text.format_steps: an example takes up to {longest} tokens"
        )
    asked = max(len(example.prompt) for example in examples)
    if asked > width:
        raise ValueError(
            f"text.max_prompt_tokens ({width}) is too short for text.format_steps: an example's prompt, with what the"
            f" tool answered, takes up to {asked} tokens"
        )
