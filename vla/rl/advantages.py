"""Advantages over time: generalized advantage estimation and reward-to-go, along decisions (robots)
or draws (text).

A position is a decision where values are [R], a draw where they are [R, L]. Positions that the
policy did not choose are skipped: no time passes there, and their rewards count for the last choice
before them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.collectives import ReduceSum, single_process


@dataclass(frozen=True)
class Timeline:
    """Layout of the counted positions of `R` rows as [N, T]: trajectory by rank in time.

    `counted` and `trajectory` are in flat order. `carry` is the rank at which the reward of a
    position counts; -1 is before the first choice, where rewards are dropped.
    """

    counted: Bool[Tensor, "K"]
    trajectory: Int[Tensor, "K"]
    carry: Int[Tensor, "K"]
    lengths: Int[Tensor, "N"]

    def pack_rewards(self, rewards: Float[Tensor, "K"]) -> Float[Tensor, "N T"]:
        """Rewards by rank; the rewards of several positions may add up in one."""
        keep = self.carry >= 0
        dense = torch.zeros(self.shape, dtype=torch.float64)
        return dense.index_put(
            (self.trajectory[keep], self.carry[keep]), rewards[keep].double(), accumulate=True
        )

    def pack(self, values: Float[Tensor, "K"]) -> Float[Tensor, "N T"]:
        """Values by rank, zero after the end."""
        dense = torch.zeros(self.shape, dtype=torch.float64)
        dense[self.trajectory[self.counted], self.carry[self.counted]] = values[
            self.counted
        ].double()
        return dense

    def unpack(self, dense: Float[Tensor, "N T"]) -> Float[Tensor, "K"]:
        """Values by position; zero where the policy did not choose."""
        flat = torch.zeros(len(self.counted), dtype=torch.float64)
        flat[self.counted] = dense[self.trajectory[self.counted], self.carry[self.counted]]
        return flat

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.lengths), max(int(self.lengths.max()), 1) if len(self.lengths) else 1


def make_timeline(
    counted: Bool[Tensor, "R *L"], trajectory: Int[Tensor, "R"], num_trajectories: int
) -> Timeline:
    """Lay out positions by trajectory and time.

    Rows of several trajectories may be interleaved; rows of one trajectory are in order of time.
    """
    per_row = counted.numel() // max(len(counted), 1)
    owner = trajectory.repeat_interleave(per_row)
    flat = counted.reshape(-1)
    order = torch.argsort(owner, stable=True)
    # Rank of a position: counted positions up to it, minus those of earlier trajectories.
    running = flat[order].long().cumsum(0)
    lengths = torch.zeros(num_trajectories, dtype=torch.long).index_add(0, owner, flat.long())
    before = lengths.cumsum(0) - lengths
    carry = torch.empty_like(owner)
    carry[order] = running - 1 - before[owner[order]]
    return Timeline(flat, owner, carry, lengths)


def place_rewards(rewards: Float[Tensor, "R"], mask: Bool[Tensor, "R L"]) -> Float[Tensor, "R L"]:
    """Place a row's reward at its last chosen draw, or at the last draw of a row without one.

    `Timeline.carry` moves the latter back in time.
    """
    num_draws = mask.shape[1]
    last = (mask.long() * torch.arange(1, num_draws + 1)).amax(1) - 1
    last = torch.where(last < 0, num_draws - 1, last)
    return torch.zeros(mask.shape, dtype=rewards.dtype).scatter(
        1, last.unsqueeze(1), rewards.unsqueeze(1)
    )


def generalized_advantages(
    rewards: Float[Tensor, "R *L"],
    values: Float[Tensor, "R *L"],
    counted: Bool[Tensor, "R *L"],
    trajectory: Int[Tensor, "R"],
    bootstrap: Float[Tensor, "N"],
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "R *L"], Float[Tensor, "R *L"]]:
    """Advantages and returns (advantage + value) by GAE (Schulman 2016, eq. 16).

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lambda A_{t+1}

    `bootstrap` stands for V after the last position: the critic's value of the final observation
    where the trajectory was truncated, 0 where it terminated. Time runs over counted positions
    only; elsewhere the results are 0.
    """
    timeline = make_timeline(counted, trajectory, len(bootstrap))
    reward = timeline.pack_rewards(rewards.reshape(-1))
    value = timeline.pack(values.reshape(-1))
    advantage = torch.zeros_like(reward)
    following_value = bootstrap.double()
    following = torch.zeros(len(bootstrap), dtype=torch.float64)
    for step in reversed(range(reward.shape[1])):
        exists = step < timeline.lengths  # shorter trajectories keep their bootstrap until here
        delta = reward[:, step] + gamma * following_value - value[:, step]
        following = torch.where(exists, delta + gamma * gae_lambda * following, following)
        following_value = torch.where(exists, value[:, step], following_value)
        advantage[:, step] = following
    advantages = timeline.unpack(advantage).reshape(values.shape).to(values.dtype)
    return advantages, torch.where(counted, advantages + values, torch.zeros_like(values))


def rewards_to_go(
    rewards: Float[Tensor, "R *L"],
    counted: Bool[Tensor, "R *L"],
    trajectory: Int[Tensor, "R"],
    num_trajectories: int,
    gamma: float,
) -> Float[Tensor, "R *L"]:
    """Discounted sum of rewards from each counted position on: GAE with lambda 1 and no critic."""
    bootstrap = torch.zeros(num_trajectories, dtype=rewards.dtype)
    return generalized_advantages(
        rewards, torch.zeros_like(rewards), counted, trajectory, bootstrap, gamma, 1.0
    )[0]


def bootstrap_values(
    terminated: Bool[Tensor, "N"], final_values: Float[Tensor, "N"] | None
) -> Float[Tensor, "N"]:
    """Value after a trajectory's last row: 0 where it terminated, the critic's where truncated.

    Raises:
        ValueError: for a truncated trajectory without `final_values`.
    """
    if final_values is None:
        if not bool(terminated.all()):
            raise ValueError(
                "rollout.final_values (null) is needed: a critic bootstraps where a trajectory is "
                "truncated. "
                "Give the critic's value of their final observations, or mark them terminated if "
                "the world ends there"
            )
        return torch.zeros(len(terminated))
    return torch.where(terminated, torch.zeros_like(final_values), final_values)


def whiten(
    values: Float[Tensor, "R *L"],
    counted: Bool[Tensor, "R *L"],
    *,
    shift_mean: bool = True,
    epsilon: float = 1e-8,
    reduce_sum: ReduceSum = single_process,
) -> Float[Tensor, "R *L"]:
    """Whiten values over the counted positions of the global batch: mean 0, standard deviation 1.

    The variance is the unbiased one. `shift_mean=False` keeps the mean (Ziegler 2019, for rewards).
    Positions not counted become 0.
    """
    exact = torch.where(counted, values, torch.zeros_like(values)).double()
    count, total = reduce_sum(torch.stack([counted.sum().double(), exact.sum()])).unbind()
    mean = total / count.clamp(min=1)
    centred = torch.where(counted, exact - mean, torch.zeros_like(exact))
    variance = reduce_sum(centred.square().sum()) / (count - 1).clamp(min=1)
    scaled = centred / (variance.sqrt() + epsilon) if float(count) > 1 else centred
    shift = 0.0 if shift_mean else mean
    return torch.where(counted, scaled + shift, torch.zeros_like(scaled)).to(values.dtype)
