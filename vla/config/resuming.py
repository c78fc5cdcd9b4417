"""What a resumed run may be told anew: how long and how fast it learns, and how it is saved and
shown.

Weights, data and judgements that a run has made belong to its other settings. A change there would
be found out hours later, or never.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

FREE = (
    "train.*",
    "rl.*",
    "algorithm.*",
    "sft.*",
    "recap.num_rounds",
    "evaluation.num_videos",
    "sim.num_envs",
    "sim.num_threads",
    "sim.renderer",
    "language_model.engine",
    "text.verifier_timeout_seconds",
    "text.judge.url",
    "*learning_rate",
    "*.micro_batch_size",
    "*.max_seconds",
    "*.max_grad_norm",
    "*.gradient_checkpointing",
)
"""Settings that may change, but for those below."""
FIXED = (
    "train.seed",
    "rl.optimizer",
    "rl.critic",
    "rl.reference",
    "rl.load_best_at_end",
    "rl.num_branch_warmup_iterations",
    "sft.optimizer",
    "sft.head_*",
    "sft.max_head_epochs",
    "sft.batch_size",
    "sft.augment*",
)
"""What a checkpoint holds is made for these."""
SWITCHES = ("rl.ema_decay", "rl.num_branches", "sft.ema_decay", "algorithm.kl_coefficient")
"""Above 0 a checkpoint holds a part more: they may change, but not from or to 0 or null."""


def incompatible_changes(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """(setting, its value, the one asked for) of every change that does not fit what a run has
    made."""
    old, new = flatten_settings(before), flatten_settings(after)
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return [
        (name, old.get(name), new.get(name))
        for name in changed
        if not is_compatible_change(name, old.get(name), new.get(name))
    ]


def is_compatible_change(name: str, old: Any, new: Any) -> bool:
    """Whether a run may go on with another value of a setting."""
    if name in SWITCHES:
        return bool(old) == bool(new)
    return any(fnmatchcase(name, pattern) for pattern in FREE) and not any(
        fnmatchcase(name, p) for p in FIXED
    )


def flatten_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted name; a list is one setting."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten_settings(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found
