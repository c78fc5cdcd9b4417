"""A policy of ours behind a server: rows of clients in, chunks of actions out, and the policy spec
that goes before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla.config.robot import RobotConfig
from vla.data.observations import Observer
from vla.policies.real_time_chunking import can_continue, continue_chunk
from vla.policy_spec import read_policy_spec
from vla.rl.protocols import Observe, Policy
from vla.serve.requests import ExecutingPlan, ExpectedObservation, ObservationBatch
from vla.serve.server import Act
from vla.simulator import Simulator

MAX_BYTES_PER_TOKEN = 32
"""A prompt of more bytes than so many for each token that a policy has room for is refused before
it is tokenised."""


UNNAMED = "not named by the version that trained it: give pictures that are square from the start"
"""What a policy spec says in place of the rule that makes pictures square
(`vla.data.image_fitting.RESIZE`)."""


def serve_rows(policy: Policy, observe: Observe, greedy: bool) -> Act:
    """What a server calls with the observations of several clients. Chunks of flow policies go on
    from what a client is doing, where it says (`vla.policies.real_time_chunking`).
    """

    def act(shown: ObservationBatch) -> np.ndarray:
        if can_continue(policy) and any(shown.going):
            plan, planned, late = remaining_plans(shown.going, policy.chunk)
            return continue_chunk(
                policy, observe(shown), plan, planned, late, greedy=greedy
            ).numpy()
        return policy.act(observe(shown), greedy=greedy).action.float().cpu().numpy()

    return act


def remaining_plans(
    going: Sequence[ExecutingPlan | None], chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What clients are doing as rows: plans [B, chunk, A], how many of their actions count [B], how
    many will be over [B]. Beyond its end, and where there is none, a plan is 0 and does not count.
    """
    size = next(one.plan.shape[1] for one in going if one is not None)
    plan, planned, late = (
        torch.zeros(len(going), chunk, size),
        torch.zeros(len(going)),
        torch.zeros(len(going)),
    )
    for row, one in enumerate(going):
        if one is not None:
            planned[row] = count = min(chunk, len(one.plan))
            plan[row, :count], late[row] = (
                torch.from_numpy(one.plan[:count].copy()),
                min(count, one.late),
            )
    return plan, planned.long(), late.long()


def expected_observation(
    config: RobotConfig, world: Simulator, observer: Observer
) -> ExpectedObservation:
    """What a policy's observations hold, from the settings of its run."""
    return ExpectedObservation(
        cameras=tuple(config.sim.cameras),
        image_size=config.sim.image_size,
        state_size=world.proprio_size,
        action_size=len(world.action_spec["names"]),
        encode=observer.encode,
        max_prompt_bytes=MAX_BYTES_PER_TOKEN * observer.length,
    )


def server_metadata(folder: Path) -> dict[str, Any]:
    """What a client must know to use the policy: what actions and state mean, cameras, pixels and
    chunk."""
    values = {"resize": UNNAMED, **read_policy_spec(folder)}
    told = ("policy", "action_spec", "proprio_names", "cameras", "image_size", "resize", "chunk")
    return {name: values[name] for name in told if name in values} | {
        "checkpoint": folder.name,
        "protocol": "openpi",
    }
