"""Device and precision of a run: `train.device` and `train.precision`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Precision = Literal["auto", "fp32", "bf16"]
CPU = torch.device("cpu")
ALIGNMENT = 16
"""Bytes; the address of a tensor within a packed copy is a multiple."""


def is_available(device: torch.device) -> bool:
    """True where this machine has the device."""
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    return device.type == "cpu" or (device.type == "mps" and torch.backends.mps.is_available())


def choose_device(name: str) -> torch.device:
    """The device that `train.device` names: auto, cpu, cuda, cuda:N or mps.

    `auto` is a GPU where there is one: CUDA before Apple's Metal (mps).

    Raises:
        ValueError: this machine does not have it.
    """
    if name == "auto":
        found = (torch.device(kind) for kind in ("cuda", "mps"))
        return next(filter(is_available, found), CPU)
    device = torch.device(name)
    if not is_available(device):
        raise ValueError(f"train.device ({name}): {_describe_devices(device.type)}")
    return device


def available_device(name: str) -> torch.device:
    """The device of a saved run, or `auto` where this machine does not have it."""
    device = CPU if name == "auto" else torch.device(name)
    return device if name != "auto" and is_available(device) else choose_device("auto")


def _describe_devices(kind: str) -> str:
    count = torch.cuda.device_count() if kind == "cuda" and torch.cuda.is_available() else 0
    if count:
        return f"there are {count} GPUs here: use cuda:0 to cuda:{count - 1}, or auto"
    return "no GPU is visible here; use train.device=cpu, or auto"


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type of matrix products (None: that of the weights); weights stay in float32.

    `auto` is bfloat16 where its products are faster than float32's: on GPUs that compute in it, and
    on CPUs with AMX for text models of some size, which ask for it themselves.
    """
    if precision == "auto":
        supported = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if supported else None
    return torch.bfloat16 if precision == "bf16" else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """A context in which matrix products have the type `dtype`; None changes nothing."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@runtime_checkable
class HasParameters(Protocol):
    """A module, or a policy."""

    def parameters(self) -> Iterator[nn.Parameter]: ...


def module_device(module: HasParameters) -> torch.device:
    """The device of a module's parameters; the CPU without any."""
    return next((parameter.device for parameter in module.parameters()), CPU)


@lru_cache(maxsize=256)
def constant(
    values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A tensor of constants on a device, made once; nobody may change it in place."""
    return torch.tensor(values, dtype=dtype, device=device)


def to_device[T](value: T, device: torch.device) -> T:
    """Move the tensors of a structure to a device, all of them in one copy.

    A structure is a tensor, or a dataclass, mapping, list or tuple of structures; other values stay
    as they are. Tensors that are there already are not copied.
    """
    elsewhere: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.device != device:
            elsewhere.append(tensor)
        return tensor

    map_tensors(value, note)
    if not elsewhere:
        return value
    moved = iter(_move_together(elsewhere, device))
    return map_tensors(value, lambda tensor: tensor if tensor.device == device else next(moved))


def to_host[T](value: T) -> T:
    """Move the tensors of a structure to the CPU, all of them in one copy (`to_device`)."""
    return to_device(value, CPU)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply `function` to every tensor of a structure (`to_device`), in a fixed order."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(map_tensors(item, function) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        changed = {name: map_tensors(part, function) for name, part in parts.items()}
        return replace(value, **{k: new for k, new in changed.items() if new is not parts[k]})
    return value


def _move_together(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors on another device: their bytes travel as one tensor, aligned for every type.

    A tensor with a gradient is copied by itself, because its bytes have none.
    """
    if len(tensors) == 1 or any(tensor.requires_grad for tensor in tensors):
        return [tensor.to(device) for tensor in tensors]
    parts = []
    for tensor in tensors:
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        parts.append(nn.functional.pad(content, (0, -len(content) % ALIGNMENT)))
    packed = torch.cat(parts)
    if device.type == "cuda":
        packed = packed.pin_memory().to(device, non_blocking=True)
    else:
        packed = packed.to(device)
    moved = []
    for tensor, content in zip(tensors, packed.split([len(part) for part in parts]), strict=True):
        size = tensor.numel() * tensor.element_size()
        moved.append(content[:size].view(tensor.dtype).view(tensor.shape))
    return moved
