"""Factory of algorithms by name and flat settings, and checks of a run's settings."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from vla.plugins import find_target, load_target
from vla.rl.algorithms import algorithm_table
from vla.rl.protocols import Algorithm
from vla.rl.update import UpdateSettings
from vla.spelling import suggestion


def algorithm_type(name: str) -> type[Any]:
    """The frozen dataclass of an algorithm; imports its module."""
    kind: type[Any] = load_target(find_target(algorithm_table(), "algorithm", name))
    return kind


def make_algorithm(name: str, **settings: Any) -> Algorithm:
    """Make an algorithm from its name and settings.

    Raises:
        ValueError: for an unknown name, an unknown setting or a missing one.
    """
    kind = algorithm_type(name)
    known = {field.name: field for field in fields(kind)}
    for setting in settings:
        if setting not in known:
            raise ValueError(
                f"{name}.{setting} is not a setting of {name}{suggestion(setting, known)}"
            )
    missing = [n for n, f in known.items() if f.default is MISSING and n not in settings]
    if missing:
        raise ValueError(
            f"{name}.{missing[0]} is missing: give a value "
            "(docs/reference/algorithms.md says which are usual)"
        )
    algorithm: Algorithm = kind(**settings)
    return algorithm


def check_run(
    algorithm: Algorithm,
    update: UpdateSettings,
    *,
    group_size: int,
    has_critic: bool,
    has_reference: bool,
    num_rows: int | None = None,
) -> None:
    """Check that the algorithm fits the run.

    `num_rows` is the number of decisions in a rollout where it is fixed (text), else None.

    Raises:
        ValueError: for a group that is too small, a missing critic or reference, or a number of
            epochs or minibatches that the algorithm does not support.
    """
    name = type(algorithm).__name__
    if group_size < 1 or (algorithm.needs_groups and group_size < 2):
        least = 2 if algorithm.needs_groups else 1
        raise ValueError(
            f"group_size ({group_size}) must be at least {least} for {name}: it compares "
            "trajectories of one start"
        )
    if algorithm.needs_values and not has_critic:
        raise ValueError(
            f"{name} needs a policy with a critic: switch the value head on or choose grpo"
        )
    if algorithm.needs_reference and not has_reference:
        raise ValueError(
            f"kl_coefficient of {name} is above 0 and there is no reference policy: give one or "
            "set it to 0"
        )
    if num_rows is not None and num_rows % update.num_minibatches:
        raise ValueError(
            f"num_minibatches ({update.num_minibatches}) must divide the rows of a rollout "
            f"({num_rows})"
        )
    if not algorithm.uses_ratio and (update.epochs > 1 or update.num_minibatches > 1):
        raise ValueError(
            f"epochs ({update.epochs}) and num_minibatches ({update.num_minibatches}) must be 1 "
            f"for {name}: it has "
            "no ratio to correct for the steps already taken; use reinforce_plus_plus or ppo for "
            "more"
        )
