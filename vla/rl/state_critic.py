"""A critic that sees what only the simulator knows: it helps to train and never acts (Pinto et al.
2018, asymmetric actor-critic).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

NUM_MEMBERS, WIDTH = 3, 128
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
BATCH_ROWS, NOISE = 256, 0.1
CAPACITY = 60_000
"""Decisions remembered; older ones were made by a policy that no longer is."""


class StateCritic:
    """Expected discounted return from a privileged state [s]: the mean of a few small MLPs.

    They are fitted to the returns of all recent trajectories, not of the last rollout alone, by a
    few steps after every rollout. Inputs are standardised by the first states seen and blurred a
    little while fitting.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.states, self.returns = torch.zeros(0, 0), torch.zeros(0)
        self.mean, self.scale = torch.zeros(0), torch.zeros(0)
        self.members: nn.ModuleList | None = None

    @property
    def ready(self) -> bool:
        """Whether it has been fitted."""
        return self.members is not None

    def remember(self, states: Float[Tensor, "R s"], returns: Float[Tensor, "R"]) -> None:
        """Add what a rollout has shown."""
        self.states = torch.cat([self.states, states] if len(self.states) else [states])[-CAPACITY:]
        self.returns = torch.cat([self.returns, returns])[-CAPACITY:]

    def fit(self, num_steps: int) -> None:
        """Optimizer steps on what is remembered."""
        if self.members is None:
            self._build(self.states.shape[1])
            self.mean, self.scale = self.states.mean(0), self.states.std(0) + 1e-2
        inputs = self._standardized(self.states)
        for member, optimizer in zip(self._fitted(), self.optimizers, strict=True):
            for _ in range(num_steps):
                rows = torch.randint(len(inputs), (BATCH_ROWS,), generator=self.generator)
                blurred = inputs[rows] + NOISE * torch.randn(
                    BATCH_ROWS, inputs.shape[1], generator=self.generator
                )
                loss = (member(blurred).squeeze(-1) - self.returns[rows]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    @torch.no_grad()
    def __call__(self, states: Float[Tensor, "R s"]) -> Float[Tensor, "R"]:
        if (
            self.returns.min() == self.returns.max()
        ):  # nothing to expect but that: no policy learns from its errors
            return self.returns[:1].expand(len(states))
        inputs = self._standardized(states)
        return torch.stack([member(inputs).squeeze(-1) for member in self._fitted()]).mean(0)

    def state_dict(self) -> dict[str, Any]:
        """All that decides what it will say and learn."""
        whole: dict[str, Any] = {
            "generator": self.generator.get_state(),
            "states": self.states,
            "returns": self.returns,
            "mean": self.mean,
            "scale": self.scale,
        }
        if self.members is not None:
            whole["members"] = self.members.state_dict()
            whole["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        return whole

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.states, self.returns = state["states"], state["returns"]
        self.mean, self.scale = state["mean"], state["scale"]
        if "members" in state:
            self._build(len(self.mean))
            assert self.members is not None
            self.members.load_state_dict(state["members"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"])  # last: building members draws from it

    def _fitted(self) -> nn.ModuleList:
        assert self.members is not None, "fit() comes first"
        return self.members

    def _standardized(self, states: Float[Tensor, "R s"]) -> Float[Tensor, "R s"]:
        return ((states - self.mean) / self.scale).clamp(-5, 5)

    def _build(self, size: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=self.generator)))
            self.members = nn.ModuleList(_member(size) for _ in range(NUM_MEMBERS))
        self.optimizers = [
            torch.optim.AdamW(member.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            for member in self.members
        ]


def _member(size: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(size, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1)
    )
