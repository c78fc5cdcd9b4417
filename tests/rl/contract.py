"""What every policy must pass before the core will train it. A new policy adds one factory to
`test_contract.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vla.rl.protocols import Critic, Policy
from vla.types import Decision, Observation, map_rows


@dataclass(frozen=True)
class Task:
    """A policy and the identity task it can learn: observations, and what a decision is worth.

    `reward(decision, rows)` scores each answer to `observation[rows]`; `solved` is the mean reward
    that is learnt. `tolerance` is how far a log-prob may be off when scored again (0 for most, a
    little for cached decoding).
    """

    policy: Any
    observation: Observation
    reward: Callable[[Decision, Tensor], Tensor]
    solved: float
    learning_rate: float
    tolerance: float = 1e-5


def check_policy(task: Task) -> None:
    """Shapes, scoring as drawn (in both modes, whatever shares the call), gradients, and a critic
    that agrees."""
    policy, observation = task.policy, task.observation
    assert isinstance(policy, Policy)
    torch.manual_seed(0)
    decision = policy.act(observation)
    num_rows = len(observation.tokens)
    assert decision.logprobs.shape == decision.mask.shape
    assert len(decision.logprobs) == len(decision.action) == num_rows
    assert decision.mask.dtype == torch.bool
    assert decision.mask.any(1).all()
    assert not decision.logprobs.requires_grad
    assert all(len(value) == num_rows for value in decision.trace.values())
    check_scoring(task, decision)
    check_gradient(task, decision)
    if decision.values is not None:
        check_critic(task, decision)
    greedy = [policy.act(observation, greedy=True).action for _ in range(2)]
    assert torch.equal(*greedy)


def check_scoring(task: Task, decision: Decision) -> None:
    """`score(o, d.trace).logprobs == d.logprobs` where `d.mask`: no dropout, one temperature, no
    leak between rows."""
    policy, observation = task.policy, task.observation
    for mode in (True, False):
        policy.train(mode)
        scores = policy.score(observation, decision.trace)
        gap = (scores.logprobs - decision.logprobs)[decision.mask].abs().max()
        assert gap <= task.tolerance, (
            f"scored {gap} away from what was drawn, in {'training' if mode else 'evaluation'}"
        )
    for rows in (torch.arange(1), torch.arange(len(decision.mask)).flip(0)):
        part = policy.score(
            map_rows(observation, lambda t, r=rows: t[r]),
            map_rows(decision.trace, lambda t, r=rows: t[r]),
        )
        gap = (part.logprobs - decision.logprobs[rows])[decision.mask[rows]].abs().max()
        assert gap <= max(task.tolerance, 1e-5), (
            f"a row's log-probs change by {gap} with the rows beside it"
        )


def check_gradient(task: Task, decision: Decision) -> None:
    """Log-probs, and entropy where there is one, carry a finite gradient to some parameter."""
    scores = task.policy.score(task.observation, decision.trace)
    parameters = [p for p in task.policy.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(
        scores.logprobs[decision.mask].sum(), parameters, allow_unused=True
    )
    present = [g for g in gradients if g is not None]
    assert present
    assert all(g.isfinite().all() for g in present)
    assert any(g.any() for g in present)
    if scores.entropy is not None:
        assert scores.entropy.shape == scores.logprobs.shape
        assert scores.entropy[decision.mask].isfinite().all()


def check_critic(task: Task, decision: Decision) -> None:
    """Values when acting and when scoring are the same, and the critic has parameters of its
    own."""
    scores = task.policy.score(task.observation, decision.trace)
    assert isinstance(task.policy, Critic)
    assert decision.values is not None
    assert scores.values is not None
    assert scores.values.shape == decision.values.shape
    torch.testing.assert_close(scores.values.detach(), decision.values, rtol=1e-4, atol=1e-5)
    assert task.policy.value(task.observation).shape == (len(task.observation.tokens),)
    own = {id(p) for p in task.policy.critic_parameters()}
    assert own
    assert own < {id(p) for p in task.policy.parameters()}
