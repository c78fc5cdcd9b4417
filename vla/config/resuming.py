"""Settings that a resumed run may change: length, learning rates, saving and reporting.

Weights, data and evaluations of a run depend on its other settings. A change of those would show
hours later, or never.
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
    "language_model.engine*",
    "text.verifier_timeout_seconds",
    "text.judge.url",
    "*learning_rate",
    "*.micro_batch_size",
    "*.max_seconds",
    "*.max_grad_norm",
    "*.gradient_checkpointing",
)
"""Patterns of settings that may change, except those of `FIXED`."""
FIXED = (
    "train.seed",
    "rl.optimizer",
    "rl.adapt",
    "rl.residual_scale",
    "rl.noise_bound",
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
"""Patterns of settings that the content of a checkpoint depends on."""
SWITCHES = ("rl.ema_decay", "rl.num_branches", "sft.ema_decay", "algorithm.kl_coefficient")
"""Settings that may change, but not from or to 0 or null.

Above 0 a checkpoint holds an additional part.
"""


def incompatible_changes(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Changes that do not fit a checkpoint: (setting, saved value, requested value) of each."""
    old = flatten_settings(before)
    new = flatten_settings(after)
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return [
        (name, old.get(name), new.get(name))
        for name in changed
        if not is_compatible_change(name, old.get(name), new.get(name))
    ]


def is_compatible_change(name: str, old: Any, new: Any) -> bool:
    """True where a run may continue with the new value of a setting."""
    if name in SWITCHES:
        return bool(old) == bool(new)
    return any(fnmatchcase(name, pattern) for pattern in FREE) and not any(
        fnmatchcase(name, p) for p in FIXED
    )


def flatten_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of every setting; a list is one setting."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
