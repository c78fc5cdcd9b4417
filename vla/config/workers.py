"""Conflicts of settings with rollout workers (`rl.workers`)."""

from __future__ import annotations

import os
from importlib.util import find_spec

from vla.config.robot import RobotConfig
from vla.config.text import TextConfig
from vla.runtime import world_size

ADDRESS = "RAY_ADDRESS"
"""Variable of the environment with the address of a Ray cluster."""
COLLECTING_MODES = ("rlvr", "rlhf")
"""Text modes with reinforcement learning."""


def worker_conflicts(config: RobotConfig | TextConfig) -> list[str]:
    """Conflicts of `rl.workers` with other settings, with the launch and with this machine."""
    rl = config.rl
    collects = isinstance(config, RobotConfig) or config.text.name in COLLECTING_MODES
    if not rl.workers or not rl.num_iterations or not collects:
        return []
    problems = []
    if find_spec("ray") is None:
        problems.append(
            f"rl.workers ({rl.workers}) needs Ray, which is not installed: `uv sync --extra ray`, "
            "or set it to 0"
        )
    number = world_size()
    if number > 1:
        problems.append(
            f"rl.workers ({rl.workers}) collect for one process, and there are {number}: start it "
            "by python, or set it to 0"
        )
    if rl.workers > rl.num_start_states:
        problems.append(
            f"rl.workers ({rl.workers}) is more than rl.num_start_states ({rl.num_start_states}), "
            f"which they share: set it to {rl.num_start_states} or less"
        )
    if isinstance(config, TextConfig):
        problems.append(
            f"rl.workers ({rl.workers}) collect robot episodes: set it to 0 in mode=text"
        )
    if rl.async_rollouts and rl.importance_cap is None:
        problems.append(
            f"rl.async_rollouts ({rl.async_rollouts}) learns from the decisions of earlier "
            "weights, which rl.importance_cap (null) must correct for: 2 is usual"
        )
    return problems + machine_conflicts(rl.workers, rl.worker_resources)


def machine_conflicts(workers: int, resources: dict[str, float]) -> list[str]:
    """More processors than this machine has; on a cluster Ray decides."""
    needed = resources.get("CPU", 0.0) * workers
    cores = os.cpu_count() or 1
    if os.environ.get(ADDRESS) or needed <= cores:
        return []
    return [
        f"rl.workers ({workers}) x rl.worker_resources.CPU ({resources['CPU']:g}) is more than the "
        f"{cores} processors of this machine: lower one of them, or name a cluster in {ADDRESS}"
    ]
