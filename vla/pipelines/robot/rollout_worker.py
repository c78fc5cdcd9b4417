"""Rollout worker of a robot: a copy of the policy with a simulator of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vla.config.simulation import read_section
from vla.rl.branching import BranchCollector, BranchSettings
from vla.rl.protocols import Observe
from vla.rl.state_critic import StateCritic
from vla.simulator import make_simulator
from vla.training.rollout_shards import ShardCollector

BRANCHES = "branches"
"""Name of the branches among the parts of a worker."""


@dataclass(frozen=True)
class RobotWorkerPlan:
    """What a worker is built from.

    Attributes:
        simulation: the section `sim` as plain values; a simulator itself does not pickle.
        learner: the policy, or an `ActorCritic` around it.
        branches: settings and seed of the branches; None for whole episodes.
    """

    simulation: Mapping[str, Any]
    learner: Any
    observer: Observe
    group_size: int
    branches: tuple[BranchSettings, int] | None = None

    def build(self, num_threads: int) -> ShardCollector:
        """Make the simulator and, for branches, their collector."""
        values = dict(self.simulation)
        if values.get("num_threads") == 0:  # one per core is meant for one process
            values["num_threads"] = num_threads
        environment = make_simulator(read_section(values)).environment()
        if self.branches is None:
            return ShardCollector(self.learner, environment, self.observer, self.group_size)
        settings, seed = self.branches
        actor = getattr(self.learner, "actor", self.learner)
        branches = BranchCollector(actor, environment, settings, StateCritic(seed), seed)  # type: ignore[arg-type]
        return ShardCollector(
            self.learner,
            environment,
            self.observer,
            self.group_size,
            {BRANCHES: branches},
            branches.before_step,
        )
