"""Checks of a dataset's or policy's action and state spec against an environment's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32

from vla.files.reading import JsonMapping

NUMBERED = re.compile(
    r"((observation[._])?(action|state|proprio|motor|dim|value|feature)s?[._ -]?)?\d+"
)
UNINFORMATIVE = ("unknown", "environment's own", "")
LIMITS_FROM_DATA = "seen in the demonstrations"
"""Value of `limits` in an action spec whose `low` and `high` are the range of the data, no limits.
"""
WITHOUT_SIMULATOR = (
    'lerobot-train --policy.type=vla --policy.settings="model.checkpoint=null" trains on a '
    "dataset without a simulator"
)
MEANING_FIELDS = ("names", "units", "kinds", "frame", "gripper_sign")
"""Fields that cannot be inferred from the numbers."""


def is_uninformative(value: object) -> bool:
    """True where a field of an action spec, or a name, is open: null, "unknown", "action_3"."""
    if isinstance(value, list | tuple):
        return all(is_uninformative(item) for item in value)
    return value is None or (
        isinstance(value, str) and (value in UNINFORMATIVE or bool(NUMBERED.fullmatch(value)))
    )


def check_action_spec(stated: JsonMapping, expected: JsonMapping, owner: str) -> None:
    """Compare two action specs field by field.

    Fields that `stated` lacks pass, and so do uninformative ones on either side. The number of
    names must agree all the same.

    Raises:
        ValueError: with the first field that differs, and both values.
    """
    expected_values = json.loads(json.dumps(dict(expected)))
    stated_values = json.loads(json.dumps(dict(stated)))
    unstated_limits = (
        ("low", "high")
        if LIMITS_FROM_DATA in (expected_values.get("limits"), stated_values.get("limits"))
        else ()
    )
    for field, value in expected_values.items():
        if field not in stated_values or stated_values[field] == value or field in unstated_limits:
            continue
        sizes = {len(each) for each in (stated_values[field], value) if isinstance(each, list)}
        if len(sizes) <= 1 and (is_uninformative(stated_values[field]) or is_uninformative(value)):
            continue
        raise ValueError(
            f"action spec: {field} is {stated_values[field]!r} in {owner}, but {value!r} is "
            "expected. "
            "Collect the demonstrations again with these settings, or use a model and "
            "environment that fit them"
        )


def check_state(stated: Sequence[str], expected: Sequence[str], owner: str) -> None:
    """Compare the names of two states; uninformative names are compared by their number alone.

    Raises:
        ValueError: another size, or other names.
    """
    if len(stated) == len(expected) and (
        is_uninformative(stated) or is_uninformative(expected) or [*stated] == [*expected]
    ):
        return
    raise ValueError(
        f"observation.state: {len(stated)} numbers {list(stated)} in {owner}, but {len(expected)} "
        f"{list(expected)} are "
        f"expected. Use data and an environment whose states are the same; {WITHOUT_SIMULATOR}"
    )


def check_limits(
    actions: Float32[np.ndarray, "N A"], spec: JsonMapping, allowed: float, owner: str
) -> str | None:
    """Compare actions with the environment's limits; a note where some lie outside.

    Args:
        actions: of the frames that are imitated.
        spec: an action spec with `names`, `low` and `high`.
        allowed: largest fraction of frames with a number outside (`data.max_outside_limits`).
        owner: the dataset's name in messages.

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
    summary = (
        f"{format_percent(share)} of the frames of {owner} have an action outside the limits "
        f"({'; '.join(worst)})"
    )
    if share <= allowed:
        return (
            f"{summary}: the environment clips them, so a policy that imitates them moves less "
            "than "
            "the demonstrations"
        )
    raise ValueError(
        f"{summary}, data.max_outside_limits ({allowed:g}) allows {format_percent(allowed)}: "
        f"{guess_unit(actions, spec, outside)}"
        "scale them to the environment's units, or raise data.max_outside_limits if they may be cut"
    )


def outside_limits(
    actions: Float32[np.ndarray, "N A"], low: np.ndarray, high: np.ndarray
) -> Bool[np.ndarray, "N A"]:
    """The numbers outside the limits, beyond rounding errors."""
    slack = 1e-4 * (high - low)
    return (actions < low - slack) | (actions > high + slack)


def guess_unit(
    actions: Float32[np.ndarray, "N A"], spec: JsonMapping, outside: Bool[np.ndarray, "N A"]
) -> str:
    """A guess at the unit of the dimensions outside the limits, by their largest values."""
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


def describe_missing_spec(stated: JsonMapping, expected: JsonMapping, owner: str) -> str | None:
    """A note about fields of `expected` that a dataset leaves open; None where it leaves none."""
    open_fields = [
        field.replace("_", " ")
        for field in MEANING_FIELDS
        if not is_uninformative(expected.get(field)) and is_uninformative(stated.get(field))
    ]
    if not open_fields:
        return None
    return (
        f"{owner} does not state the {', '.join(open_fields)} of its actions (it has no "
        "meta/action_spec.json with them): the environment's are assumed"
    )


def format_percent(share: float) -> str:
    """A fraction in percent, three digits."""
    return f"{100 * share:.3g} %"
