"""Objects with tensors as bytes, for another process of the same run. Never for files of others."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch


def pickle_object(value: Any, pickle_module: Any) -> np.ndarray:
    """An object as bytes, uint8 [n]."""
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_module=pickle_module)
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)


def unpickle_object(data: np.ndarray, device: str) -> Any:
    """The object of `pickle_object`, with its tensors on `device`."""
    return torch.load(io.BytesIO(data.tobytes()), map_location=device, weights_only=False)
