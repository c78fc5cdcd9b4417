"""Supervised fine-tuning of a text policy on prompts and completions, scored exactly as RL scores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vla.data.chat import observe_prompts
from vla.policies.text import TextPolicy
from vla.train.optim import Schedule, make_optimizer


@dataclass(frozen=True)
class Example:
    """A prompt and what should follow it, as token ids; the completion ends with its stop token."""

    prompt: list[int]
    completion: list[int]


def completion_logprobs(policy: TextPolicy, examples: Sequence[Example]) -> tuple[Float[Tensor, "B L"], Tensor]:
    """(log-probability of every token of the completions, its mask), with gradient."""
    device = next(policy.parameters()).device
    width = max(len(example.prompt) for example in examples)
    observation = observe_prompts([example.prompt for example in examples], width, policy.pad_id, device)
    length = max(len(example.completion) for example in examples)
    rows = [[*example.completion, *[policy.pad_id] * (length - len(example.completion))] for example in examples]
    tokens = torch.tensor(rows, device=device)
    sizes = torch.tensor([len(example.completion) for example in examples], device=device)
    mask = torch.arange(length, device=device) < sizes[:, None]
    return policy.score(observation, {"tokens": tokens, "mask": mask}).logprobs, mask


def completion_loss(policy: TextPolicy, examples: Sequence[Example]) -> Float[Tensor, ""]:
    """Cross-entropy per token of the completions (nats); prompts carry no loss."""
    logprobs, mask = completion_logprobs(policy, examples)
    return -(logprobs * mask).sum() / mask.sum()


@torch.no_grad()
def mean_loss(policy: TextPolicy, examples: Sequence[Example], batch_size: int) -> float:
    """Cross-entropy per completion token over all examples; its exponential is the perplexity."""
    total = count = 0.0
    for start in range(0, len(examples), batch_size):
        logprobs, mask = completion_logprobs(policy, examples[start : start + batch_size])
        total -= float((logprobs * mask).sum())
        count += int(mask.sum())
    return total / max(count, 1.0)


def fit_examples(
    policy: TextPolicy,
    examples: Sequence[Example],
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    warmup_fraction: float = 0.1,
    max_grad_norm: float = 1.0,
) -> None:
    """`num_steps` AdamW steps on shuffled batches, the learning rate warmed up and then annealed to 0.

    Raises FloatingPointError when a loss or gradient is not finite; the weights are those of the step before.
    """
    optimizer = make_optimizer(policy, "adamw", learning_rate, 0.0)
    schedule = Schedule(optimizer, "cosine", num_steps, int(warmup_fraction * num_steps))
    parameters = [p for p in policy.parameters() if p.requires_grad]
    for step, batch in enumerate(batches(len(examples), batch_size, num_steps, seed)):
        loss = completion_loss(policy, [examples[i] for i in batch])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise FloatingPointError(
                f"step {step}: loss {float(loss)}, gradient norm {float(norm)}: lower the learning rate"
            )
        optimizer.step()
        schedule.step()
        on_step(step + 1, float(loss.detach()))
    optimizer.zero_grad()


def batches(count: int, batch_size: int, num_steps: int, seed: int) -> Iterator[list[int]]:
    """`num_steps` batches of numbers below `count`: every example once an epoch, in a new order each."""
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(num_steps):
        while len(order) < batch_size:
            order += rng.permutation(count).tolist()
        batch, order = order[:batch_size], order[batch_size:]
        yield batch
