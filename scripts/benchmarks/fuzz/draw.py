"""Random spoiled settings: plain values of a run with some of them replaced, drawn by a seed."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Values = dict[str, Any]
"""Settings as nested mappings of plain values."""
BASES = (
    *(
        "",
        "preset=smoke",
        "sim=gym",
        "sim=reach",
        "sim.task=[reach,push]",
        "model=hub",
        "model=smollm2",
        "model=smolvlm",
    ),
    *(
        "policy=flow",
        "policy=diffusion",
        "policy=fast",
        "policy=regression",
        "policy.decoding=autoregressive",
    ),
    *(
        "algorithm=ppo",
        "algorithm=dppo",
        "algorithm=dapo",
        "algorithm=grpo_deepseek",
        "algorithm=reinforce",
    ),
    *("algorithm=gspo", "algorithm=maxrl", "model.lora={rank:4,alpha:8}"),
    *(
        f"mode=text text={name}"
        for name in ("rlvr", "sft", "rlhf", "rejection", "control", "constitution", "rlaif")
    ),
    *(
        "mode=text language_model=tiny",
        "mode=text preset=smoke",
        "mode=text algorithm=reinforce_plus_plus",
    ),
    *(
        f"mode=text preference={name}"
        for name in ("dpo", "ipo", "kto", "orpo", "simpo", "plackett_luce")
    ),
)
"""Command lines whose settings are spoiled."""
NUMBERS: tuple[object, ...] = (
    0,
    -1,
    1,
    2,
    3,
    7,
    0.5,
    1.5,
    -0.5,
    1e-300,
    1e-9,
    1e9,
    1e12,
    1e300,
    10**6 + 3,
    2**31,
    2**63,
    10**21,
)
NO_NUMBERS: tuple[object, ...] = (
    float("nan"),
    float("inf"),
    -float("inf"),
    True,
    False,
    None,
    "",
    " ",
    "nope",
    "1",
    "nope.nope",
)
OTHERS: tuple[object, ...] = (
    [],
    {},
    [1],
    ["a", "a"],
    ["front", "wrist"],
    {"a": 1},
    {"success": True},
    {"correct": 0},
    [[1]],
    [None],
)


@dataclass(frozen=True)
class Change:
    """A setting that was replaced, or added (`before` is then Ellipsis)."""

    path: str
    before: object
    after: object


def setting_paths(values: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of all settings and sections."""
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from setting_paths(value, f"{prefix}{key}.")


def spoil_settings(values: Mapping[str, Any], rng: random.Random) -> tuple[Values, list[Change]]:
    """Replace one to three settings; the new values and the changes."""
    result: Values = copy.deepcopy(dict(values))
    changes = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(list(setting_paths(result)))
        if rng.random() < 0.03:
            path += "_x"
        *sections, name = path.split(".")
        section = result
        for part in sections:
            section = section[part]
        before = section.get(name, ...)
        section[name] = draw_replacement(before, rng)
        changes.append(Change(path, before, section[name]))
    return result, changes


def draw_replacement(value: object, rng: random.Random) -> object:
    """Draw a value in place of another: near to it, at the end of a range, or of another kind."""
    kind = rng.random()
    if isinstance(value, list) and value and kind < 0.4:
        return [*value, value[0]]
    if isinstance(value, int | float) and not isinstance(value, bool) and kind < 0.5:
        return rng.choice(
            (value * 1000, value + 1, -value, value / 3, value * 10**9, value / 10**13)
        )
    return copy.deepcopy(
        rng.choice(NUMBERS if kind < 0.75 else NO_NUMBERS if kind < 0.92 else OTHERS)
    )
