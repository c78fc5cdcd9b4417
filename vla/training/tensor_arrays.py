"""Tensors in nested states as NumPy arrays, which Ray's object store shares without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class TensorBytes:
    """A tensor as bytes, uint8 [n]; NumPy has no bfloat16."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    data: np.ndarray


def to_arrays(value: Any) -> Any:
    """Replace the tensors in nested mappings, lists and tuples by `TensorBytes`."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().reshape(-1)
        packed = torch.empty(flat.shape, dtype=flat.dtype).copy_(flat)
        data = packed.view(torch.uint8).numpy() if len(packed) else np.zeros(0, np.uint8)
        return TensorBytes(value.dtype, tuple(value.shape), data)
    if isinstance(value, Mapping):
        return {key: to_arrays(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_arrays(item) for item in value)
    return value


def from_arrays(value: Any) -> Any:
    """The inverse of `to_arrays`. Tensors are copies, because shared memory is read-only."""
    if isinstance(value, TensorBytes):
        copy = torch.empty(value.shape, dtype=value.dtype)
        if copy.numel():
            np.copyto(copy.view(-1).view(torch.uint8).numpy(), value.data)
        return copy
    if isinstance(value, Mapping):
        return {key: from_arrays(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(from_arrays(item) for item in value)
    return value
