"""Every algorithm by name, with flat settings; what cannot work is refused by name before anything
heavy loads."""

from __future__ import annotations

import difflib
from dataclasses import MISSING, fields
from typing import Any

from vla.rl.cispo import CISPO
from vla.rl.dapo import DAPO
from vla.rl.dr_grpo import DrGRPO
from vla.rl.grpo import GRPO
from vla.rl.gspo import GSPO
from vla.rl.maxrl import MaxRL
from vla.rl.ppo import PPO
from vla.rl.protocols import Algorithm
from vla.rl.reinforce import REINFORCE
from vla.rl.reinforce_plus_plus import REINFORCEPlusPlus
from vla.rl.rloo import RLOO
from vla.rl.update import UpdateSettings

NAMES = (
    *("ppo", "grpo", "dr_grpo", "dapo", "gspo", "cispo"),
    *("rloo", "maxrl", "reinforce", "reinforce_plus_plus"),
)


def algorithm_type(name: str) -> type[Any]:
    """The frozen dataclass that holds this algorithm's settings."""
    match name:
        case "ppo":
            return PPO
        case "grpo":
            return GRPO
        case "dr_grpo":
            return DrGRPO
        case "dapo":
            return DAPO
        case "gspo":
            return GSPO
        case "cispo":
            return CISPO
        case "rloo":
            return RLOO
        case "maxrl":
            return MaxRL
        case "reinforce":
            return REINFORCE
        case "reinforce_plus_plus":
            return REINFORCEPlusPlus
        case _:
            raise ValueError(
                f"algorithm ({name!r}) is unknown{did_you_mean(name, NAMES)}; there are {', '.join(NAMES)}"
            )


def make_algorithm(name: str, **settings: Any) -> Algorithm:
    """An algorithm from its name and settings; a setting it does not have, or lacks, is named."""
    kind = algorithm_type(name)
    known = {f.name: f for f in fields(kind)}
    for setting in settings:
        if setting not in known:
            hint = did_you_mean(setting, tuple(known))
            raise ValueError(
                f"{name}.{setting} is not a setting of {name}{hint}; it has {', '.join(known)}"
            )
    missing = [n for n, f in known.items() if f.default is MISSING and n not in settings]
    if missing:
        raise ValueError(
            f"{name}.{missing[0]} is missing: give a value (docs/algorithms.md says which are usual)"
        )
    return kind(**settings)


def did_you_mean(name: str, choices: tuple[str, ...]) -> str:
    """A hint where a choice is near enough, else nothing."""
    near = difflib.get_close_matches(name, choices, n=1)
    return f": did you mean {near[0]!r}?" if near else ""


def check_run(
    algorithm: Algorithm,
    update: UpdateSettings,
    *,
    group_size: int,
    has_critic: bool,
    has_reference: bool,
    num_rows: int | None = None,
) -> None:
    """Refuse a run that cannot work. `num_rows` is the number of decisions in a rollout where it is
    fixed (text), else None.
    """
    name = type(algorithm).__name__
    if group_size < 1 or (algorithm.needs_groups and group_size < 2):
        least = 2 if algorithm.needs_groups else 1
        raise ValueError(
            f"group_size ({group_size}) must be at least {least} for {name}: it compares trajectories of one start"
        )
    if algorithm.needs_values and not has_critic:
        raise ValueError(
            f"{name} needs a policy with a critic: switch the value head on or choose grpo"
        )
    if algorithm.needs_reference and not has_reference:
        raise ValueError(
            f"kl_coefficient of {name} is above 0 and there is no reference policy: give one or set it to 0"
        )
    if num_rows is not None and num_rows % update.num_minibatches:
        raise ValueError(
            f"num_minibatches ({update.num_minibatches}) must divide the rows of a rollout ({num_rows})"
        )
    if isinstance(algorithm, REINFORCE) and (update.epochs > 1 or update.num_minibatches > 1):
        raise ValueError(
            f"epochs ({update.epochs}) and num_minibatches ({update.num_minibatches}) must be 1 for REINFORCE: it has "
            "no ratio to correct for the steps already taken; use reinforce_plus_plus or ppo for more"
        )
