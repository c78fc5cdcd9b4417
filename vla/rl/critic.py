"""A critic with weights of its own, beside a policy that has none or does not use its own (Ouyang
2022; verl)."""

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
    """A copy of a policy with trained weights of its own; what is frozen (the base under an
    adapter, say) is shared."""
    shared = {id(p): p for p in policy.parameters() if not p.requires_grad}
    return copy.deepcopy(policy, shared)


class ActorCritic(nn.Module):
    """`actor` draws and says how likely its draws were; the values are those that `critic`, a
    policy too, gives to the same draws. No gradient of the value loss reaches the actor, and none
    of the policy loss the critic.

    Greedy decisions have no values: nobody learns from them.
    """

    def __init__(self, actor: Any, critic: Any) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic

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
        """All of the critic that is not the actor's too."""
        actors = {id(p) for p in self.actor.parameters()}
        return (p for p in self.critic.parameters() if id(p) not in actors)


def with_critic(policy: Any, kind: CriticKind) -> Any:
    """The policy as it is (`shared`: its value head reads its own hidden states), or with a critic
    that starts as a copy of it (`separate`), whose value loss trains all that trains in the policy.
    """
    if kind == "shared":
        return policy
    critic = copy_trained(policy)
    for part in critic.modules():
        if (
            getattr(part, "detach", None) is True
        ):  # a value head that would keep its gradient from the backbone
            part.detach = False
    return ActorCritic(policy, critic)
