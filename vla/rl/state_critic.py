"""Critic of privileged simulator states, used in training only (Pinto et al. 2018, asymmetric
actor-critic)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla.types import StateDict

NUM_MEMBERS = 3
WIDTH = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
BATCH_ROWS = 256
NOISE = 0.1
CAPACITY = 60_000
"""Number of recent decisions in the training set; older policies differ too much."""


class StateCritic:
    """Expected discounted return from a privileged state [s]: the mean of a few small MLPs.

    A few steps after every rollout fit them to the returns of all recent trajectories. Inputs are
    standardised by the first states, and noise is added while fitting.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.states = torch.zeros(0, 0)
        self.returns = torch.zeros(0)
        self.mean = torch.zeros(0)
        self.scale = torch.zeros(0)
        self.members: nn.ModuleList | None = None

    @property
    def ready(self) -> bool:
        """True after the first fit."""
        return self.members is not None

    def remember(self, states: Float[Tensor, "R s"], returns: Float[Tensor, "R"]) -> None:
        """Add the states and returns of a rollout to the training set."""
        self.states = torch.cat([self.states, states] if len(self.states) else [states])[-CAPACITY:]
        self.returns = torch.cat([self.returns, returns])[-CAPACITY:]

    def fit(self, num_steps: int) -> None:
        """Take `num_steps` optimizer steps per member on the training set."""
        if self.members is None:
            self._build(self.states.shape[1])
            self.mean = self.states.mean(0)
            self.scale = self.states.std(0) + 1e-2
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
        # Equal returns: predict exactly that value, so that no error of the MLPs becomes a reward.
        if self.returns.min() == self.returns.max():
            return self.returns[:1].expand(len(states))
        inputs = self._standardized(states)
        return torch.stack([member(inputs).squeeze(-1) for member in self._fitted()]).mean(0)

    def state_dict(self) -> StateDict:
        """Weights, optimizers, training set and generator."""
        whole: StateDict = {
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

    def load_state_dict(self, state: StateDict) -> None:
        self.states = state["states"]
        self.returns = state["returns"]
        self.mean = state["mean"]
        self.scale = state["scale"]
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
