"""A critic with its own weights next to a policy (Ouyang 2022; verl)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter

from vla.types import ActionScores, Decision, Observation, Trace

CriticKind = Literal["shared", "separate"]


def copy_trained(policy: Any) -> Any:
    """Copy a policy's trainable weights; frozen ones (e.g. the base of an adapter) are shared."""
    shared = {id(p): p for p in policy.parameters() if not p.requires_grad}
    return copy.deepcopy(policy, shared)


class ActorCritic(nn.Module):
    """A policy of two modules: `actor` draws and scores, `critic` (a policy too) estimates values.

    The value loss has no gradient in the actor, and the policy loss none in the critic. Greedy
    decisions have no values, because training does not use them.
    """

    def __init__(self, actor: Any, critic: Any) -> None:
        super().__init__()
        self.actor = actor
        self.critic = critic

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        """The actor's decision with the critic's values."""
        decision = self.actor.act(observation, greedy=greedy)
        return replace(
            decision,
            values=None if greedy else self.critic.score(observation, decision.trace).values,
        )

    def score(self, observation: Observation, trace: Trace) -> ActionScores:
        """The actor's log-probabilities and entropy, the critic's values."""
        values = self.critic.score(observation, trace).values
        return replace(self.actor.score(observation, trace), values=values)

    def value(self, observation: Observation) -> Float[Tensor, "B"]:
        """The critic's estimate of the return from here."""
        return self.critic.value(observation)

    def critic_parameters(self) -> Iterator[Parameter]:
        """The critic's parameters that it does not share with the actor."""
        actors = {id(p) for p in self.actor.parameters()}
        return (p for p in self.critic.parameters() if id(p) not in actors)


def with_critic(policy: Any, kind: CriticKind) -> Any:
    """The policy itself, or the policy with a separate critic.

    shared    the value head reads the policy's hidden states
    separate  the critic starts as a copy of the policy; the value loss trains all its weights
    """
    if kind == "shared":
        return policy
    critic = copy_trained(policy)
    for part in critic.modules():
        # A value head with `detach` would keep its gradient from the backbone.
        if getattr(part, "detach", None) is True:
            part.detach = False
    return ActorCritic(policy, critic)
