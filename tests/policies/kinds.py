"""Every kind of policy, as small as can be, and the one task they can all learn: do what the
instruction names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from tests.models.tiny import tiny_vlm
from tests.policies.tiny import DECODINGS, identity_task, named_number
from tests.rl.contract import Task
from vla.actions.diffusion import Diffusion
from vla.actions.fast import FastCode, fit_fast
from vla.actions.flow import FlowMatching
from vla.actions.normalize import fit_normalizer
from vla.policies.denoising import DenoisingHead, DenoisingSettings
from vla.policies.fast import FastHead
from vla.policies.regression import RegressionHead
from vla.policies.vla_policy import VlaPolicy

CHUNK = 2
EXPLORATIONS = ("one_step", "all_steps", "learned_noise", "matching")

Make = Callable[[np.ndarray], nn.Module]


def settings(exploration: str = "all_steps", **given) -> DenoisingSettings:
    values = {
        "num_stochastic_steps": 4,
        "samples": 4,
        "min_noise": 0.1,
        "max_noise": 0.4,
        "stop_gradient_to_vlm": False,
    }
    return DenoisingSettings(CHUNK, 16, 32, exploration, **{**values, **given})


def flow(exploration: str, code: FastCode | None = None, **given) -> Make:
    def make(chunks: np.ndarray) -> nn.Module:
        process = FlowMatching(num_steps=4, time_alpha=1.5, time_beta=1.0, noise_level=0.5)
        scale = fit_normalizer(chunks[:, 0])
        model = tiny_vlm(0, scale=1.0)
        head = DenoisingHead(model, process, scale, settings(exploration, **given), code)
        return VlaPolicy(model, head, detach_critic=True)

    return make


def diffusion(chunks: np.ndarray) -> nn.Module:
    process = Diffusion(
        num_train_steps=20, num_steps=4, prediction="v_prediction", min_std=0.1, clip=2.0
    )
    model = tiny_vlm(0, scale=1.0)
    head = DenoisingHead(model, process, fit_normalizer(chunks[:, 0]), settings())
    return VlaPolicy(model, head, detach_critic=True)


def regression(chunks: np.ndarray) -> nn.Module:
    model = tiny_vlm(0, scale=1.0)
    head = RegressionHead(model, fit_normalizer(chunks[:, 0]), CHUNK, 0.05, 1.0)
    return VlaPolicy(model, head, detach_critic=True)


def fast(chunks: np.ndarray) -> nn.Module:
    model = tiny_vlm(0, scale=1.0)
    return VlaPolicy(model, FastHead(model, fit_fast(chunks, 24, 2.0), 1.0), detach_critic=True)


CONTINUOUS: dict[str, Make] = {
    **{f"flow_{name}": flow(name) for name in EXPLORATIONS},
    "diffusion": diffusion,
    "regression": regression,
}
MAKERS = {**CONTINUOUS, "fast": fast}
KINDS = (*MAKERS, *(f"token_{decoding}" for decoding in DECODINGS))


def task_of(kind: str) -> tuple[Task, torch.Tensor]:
    """The identity task of a kind, and the actions [4, 2, 1] that the four instructions name.

    The reward is 1 for a control step that is right and falls to 0 where it is as far off as
    neighbours are apart.
    """
    _, observation, actions = named_number("parallel")
    if kind not in MAKERS:
        return identity_task(kind.removeprefix("token_")), actions
    chunks = np.concatenate([actions.numpy(), actions.numpy()[:, ::-1]])
    torch.manual_seed(0)
    policy = MAKERS[kind](chunks)

    def reward(decision, rows):
        return (1 - (decision.action - actions[rows]).abs()).clamp(min=0).mean((1, 2))

    return Task(
        policy, observation, reward, solved=0.7, learning_rate=0.003, tolerance=1e-4
    ), actions
