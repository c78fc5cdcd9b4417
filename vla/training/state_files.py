"""Files of a nested training state: safetensors and JSON, without pickle.

Each entry of the state has a `NAME.safetensors` with its tensors. `state.json` holds the plain
values, and the name of a tensor in its place. Types that JSON lacks are marked: {"$tensor": name},
{"$array": name}, {"$tuple": [...]}, {"$items": [[key, value], ...]}, {"$float": "nan"}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla.files.arrays import read_safetensors
from vla.files.reading import read_json, validating_file
from vla.files.writing import write_json
from vla.types import StateDict


@dataclass(frozen=True)
class TensorCollector:
    """Tensors by their path in the state. Tied weights share one path, so they are written once."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    paths: dict[tuple[object, ...], str] = field(default_factory=dict)

    def add(self, tensor: Tensor, path: str) -> str:
        """Add a tensor; return its path, or the path of a tensor with the same memory."""
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() == 0 or memory not in self.paths:
            assert path not in self.tensors, f"two tensors have the path {path}"
            self.tensors[path] = tensor.detach()
            self.paths[memory] = path
            return path
        return self.paths[memory]


def write_state(folder: Path, state: StateDict) -> None:
    """Write a state to `folder`: tensors, arrays, numbers, strings, None, and lists, tuples and
    dicts of them.

    Raises:
        TypeError: for a value of another type.
    """
    from safetensors.torch import save_file

    plain = {}
    for name, value in state.items():
        collected = TensorCollector()
        plain[name] = encode_state(value, "", collected)
        if collected.tensors:
            save_file(make_contiguous(collected.tensors), folder / f"{name}.safetensors")
    write_json(folder / "state.json", plain)


def read_state(folder: Path) -> StateDict:
    """Read the state that `write_state` wrote, with tensors on the CPU. Tied tensors share memory
    again."""
    path = folder / "state.json"
    state = {}
    for name, value in read_plain_state(folder).items():
        file = folder / f"{name}.safetensors"
        with validating_file(path):
            state[name] = decode_state(value, read_safetensors(file) if file.exists() else {})
    return state


def read_plain_state(folder: Path) -> StateDict:
    """Read the plain values of a state, with markers in place of its tensors."""
    return read_json(folder / "state.json", finite=False)  # earlier versions wrote NaN


def tensor_bytes(state: object) -> int:
    """Bytes of the tensors in `state`: a lower bound of the size of its files."""
    if isinstance(state, Tensor):
        return state.nbytes
    parts = (
        state.values()
        if isinstance(state, Mapping)
        else state
        if isinstance(state, list | tuple)
        else ()
    )
    return sum(tensor_bytes(part) for part in parts)


def encode_state(value: object, path: str, collected: TensorCollector) -> Any:
    """Encode `value` as JSON and add its tensors to `collected` under their path in the state."""
    if isinstance(value, Tensor):
        return {"$tensor": collected.add(value, path)}
    if isinstance(value, np.ndarray):
        return {"$array": collected.add(torch.from_numpy(value), path)}
    if isinstance(value, Mapping):
        items = [
            (key, encode_state(item, f"{path}.{key}" if path else str(key), collected))
            for key, item in value.items()
        ]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
            return dict(items)
        return {"$items": [[encode_state(key, path, collected), item] for key, item in items]}
    if isinstance(value, list | tuple):
        parts = [
            encode_state(item, f"{path}.{i}" if path else str(i), collected)
            for i, item in enumerate(value)
        ]
        return {"$tuple": parts} if isinstance(value, tuple) else parts
    if isinstance(value, np.generic):
        return encode_state(value.item(), path, collected)
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"a checkpoint cannot hold {path or 'this value'}, a {type(value).__name__}: it holds only "
        "tensors and plain values"
    )


def make_contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory, as safetensors requires."""
    storages: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = (
            tensor.is_contiguous()
            and storage.nbytes() == tensor.nbytes
            and storage.data_ptr() not in storages
        )
        separate[name] = tensor.cpu() if whole else tensor.cpu().contiguous().clone()
        storages.add(storage.data_ptr())
    return separate


def decode_state(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Decode JSON of `encode_state`, with its tensors."""
    if isinstance(value, list):
        return [decode_state(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$array" in value:
        return tensors[value["$array"]].numpy()
    if "$float" in value:
        return float(value["$float"])
    if "$tuple" in value:
        return tuple(decode_state(item, tensors) for item in value["$tuple"])
    if "$items" in value:
        return {
            decode_state(key, tensors): decode_state(item, tensors) for key, item in value["$items"]
        }
    return {key: decode_state(item, tensors) for key, item in value.items()}
