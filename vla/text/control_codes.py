"""Control codes: quality labels behind the question, on which the model is conditioned.

Reward-conditioned fine-tuning as in Decision Transformer (Chen 2021), CTRL (Keskar 2019) and Quark
(Lu 2022): the model learns its own samples behind their codes, then answers behind the best code.
A code explains little of a sample's likelihood. A discriminative loss (GeDi, Krause 2021) therefore
classifies the code of a sample by its likelihood behind every code. In generation, classifier-free
guidance contrasts a code with the others (`text.guidance`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """The text of a code; level 1 is the worst."""
    return f"quality: {level} of {num_levels}"


def with_control_code(chat: ChatFormat, level: int, num_levels: int) -> ChatFormat:
    """A chat format with the code behind the question, so that all codes share its prefix."""
    return replace(chat, closing=f"({control_code(level, num_levels)})")


def reward_levels(rewards: Sequence[float], num_levels: int) -> list[int]:
    """The quantile of each reward, 1 (worst) to `num_levels`; equal rewards share a level."""
    inner = np.quantile(rewards, np.arange(1, num_levels) / num_levels)
    return (np.searchsorted(inner, rewards, side="left") + 1).tolist()


@dataclass(frozen=True)
class LabelledCompletion:
    """A completion, its prompt with every code, and the index of the code of its quality."""

    prompts: list[list[int]]
    completion: list[int]
    code: int


def fit_control_codes(
    policy: TextPolicy,
    samples: Sequence[LabelledCompletion],
    discrimination: float,
    beta: float,
    settings: SupervisedSettings,
    seed: int,
    stage: TrainingStage | None = None,
) -> None:
    """Train the policy in place on completions behind their codes.

    The loss of a sample is its cross-entropy per token behind its own code, plus `discrimination`
    times the cross-entropy of that code among all. The logits of the codes are `beta` times the
    log-probability of the completion behind each.
    """

    def batch_loss(rows: Sequence[int]) -> Float[Tensor, ""]:
        batch = [samples[i] for i in rows]
        examples = [
            Example(prompt, sample.completion) for sample in batch for prompt in sample.prompts
        ]
        logprobs = sequence_logprobs(policy, examples).view(len(batch), -1)  # [samples, codes]
        codes = torch.tensor([sample.code for sample in batch], device=logprobs.device)
        lengths = torch.tensor([len(sample.completion) for sample in batch], device=logprobs.device)
        generative = -logprobs.gather(1, codes[:, None])[:, 0] / lengths
        discriminative = functional.cross_entropy(beta * logprobs, codes, reduction="sum")
        return generative.sum() + discrimination * discriminative

    train_on_examples(
        policy, len(samples), batch_loss, settings, seed, stage, threads=policy.threads
    )


def make_guided_engine(
    open_ended: OpenEndedRun, chats: Sequence[ChatFormat], guidance: float
) -> GuidedEngine:
    """The engine that contrasts each code with the others on the held-out prompts."""
    others: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for question in open_ended.prompts.evaluation:
        coded = [tuple(chat.prompt(open_ended.prompts.messages_for(question))) for chat in chats]
        others |= {prompt: [ids for ids in coded if ids != prompt] for prompt in coded}
    return GuidedEngine(open_ended.parts.model, others, guidance, open_ended.parts.autocast)


def evaluate_control_codes(
    open_ended: OpenEndedRun, chats: Sequence[ChatFormat], guidance: float
) -> dict[str, object]:
    """Gold rewards of greedy answers to the held-out prompts, by code, as results of the run.

    They include the paired comparison of the best code with the worst.
    """
    suffix = "" if guidance == 1 else f", guidance {guidance:g}"
    width = open_ended.generation.max_prompt_tokens
    results: list[EvaluationResult] = []
    for level, chat in enumerate(chats, start=1):
        answers = sample_completions(
            open_ended.sampling_policy,
            chat,
            open_ended.prompts.evaluation,
            1,
            width,
            greedy=True,
            messages_for=open_ended.prompts.messages_for,
        )
        results.append(evaluate_open_answers(answers, open_ended.gold))
        open_ended.run.progress.print_line(
            f"behind {control_code(level, len(chats))}{suffix}: gold reward {results[-1]}"
        )
    change = compare_results(results[0], results[-1], noun="prompts")
    open_ended.run.progress.print_line(f"the best code against the worst{suffix}: {change}")
    by_code = {
        control_code(level, len(chats)): result.without_outputs()
        for level, result in enumerate(results, start=1)
    }
    return {f"gold reward by code{suffix}": by_code, f"best code against worst{suffix}": change}
