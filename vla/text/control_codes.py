"""Control codes: labels of how good a sample is, put behind the question. The model learns its own
samples behind them, and is then asked for the best.

Reward-conditioned fine-tuning as in Decision Transformer (Chen 2021), CTRL (Keskar 2019) and Quark
(Lu 2022). What a sample owes to its label is little beside all else that it says, so the model
learns besides to tell from a sample which label it had, by how likely it finds it behind each (the
discriminative loss of GeDi, Krause 2021). Asked for a label, it is guided away from what the others
would say (`text.guidance`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vla.data.chat import ChatFormat
from vla.evaluation.result import EvaluationResult, compare_results
from vla.generation.guidance import GuidedEngine
from vla.policies.text import TextPolicy
from vla.sft.examples import train_on_examples
from vla.sft.loop import SupervisedSettings
from vla.sft.stage import TrainingStage
from vla.text.open_ended_evaluation import evaluate_open_answers
from vla.text.open_ended_run import OpenEndedRun
from vla.text.prompts import sample_completions
from vla.text.sft_losses import Example, sequence_logprobs


def control_code(level: int, num_levels: int) -> str:
    """The label of a level, 1 the worst."""
    return f"quality: {level} of {num_levels}"


def with_control_code(chat: ChatFormat, level: int, num_levels: int) -> ChatFormat:
    """A chat format that puts the label behind the question, so that one reading of it serves all
    labels."""
    return replace(chat, closing=f"({control_code(level, num_levels)})")


def reward_levels(rewards: Sequence[float], num_levels: int) -> list[int]:
    """The quantile (1 worst ... num_levels best) that each reward falls into; equal rewards share a
    level."""
    inner = np.quantile(rewards, np.arange(1, num_levels) / num_levels)
    return (np.searchsorted(inner, rewards, side="left") + 1).tolist()


@dataclass(frozen=True)
class LabelledCompletion:
    """A completion, the prompts with every label, and the number of the label that is its own."""

    prompts: list[list[int]]
    completion: list[int]
    own: int


def fit_control_codes(
    policy: TextPolicy,
    samples: Sequence[LabelledCompletion],
    discrimination: float,
    beta: float,
    settings: SupervisedSettings,
    seed: int,
    stage: TrainingStage | None = None,
) -> None:
    """Cross-entropy per token behind the own label, a mean over samples, plus `discrimination`
    times that of the own label among all, whose logits are `beta` times the log-probabilities of
    the completion.
    """

    def loss_of(rows: Sequence[int]) -> Float[Tensor, ""]:
        batch = [samples[i] for i in rows]
        shown = [
            Example(prompt, sample.completion) for sample in batch for prompt in sample.prompts
        ]
        logprobs = sequence_logprobs(policy, shown).view(len(batch), -1)
        own = torch.tensor([sample.own for sample in batch], device=logprobs.device)
        lengths = torch.tensor([len(sample.completion) for sample in batch], device=logprobs.device)
        learned = -logprobs.gather(1, own[:, None])[:, 0] / lengths
        return learned.sum() + discrimination * functional.cross_entropy(
            beta * logprobs, own, reduction="sum"
        )

    train_on_examples(policy, len(samples), loss_of, settings, seed, stage, threads=policy.threads)


def make_guided_engine(
    mode: OpenEndedRun, chats: Sequence[ChatFormat], guidance: float
) -> GuidedEngine:
    """Who answers the held-out prompts behind one label against the others."""
    others = {}
    for question in mode.prompts.evaluation:
        asked = [tuple(chat.prompt(mode.prompts.messages_for(question))) for chat in chats]
        others |= {own: [ids for ids in asked if ids != own] for own in asked}
    return GuidedEngine(mode.parts.model, others, guidance, mode.parts.autocast)


def evaluate_control_codes(
    mode: OpenEndedRun, chats: Sequence[ChatFormat], guidance: float
) -> dict[str, Any]:
    """Gold reward of the greedy answers to the held-out prompts behind every label, and of the best
    label's against the worst's, prompt by prompt.
    """
    how = "" if guidance == 1 else f", guidance {guidance:g}"
    width = mode.generation.max_prompt_tokens
    results: list[EvaluationResult] = []
    for level, chat in enumerate(chats, start=1):
        said = sample_completions(
            mode.sampling_policy,
            chat,
            mode.prompts.evaluation,
            1,
            width,
            greedy=True,
            messages_for=mode.prompts.messages_for,
        )
        results.append(evaluate_open_answers(said, mode.gold))
        mode.run.progress.print_line(
            f"asked for {control_code(level, len(chats))}{how}: gold reward {results[-1]}"
        )
    change = compare_results(results[0], results[-1], noun="prompts")
    mode.run.progress.print_line(f"the best code against the worst{how}: {change}")
    by_code = {
        control_code(level, len(chats)): result.without_outputs()
        for level, result in enumerate(results, start=1)
    }
    return {f"gold reward by code{how}": by_code, f"best code against worst{how}": change}
