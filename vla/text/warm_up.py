"""What a model is shown before RL because no reward reaches what it never says: tags around thoughts and answers, and
calls of a tool.
"""

from __future__ import annotations

from collections.abc import Sequence

from vla.data.chat import ChatFormat
from vla.text.calculator import calculate
from vla.text.problems import Problem
from vla.text.supervised import Example


def tag_examples(problems: Sequence[Problem], chat: ChatFormat) -> list[Example]:
    """Right answers between <answer> and </answer>, behind a thought."""
    stop, examples = chat.tokenizer.eos_token_id, []
    for problem in problems:
        thought = problem.facts.get("expression")
        thought = f"{thought} = {problem.answer}" if thought else f"The answer is {problem.answer}."
        text = f"<think>{thought}</think>\n<answer>{problem.answer}</answer>"
        examples.append(Example(_asked(problem, chat), [*chat.encode(text), stop]))
    return examples


def call_examples(problems: Sequence[Problem], chat: ChatFormat) -> list[Example]:
    """Calls of the calculator and, as further examples, what is said once it has answered; its words carry no loss.

    Raises ValueError where no problem says what there is to calculate.
    """
    stop, examples = chat.tokenizer.eos_token_id, []
    for problem in problems:
        expression = problem.facts.get("expression")
        if expression is None:
            continue
        asked, call = _asked(problem, chat), [*chat.encode(f"<calc>{expression}</calc>"), stop]
        told = chat.next_turn({"role": "tool", "content": calculate(str(expression))}, finished=True)
        examples += [Example(asked, call), Example([*asked, *call, *told], [*chat.encode(problem.answer), stop])]
    if not examples:
        raise ValueError(
            "text.format_steps with text.tool=calculator shows how to calculate, and no family of text.families says"
            " what: add one of arithmetic (add2, mul3 ...), or set text.format_steps=0"
        )
    return examples


def check_room(examples: Sequence[Example], room: int, width: int) -> None:
    """Raises ValueError naming the setting where an example is longer than what RL would let the model read or say."""
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


def _asked(problem: Problem, chat: ChatFormat) -> list[int]:
    return chat.prompt(problem.asked)
