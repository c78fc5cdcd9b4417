"""What a model is shown before RL because no reward reaches what it never says: tags around
thoughts and answers, and calls of a tool.
"""

from __future__ import annotations

from collections.abc import Sequence

from vla.data.chat import ChatFormat
from vla.evaluation.result import EvaluationResult
from vla.generation.sampling import Sampling
from vla.sft.loop import SupervisedSettings
from vla.sft.stage import TrainingStage
from vla.text.calculator import calculate
from vla.text.problem import Problem
from vla.text.rlvr_evaluation import load_or_evaluate
from vla.text.rlvr_setup import RlvrSetup, max_completion_tokens, max_prompt_tokens
from vla.text.sft_losses import Example, fit_examples
from vla.training.run import Run

BATCH_SIZE = 16


def train_format(run: Run, setup: RlvrSetup) -> dict[str, EvaluationResult]:
    """A short SFT on training problems answered in the format (`text.format_sft_steps`).

    Its examples hold right answers, so what it alone does on held-out problems is a result.

    Raises ValueError when an example is longer than RL lets a prompt or a completion be.
    """
    settings, chat = setup.settings, setup.parts.chat
    if settings.format_sft_steps == 0:
        return {}
    make_examples = tag_examples if settings.tool is None else tool_call_examples
    examples = make_examples(setup.sets.train, chat)
    room = max_completion_tokens(settings)
    check_lengths(examples, room, max_prompt_tokens(settings, chat))
    batch = min(BATCH_SIZE, len(examples))
    fitting = SupervisedSettings(
        num_steps=settings.format_sft_steps,
        batch_size=batch,
        learning_rate=settings.format_sft_learning_rate,
        max_grad_norm=1.0,
        warmup_steps=int(0.1 * settings.format_sft_steps),
        learning_rate_name="text.format_sft_learning_rate",
    )
    policy = setup.parts.policy(Sampling(), room)  # temperature 1, whatever RL samples at
    with TrainingStage(run, "format", settings.format_sft_steps) as stage:
        fit_examples(policy, examples, fitting, run.seed("format"), stage, run.processes)
    result = load_or_evaluate(run, setup, "taught")
    run.progress.print_line(f"after the format examples: {result} on the same problems")
    return {"after the format examples": result.without_outputs()}


def tag_examples(problems: Sequence[Problem], chat: ChatFormat) -> list[Example]:
    """Right answers between <answer> and </answer>, behind a thought."""
    examples = []
    for problem in problems:
        thought = problem.facts.get("expression")
        thought = f"{thought} = {problem.answer}" if thought else f"The answer is {problem.answer}."
        text = f"<think>{thought}</think>\n<answer>{problem.answer}</answer>"
        examples.append(
            Example(chat.prompt(problem.prompt_messages), chat.reply(problem.prompt_messages, text))
        )
    return examples


def tool_call_examples(problems: Sequence[Problem], chat: ChatFormat) -> list[Example]:
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
        asked, called = (
            chat.prompt(problem.prompt_messages),
            chat.reply(problem.prompt_messages, call),
        )
        told = [*asked, *called, *chat.next_turn(result, finished=True)]
        behind = [*problem.prompt_messages, {"role": "assistant", "content": call}, result]
        examples += [Example(asked, called), Example(told, chat.reply(behind, problem.answer))]
    if not examples:
        raise ValueError(
            "text.format_sft_steps with text.tool=calculator shows how to calculate, and no family of text.families says"
            " what: add one of arithmetic (add2, mul3 ...), or set text.format_sft_steps=0"
        )
    return examples


def check_lengths(examples: Sequence[Example], room: int, width: int) -> None:
    """Raises ValueError naming the setting where an example is longer than what RL would let the
    model read or say."""
    longest = max(len(example.completion) for example in examples)
    if longest > room:
        raise ValueError(
            f"text.max_new_tokens ({room}) is too short for text.format_sft_steps: an example takes up to {longest} tokens"
        )
    asked = max(len(example.prompt) for example in examples)
    if asked > width:
        raise ValueError(
            f"text.max_prompt_tokens ({width}) is too short for text.format_sft_steps: an example's prompt, with what the"
            f" tool answered, takes up to {asked} tokens"
        )
