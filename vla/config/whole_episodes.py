"""Fallback from branches to groups of whole episodes.

Branches need a simulator that can restore a state, and a policy that samples again from cached
features (`vla.rl.branching`). Where either is missing and the user did not set rl.num_branches, RL
compares whole episodes from one start. The number of episodes in an iteration stays the same.
"""

from __future__ import annotations

from collections.abc import Collection

from vla.config.robot import RobotConfig

GROUP_SIZE = 8


def explain_missing_branches(config: RobotConfig) -> str | None:
    """The reason that rules out branches; None where they are possible."""
    policy = config.policy
    adapt = config.rl.adapt
    if not config.sim.kind.restores_states:
        return (
            f"{config.sim.label} (sim.simulator={config.sim.simulator}) "
            "cannot restore an earlier state"
        )
    if adapt == "residual":
        return None  # a correction is drawn again without a pass of the frozen policy
    cache = policy.traits.cache
    if cache is None:
        return f"policy={policy.name} with these settings runs the model again for every draw"
    enough = ("head", "noise", "backbone", "lora") if cache == "prefix" else ("head",)
    if adapt not in enough:
        return (
            f"rl.adapt ({adapt}) keeps nothing to draw again from, policy={policy.name} needs "
            f"{' or '.join(enough)}"
        )
    return None


def with_whole_episodes(
    config: RobotConfig, given: Collection[str]
) -> tuple[RobotConfig, str | None]:
    """Switch to whole episodes where branches are impossible; return the settings and a note.

    Settings that the user gave (`given`) stay. The note is None where nothing changed.
    """
    why = explain_missing_branches(config)
    if (
        not config.rl.num_branches
        or not config.rl.num_iterations
        or why is None
        or "rl.num_branches" in given
    ):
        return config, None
    return whole_episodes(config, why, given)


def whole_episodes(
    config: RobotConfig, why: str, given: Collection[str] = ()
) -> tuple[RobotConfig, str]:
    """Replace branches by groups of whole episodes; return the settings and a note.

    Groups are needed only by algorithms that compare trajectories.
    """
    rl = config.rl
    changes = {"num_branches": 0}
    if config.algorithm.traits.needs_groups and rl.group_size == 1:
        groups = {
            "group_size": GROUP_SIZE,
            "num_start_states": max(1, rl.num_start_states // GROUP_SIZE),
        }
        changes |= {name: value for name, value in groups.items() if f"rl.{name}" not in given}
    written = " ".join(f"rl.{name}={value}" for name, value in changes.items())
    changed = config.model_copy(update={"rl": rl.model_copy(update=changes)})
    return changed, f"{written}: {why}, so RL learns from whole episodes"
