"""Discretised actions (Brohan et al. 2023, RT-2): one token for each dimension of a control step.

Edges are quantiles of the data (equal mass a bin), or uniform between its 1 % and 99 % quantiles. A
constant dimension gets no token: its constant is executed. A dimension with few distinct values (a
gripper command) gets one bin a value. Rare values far beyond the quantiles get bins of their own,
an eighth of all on either side, so that a jump is reproduced at about its size.

Shapes: `A` action dimensions, `a` of them active, `k` bins, `N` actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from vla.actions.action_statistics import CONSTANT_RANGE, check_dimensions, measure_action_range
from vla.devices import constant

OUTLIER_DISTANCE = 5.0
"""Distance from the middle of the quantiles beyond which a value is far, in halves of the distance
between the quantiles."""
OUTLIER_BINS_DIVISOR = 8
"""Of this many bins, one is for the far values of either side."""


@dataclass(frozen=True)
class ActionBins:
    """Bins of the active dimensions: `edges[i]` (interior ones) and `centers[i]` of dimension
    `active[i]`.

    `constants[j]`, for every dimension, is executed where dimension j is inactive.

    Raises:
        ValueError: the parts have contradictory sizes.
    """

    active: tuple[int, ...]
    constants: tuple[float, ...]
    edges: tuple[tuple[float, ...], ...]
    centers: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        check_dimensions(self.active, self.constants, self.edges, self.centers)
        if any(len(c) != len(e) + 1 for e, c in zip(self.edges, self.centers, strict=True)):
            raise ValueError("a dimension must have one centre more than interior edges")

    @property
    def num_bins(self) -> int:
        """Number of token ids: the bins of the dimension with the most."""
        return max(len(c) for c in self.centers)

    @property
    def num_active(self) -> int:
        return len(self.active)

    def valid_ids(self) -> Bool[Tensor, "a k"]:
        """A mask of the ids that are bins of each active dimension."""
        counts = torch.tensor([len(c) for c in self.centers])
        return torch.arange(self.num_bins) < counts[:, None]

    def encode(self, actions: Num[Tensor, "*rows A"]) -> Int[Tensor, "*rows a"]:
        """Bin ids of actions; values outside the edges fall into the outermost bins."""
        actions = actions.float()
        columns = [
            torch.bucketize(
                actions[..., d].contiguous(),
                constant(edges, actions.device),
                right=True,
            )
            for d, edges in zip(self.active, self.edges, strict=True)
        ]
        return torch.stack(columns, dim=-1)

    def decode(self, ids: Int[Tensor, "*rows a"]) -> Float[Tensor, "*rows A"]:
        """Bin centres of ids, constants elsewhere."""
        actions = constant(self.constants, ids.device).repeat(*ids.shape[:-1], 1)
        for i, d in enumerate(self.active):
            actions[..., d] = constant(self.centers[i], ids.device)[ids[..., i]]
        return actions

    def to_dict(self) -> dict[str, Any]:
        return {
            "active": self.active,
            "constants": self.constants,
            "edges": self.edges,
            "centers": self.centers,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ActionBins:
        return cls(
            active=tuple(int(d) for d in values["active"]),
            constants=tuple(float(c) for c in values["constants"]),
            edges=tuple(tuple(float(e) for e in row) for row in values["edges"]),
            centers=tuple(tuple(float(c) for c in row) for row in values["centers"]),
        )


def fit_bins(actions: Num[np.ndarray, "N A"], num_bins: int, binning: str) -> ActionBins:
    """Bins for `actions` (frames that the policy should imitate), at most `num_bins` a dimension.

    Raises:
        ValueError: no dimension moves, a number is NaN or infinite, or `binning` is neither
            "quantile" nor "uniform".
    """
    spread = measure_action_range(actions)
    active = np.flatnonzero(spread.moves).tolist()
    edges = []
    centers = []
    for dimension in active:
        values = actions[:, dimension].astype(np.float64)
        # In float32, as actions are when encoded, so that the centre of a bin lies in it.
        inner = np.unique(_interior_edges(values, num_bins, binning).astype(np.float32)).astype(
            np.float64
        )
        edges.append(tuple(float(e) for e in inner))
        centers.append(_centers(values, inner))
    constants = tuple(float(c) for c in spread.median)
    return ActionBins(tuple(active), constants, tuple(edges), tuple(centers))


def _interior_edges(values: np.ndarray, num_bins: int, binning: str) -> np.ndarray:
    """Edges between bins, with separate bins for near values and for the far ones of either
    side."""
    if binning not in ("quantile", "uniform"):
        raise ValueError(f"policy.binning ({binning}) must be quantile or uniform")
    low, high = np.quantile(values, [0.01, 0.99])
    far = OUTLIER_DISTANCE * max(high - low, CONSTANT_RANGE) / 2
    side = np.sign(values - (low + high) / 2) * (np.abs(values - (low + high) / 2) > far)
    groups = {which: values[side == which] for which in (-1, 0, 1) if (side == which).any()}
    few = len(np.unique(values.round(6))) <= num_bins
    if few or len(groups) == 1 or num_bins < OUTLIER_BINS_DIVISOR:
        return _edges_within(values, num_bins, binning)
    rooms = dict.fromkeys(groups, num_bins // OUTLIER_BINS_DIVISOR)
    rooms[0] = num_bins - (len(groups) - 1) * (num_bins // OUTLIER_BINS_DIVISOR)
    between = [(one.max() + other.min()) / 2 for one, other in pairwise(groups.values())]
    inner = [_edges_within(group, rooms[which], binning) for which, group in groups.items()]
    return np.sort(np.concatenate([*inner, between]))


def _edges_within(values: np.ndarray, num_bins: int, binning: str) -> np.ndarray:
    distinct = np.unique(values.round(6))
    if len(distinct) <= num_bins:
        return (distinct[1:] + distinct[:-1]) / 2
    if binning == "quantile":
        edges = np.unique(np.quantile(values, np.linspace(0, 1, num_bins + 1))[1:-1])
        return edges[(edges > values.min()) & (edges <= values.max())]
    low, high = np.quantile(values, [0.01, 0.99])
    return np.linspace(low, high, num_bins + 1)[1:-1]


def _centers(values: np.ndarray, edges: np.ndarray) -> tuple[float, ...]:
    """Mean of the data in each bin (the least squared error), the middle of the bin where it holds
    none."""
    ids = np.searchsorted(edges, values, side="right")
    bounds = np.concatenate([[values.min()], edges, [values.max()]])
    middles = (bounds[1:] + bounds[:-1]) / 2
    counts = np.bincount(ids, minlength=len(middles))
    sums = np.bincount(ids, weights=values, minlength=len(middles))
    return tuple(float(c) for c in np.where(counts > 0, sums / np.maximum(counts, 1), middles))
