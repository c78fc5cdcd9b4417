"""Datasets and policies held against what actions and state mean elsewhere: names, units, rate,
limits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

NUMBERED = re.compile(
    r"((observation[._])?(action|state|proprio|motor|dim|value|feature)s?[._ -]?)?\d+"
)
UNINFORMATIVE = ("unknown", "environment's own", "")
LIMITS_FROM_DATA = "seen in the demonstrations"
"""Under `limits` of an action spec whose `low` and `high` nobody stated: no limits to hold others
against."""
WITHOUT_SIMULATOR = 'lerobot-train --policy.type=vla --policy.settings="model.checkpoint=null" trains on a dataset without a simulator'
MEANING_FIELDS = ("names", "units", "kinds", "frame", "gripper_sign")
"""What numbers alone cannot tell."""


def is_uninformative(value: Any) -> bool:
    """Whether a field of an action spec, or a name, leaves its meaning open: null, "unknown",
    "action_3"."""
    if isinstance(value, list | tuple):
        return all(is_uninformative(item) for item in value)
    return value is None or (
        isinstance(value, str) and (value in UNINFORMATIVE or bool(NUMBERED.fullmatch(value)))
    )


def check_action_spec(found: Mapping[str, Any], expected: Mapping[str, Any], owner: str) -> None:
    """Hold two action specs against each other, field by field. Fields that `found` does not state
    pass, and what says nothing on either side is not held against what the other says; the number
    of names must agree all the same.

    Raises:
        ValueError: naming the first field that differs, with both values.
    """
    mine = json.loads(json.dumps(dict(expected)))
    theirs = json.loads(json.dumps(dict(found)))
    only_seen = (
        ("low", "high") if LIMITS_FROM_DATA in (mine.get("limits"), theirs.get("limits")) else ()
    )
    for field, value in mine.items():
        if field not in theirs or theirs[field] == value or field in only_seen:
            continue
        sizes = {len(each) for each in (theirs[field], value) if isinstance(each, list)}
        if len(sizes) <= 1 and (is_uninformative(theirs[field]) or is_uninformative(value)):
            continue
        raise ValueError(
            f"action spec: {field} is {theirs[field]!r} in {owner}, but {value!r} is expected. "
            "Collect the demonstrations again with these settings, or use a model and "
            "environment that fit them"
        )


def check_state(found: Sequence[str], expected: Sequence[str], owner: str) -> None:
    """Hold the names of two states against each other; names that say nothing are held by their
    number alone.

    Raises:
        ValueError: another size, or other names.
    """
    if len(found) == len(expected) and (
        is_uninformative(found) or is_uninformative(expected) or [*found] == [*expected]
    ):
        return
    raise ValueError(
        f"observation.state: {len(found)} numbers {list(found)} in {owner}, but {len(expected)} "
        f"{list(expected)} are "
        f"expected. Use data and an environment whose states are the same; {WITHOUT_SIMULATOR}"
    )


def check_limits(
    actions: Float32[np.ndarray, "N A"], spec: Mapping[str, Any], allowed: float, owner: str
) -> str | None:
    """Hold actions against the limits that the environment cuts them to; a sentence where some lie
    outside.

    Args:
        actions: of the frames that are imitated.
        spec: an action spec with `names`, `low` and `high`.
        allowed: the largest share of frames with a number outside (`data.max_outside_limits`).
        owner: what the dataset is called in messages.

    Raises:
        ValueError: more frames than that have a number outside.
    """
    if "low" not in spec or "high" not in spec:
        return None
    low = np.asarray(spec["low"], np.float64)
    high = np.asarray(spec["high"], np.float64)
    outside = outside_limits(actions, low, high)
    share = float(outside.any(1).mean())
    if not share:
        return None
    worst = [
        f"{spec['names'][d]}: {format_percent(outside[:, d].mean())} of frames outside "
        f"{low[d]:g} to {high[d]:g}, it spans "
        f"{actions[:, d].min():.3g} to {actions[:, d].max():.3g}"
        for d in np.argsort(-outside.mean(0), kind="stable")[:3]
        if outside[:, d].any()
    ]
    told = f"{format_percent(share)} of the frames of {owner} have an action outside the limits ({'; '.join(worst)})"
    if share <= allowed:
        return f"{told}: the environment cuts them there, a policy that imitates them does less than was shown"
    raise ValueError(
        f"{told}, data.max_outside_limits ({allowed:g}) allows {format_percent(allowed)}: "
        f"{guess_unit(actions, spec, outside)}"
        "scale them to the environment's units, or raise data.max_outside_limits if they may be cut"
    )


def outside_limits(
    actions: Float32[np.ndarray, "N A"], low: np.ndarray, high: np.ndarray
) -> Bool[np.ndarray, "N A"]:
    """Which numbers lie outside, beyond what rounding explains."""
    slack = 1e-4 * (high - low)
    return (actions < low - slack) | (actions > high + slack)


def guess_unit(
    actions: Float32[np.ndarray, "N A"], spec: Mapping[str, Any], outside: Bool[np.ndarray, "N A"]
) -> str:
    """A guess at the unit of dimensions that lie outside, from how far they reach."""
    dimensions = np.flatnonzero(outside.mean(0) > 0.01)
    reach = np.abs(actions).max(0)[dimensions]
    units = spec.get("units") or [None] * actions.shape[1]
    if len(dimensions) and ((reach > 0.8) & (reach < 1.01)).all():
        return "the dataset looks normalised to [-1, 1]; "
    if any(units[d] == "rad" and r > 2 * np.pi for d, r in zip(dimensions, reach, strict=True)):
        return "its angles look like degrees, and radians are expected; "
    if any(units[d] == "m" and r > 2 for d, r in zip(dimensions, reach, strict=True)):
        return "its lengths look like millimetres or centimetres, and metres are expected; "
    return ""


def describe_missing_spec(
    stated: Mapping[str, Any], expected: Mapping[str, Any], owner: str
) -> str | None:
    """What a dataset does not say of its actions, in a sentence; None where it says all that
    `expected` does."""
    open_fields = [
        field.replace("_", " ")
        for field in MEANING_FIELDS
        if not is_uninformative(expected.get(field)) and is_uninformative(stated.get(field))
    ]
    if not open_fields:
        return None
    return (
        f"{owner} does not say {', '.join(open_fields)} of its actions (it has no "
        "meta/action_spec.json with them): "
        "they are taken as the environment's"
    )


def format_percent(share: float) -> str:
    return f"{100 * share:.3g} %"
