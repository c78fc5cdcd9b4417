"""The smallest token policy, and a task it can learn: say the number that the instruction names."""

from __future__ import annotations

import numpy as np
import torch

from tests.models.tiny import tiny_vlm
from tests.rl.contract import Task
from vla.actions.bins import ActionBins, fit_bins
from vla.models.vlm import VisionLanguageModel
from vla.policies.autoregressive_token import AutoregressiveTokenHead
from vla.policies.token import TokenHead
from vla.policies.vla_policy import VlaPolicy
from vla.types import Observation

DECODINGS = ("parallel", "autoregressive")
CONSTANT = 0.5


def tiny_bins() -> ActionBins:
    """Four dimensions: five ids, none (it stands still), five ids, and a gripper of two."""
    generator = np.random.default_rng(0)
    actions = generator.normal(size=(60, 4)).astype(np.float32)
    actions[:, 1] = CONSTANT
    actions[:, 3] = np.where(actions[:, 3] > 0, 1.0, -1.0)
    return fit_bins(actions, 5, "quantile")


def token_policy(
    model: VisionLanguageModel,
    bins: ActionBins,
    chunk: int,
    decoding: str,
    temperature: float,
    detach_critic: bool = True,
) -> VlaPolicy:
    kind = TokenHead if decoding == "parallel" else AutoregressiveTokenHead
    return VlaPolicy(model, kind(model, bins, chunk, temperature), detach_critic)


def tiny_policy(decoding: str, *, seed: int = 0, temperature: float = 0.7, **settings) -> VlaPolicy:
    """Two control steps of three ids each, and a critic that has something to say."""
    model = tiny_vlm(seed)
    policy = token_policy(
        model, tiny_bins(), 2, decoding, temperature, **{"detach_critic": True, **settings}
    )
    with torch.no_grad():
        policy.head.head.dimensions.mul_(40)
        policy.head.head.queries.mul_(40)
        policy.value_head.layers[-1].weight.normal_()
    return policy


def named_number(decoding: str, seed: int = 0) -> tuple[VlaPolicy, Observation, torch.Tensor]:
    """A policy, four instructions that name 0 to 3 between words that say nothing, and the actions
    [4, 2, 1] meant: the number, then what it lacks to 3.
    """
    numbers = torch.arange(4)
    tokens = torch.stack([torch.full((4,), 9), 20 + numbers, torch.full((4,), 9)], dim=1)
    images = {camera: torch.zeros(4, 8, 8, 3, dtype=torch.uint8) for camera in ("front", "wrist")}
    observation = Observation(
        images, torch.zeros(4, 3), tokens, torch.ones_like(tokens, dtype=torch.bool)
    )
    bins = fit_bins(np.arange(4, dtype=np.float32)[:, None], 8, "quantile")
    policy = token_policy(tiny_vlm(seed, scale=1.0), bins, 2, decoding, 1.0)
    actions = torch.stack([numbers, numbers.flip(0)], dim=1)[..., None].float()
    return policy, observation, actions


def identity_task(decoding: str) -> Task:
    """The reward is the share of control steps that are right."""
    policy, observation, actions = named_number(decoding)

    def reward(decision, rows):
        return (decision.action - actions[rows]).abs().lt(0.5).float().mean((1, 2))

    return Task(policy, observation, reward, solved=0.85, learning_rate=0.003)
