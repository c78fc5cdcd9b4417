"""Supervised fine-tuning of a text policy on completions, with the same log-probabilities as RL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla.data.chat import observe_prompts
from vla.policies.text import TextPolicy
from vla.sft.examples import train_on_examples
from vla.sft.loop import SupervisedSettings
from vla.sft.stage import TrainingStage
from vla.training.distributed import SINGLE_PROCESS, Processes


@dataclass(frozen=True)
class Example:
    """A prompt and its target completion, as token ids; the completion ends with its stop token."""

    prompt: list[int]
    completion: list[int]


def completion_logprobs(
    policy: TextPolicy, examples: Sequence[Example]
) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """(log-probabilities of the completion tokens, their mask), with gradient.

    Equal prompts are encoded once.
    """
    device = next(policy.parameters()).device
    width = max(len(example.prompt) for example in examples)
    observation = observe_prompts(
        [example.prompt for example in examples], width, policy.pad_id, device
    )
    length = max(len(example.completion) for example in examples)
    rows = [
        [*example.completion, *[policy.pad_id] * (length - len(example.completion))]
        for example in examples
    ]
    tokens = torch.tensor(rows, device=device)
    sizes = torch.tensor([len(example.completion) for example in examples], device=device)
    mask = torch.arange(length, device=device) < sizes[:, None]
    return policy.score(observation, {"tokens": tokens, "mask": mask}).logprobs, mask


def sequence_logprobs(policy: TextPolicy, examples: Sequence[Example]) -> Float[Tensor, "B"]:
    """Log-probability of every completion, summed over its tokens."""
    logprobs, mask = completion_logprobs(policy, examples)
    return (logprobs * mask).sum(1)


@torch.no_grad()
def mean_loss(policy: TextPolicy, examples: Sequence[Example], batch_size: int) -> float:
    """Cross-entropy per completion token over all examples; its exponential is the perplexity."""
    total = sum(
        -float(sequence_logprobs(policy, examples[i : i + batch_size]).sum())
        for i in range(0, len(examples), batch_size)
    )
    return total / max(sum(len(example.completion) for example in examples), 1)


def fit_examples(
    policy: TextPolicy,
    examples: Sequence[Example],
    settings: SupervisedSettings,
    seed: int,
    stage: TrainingStage | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> None:
    """Cross-entropy per completion token (nats); prompts carry no loss."""
    train_on_examples(
        policy,
        len(examples),
        lambda rows: -sequence_logprobs(policy, [examples[i] for i in rows]).sum(),
        settings,
        seed,
        stage,
        batch_weight=lambda rows: sum(len(examples[i].completion) for i in rows),
        processes=processes,
        threads=policy.threads,
    )
