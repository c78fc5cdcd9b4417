"""A policy of ours behind a server: the batched call, the observation spec and the metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla.config.robot import RobotConfig
from vla.data.observations import Observer
from vla.policies.real_time_chunking import can_continue, continue_chunk
from vla.policy_spec import read_policy_spec
from vla.rl.protocols import Observe, Policy
from vla.serve.requests import ExecutingPlan, ObservationBatch, ObservationSpec
from vla.serve.server import Act
from vla.simulator import Simulator

MAX_BYTES_PER_TOKEN = 32
"""Bytes of a prompt for each token of the policy's prompt length; longer prompts are refused before
they are tokenized."""
UNNAMED_RESIZE = (
    "not named by the version that trained it: give pictures that are square from the start"
)
"""The `resize` of a policy spec without a rule that makes pictures square
(`vla.data.image_fitting.RESIZE`)."""


def make_act(policy: Policy, observe: Observe, greedy: bool) -> Act:
    """Make the function that a server calls with the observations of several clients.

    Chunks of flow policies continue the actions that a client executes, where its request carries
    them (`vla.policies.real_time_chunking`).
    """

    def act(batch: ObservationBatch) -> np.ndarray:
        if can_continue(policy) and any(batch.executing):
            plan, num_planned, delay = batch_executing_plans(batch.executing, policy.chunk)
            return continue_chunk(
                policy, observe(batch), plan, num_planned, delay, greedy=greedy
            ).numpy()
        return policy.act(observe(batch), greedy=greedy).action.float().cpu().numpy()

    return act


def batch_executing_plans(
    plans: Sequence[ExecutingPlan | None], chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pad the executing plans of a batch to the length of a chunk.

    Returns:
        Actions [B, chunk, A], 0 beyond the end of a plan and where there is none; the number of
        planned actions [B]; and the number executed by the time of the answer [B].
    """
    size = next(plan.actions.shape[1] for plan in plans if plan is not None)
    actions = torch.zeros(len(plans), chunk, size)
    num_planned = torch.zeros(len(plans), dtype=torch.long)
    delay = torch.zeros(len(plans), dtype=torch.long)
    for row, plan in enumerate(plans):
        if plan is not None:
            count = min(chunk, len(plan.actions))
            # A copy: an array that was read from a message cannot be written.
            actions[row, :count] = torch.from_numpy(plan.actions[:count].copy())
            num_planned[row] = count
            delay[row] = min(count, plan.delay)
    return actions, num_planned, delay


def observation_spec(
    config: RobotConfig, simulator: Simulator, observer: Observer
) -> ObservationSpec:
    """The observations that a policy takes, from the settings of its run."""
    return ObservationSpec(
        cameras=tuple(config.sim.cameras),
        image_size=config.sim.image_size,
        state_size=simulator.proprio_size,
        action_size=len(simulator.action_spec["names"]),
        encode=observer.encode,
        max_prompt_bytes=MAX_BYTES_PER_TOKEN * observer.length,
    )


def server_metadata(folder: Path) -> dict[str, object]:
    """The metadata for a client: action space, state names, cameras, image size and chunk."""
    values = {"resize": UNNAMED_RESIZE, **read_policy_spec(folder)}
    names = ("policy", "action_spec", "proprio_names", "cameras", "image_size", "resize", "chunk")
    return {name: values[name] for name in names if name in values} | {
        "checkpoint": folder.name,
        "protocol": "openpi",
    }
