"""SFT on the answer format before RL: tags around thoughts and answers, and tool calls.

A reward cannot reinforce a format that the model never samples.
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
    """Train on correct answers in the format for `text.format_sft_steps`; returns its results.

    Its examples hold correct answers, so its success on held-out problems is evaluated on its own.

    Raises:
        ValueError: an example is longer than the limits of prompts or completions in RL.
    """
    settings = setup.settings
    chat = setup.parts.chat
    if settings.format_sft_steps == 0:
        return {}
    make_examples = tag_examples if settings.tool is None else tool_call_examples
    examples = make_examples(setup.sets.train, chat)
    limit = max_completion_tokens(settings)
    check_lengths(examples, limit, max_prompt_tokens(settings, chat))
    batch = min(BATCH_SIZE, len(examples))
    fitting = SupervisedSettings(
        num_steps=settings.format_sft_steps,
        batch_size=batch,
        learning_rate=settings.format_sft_learning_rate,
        max_grad_norm=1.0,
        warmup_steps=int(0.1 * settings.format_sft_steps),
        learning_rate_name="text.format_sft_learning_rate",
    )
    policy = setup.parts.policy(Sampling(), limit)  # temperature 1, whatever the temperature of RL
    with TrainingStage(run, "format", settings.format_sft_steps) as stage:
        fit_examples(policy, examples, fitting, run.seed("format"), stage, run.processes)
    result = load_or_evaluate(run, setup, "taught")
    run.progress.print_line(f"after the format examples: {result} on the same problems")
    return {"after the format examples": result.without_outputs()}


def tag_examples(problems: Sequence[Problem], chat: ChatFormat) -> list[Example]:
    """Correct answers between <answer> and </answer>, behind a thought."""
    examples = []
    for problem in problems:
        thought = f"The answer is {problem.answer}."
        if expression := problem.facts.get("expression"):
            thought = f"{expression} = {problem.answer}"
        text = f"<think>{thought}</think>\n<answer>{problem.answer}</answer>"
        examples.append(
            Example(chat.prompt(problem.prompt_messages), chat.reply(problem.prompt_messages, text))
        )
    return examples


def tool_call_examples(problems: Sequence[Problem], chat: ChatFormat) -> list[Example]:
    """Calls of the calculator and, as further examples, the replies to its results.

    The tokens of the calculator are part of the prompt and carry no loss.

    Raises:
        ValueError: no problem holds an expression.
    """
    examples = []
    for problem in problems:
        expression = problem.facts.get("expression")
        if expression is None:
            continue
        call = f"<calc>{expression}</calc>"
        result = {"role": "tool", "content": calculate(str(expression))}
        prompt = chat.prompt(problem.prompt_messages)
        call_ids = chat.reply(problem.prompt_messages, call)
        next_prompt = [*prompt, *call_ids, *chat.next_turn(result, finished=True)]
        messages = [*problem.prompt_messages, {"role": "assistant", "content": call}, result]
        examples.append(Example(prompt, call_ids))
        examples.append(Example(next_prompt, chat.reply(messages, problem.answer)))
    if not examples:
        raise ValueError(
            "text.format_sft_steps with text.tool=calculator needs expressions, and no family of "
            "text.families has any: add one of arithmetic (add2, mul3 ...), or set "
            "text.format_sft_steps=0"
        )
    return examples


def check_lengths(examples: Sequence[Example], max_completion: int, max_prompt: int) -> None:
    """Raise ValueError naming the setting whose limit (tokens) an example exceeds."""
    longest = max(len(example.completion) for example in examples)
    if longest > max_completion:
        raise ValueError(
            f"text.max_new_tokens ({max_completion}) is too short for text.format_sft_steps: "
            f"an example takes up to {longest} tokens"
        )
    longest = max(len(example.prompt) for example in examples)
    if longest > max_prompt:
        raise ValueError(
            f"text.max_prompt_tokens ({max_prompt}) is too short for text.format_sft_steps: an "
            f"example's prompt, with the answer of the tool, takes up to {longest} tokens"
        )
