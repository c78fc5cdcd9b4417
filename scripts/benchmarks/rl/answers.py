"""A small language model and a rollout of it."""

import argparse
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vla.types import ActionScores, Observation, Rollout


class Head(nn.Module):
    """Log-probs and entropy of given tokens, each from the previous token."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(vocabulary, 128), nn.Linear(128, 256), nn.GELU())
        self.logits = nn.Linear(256, vocabulary)

    def score(self, observation: Observation | Tensor, trace: Mapping[str, Tensor]) -> ActionScores:
        before = observation if isinstance(observation, Tensor) else observation.tokens
        logprobs = self.logits(self.body(before)).log_softmax(-1)
        entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
        return ActionScores(logprobs.gather(-1, trace["draw"].unsqueeze(-1)).squeeze(-1), entropy)


def make_rollout(options: argparse.Namespace) -> tuple[Head, Rollout]:
    """A policy and a rollout of it: `groups` of 8 answers with random lengths."""
    policy = Head(options.vocabulary)
    num_rows = options.groups * 8
    before, draw = torch.randint(0, options.vocabulary, (2, num_rows, options.draws))
    mask = torch.arange(options.draws) < torch.randint(
        options.draws // 2, options.draws + 1, (num_rows, 1)
    )
    with torch.no_grad():
        logprobs = torch.cat(
            [policy.score(b, {"draw": d}).logprobs for b, d in zip(before.split(1), draw.split(1))]
        )
    group = torch.arange(num_rows) // 8
    rewards = torch.where(
        group < options.dull * options.groups, 1.0, torch.arange(num_rows) % 8 / 8
    )
    ended = torch.ones(num_rows, dtype=torch.bool)
    rollout = Rollout(
        observation=Observation({}, None, before, torch.ones_like(before, dtype=torch.bool)),
        trace={"draw": draw},
        logprobs=logprobs,
        mask=mask,
        rewards=rewards,
        trajectory=torch.arange(num_rows),
        terminated=ended,
        truncated=~ended,
        group=group,
        version=torch.zeros(num_rows, dtype=torch.long),
    )
    return policy, rollout
