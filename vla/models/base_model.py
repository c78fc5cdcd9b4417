"""Weights of a pretrained base that the checkpoints of a model leave out.

A checkpoint of adapters names its base and leaves the base's frozen weights out. Of the embeddings
it keeps the rows of the reserved ids (locations, actions), which are not those of the base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from vla.files.arrays import ROWS


@runtime_checkable
class LeavesOutBase(Protocol):
    """A module whose state dict leaves weights out.

    Attributes:
        left_out: names of the parameters.
        first_rows: {name: first row that is not the base's}; rows from there on are kept.
    """

    left_out: frozenset[str]
    first_rows: Mapping[str, int]


def leave_out(model: Any, names: Iterable[str], first_rows: Mapping[str, int]) -> None:
    """Leave parameters out of the state dict of a model, which then loads without them.

    Args:
        model: gets the attributes of `LeavesOutBase`.
        names: names of parameters of the model.
        first_rows: {name: first row that is not the base's}; the rows from there on are kept.
    """
    is_new = not getattr(model, "left_out", None)
    model.left_out = frozenset(names)
    model.first_rows = {name: row for name, row in first_rows.items() if name in model.left_out}
    if is_new and model.left_out:
        model.register_state_dict_post_hook(remove_base)
        model.register_load_state_dict_pre_hook(copy_rows)
        model.register_load_state_dict_post_hook(allow_missing)


def remove_base(module: LeavesOutBase, state: dict[str, Any], prefix: str, _: object) -> None:
    """Remove the base's weights from a state dict, and add the rows that are not the base's."""
    rows = {
        f"{prefix}{name}{ROWS}": state[prefix + name][first:]
        for name, first in module.first_rows.items()
    }
    for name in module.left_out:
        state.pop(prefix + name, None)
    state.update(rows)


def copy_rows(module: Any, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Copy the rows that are not the base's into their weights."""
    module.load_prefix = prefix
    for name in module.first_rows:
        rows = state.pop(f"{prefix}{name}{ROWS}", None)
        if rows is not None:
            weight = module.get_parameter(name).data
            weight[len(weight) - len(rows) :].copy_(rows)


def allow_missing(module: Any, keys: Any) -> None:
    """Take the base's weights from the list of missing keys."""
    allowed = {module.load_prefix + name for name in module.left_out}
    keys.missing_keys[:] = [key for key in keys.missing_keys if key not in allowed]
