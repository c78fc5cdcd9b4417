"""Randomness that can be told, derived and put back: every source a run draws from, in one
place."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

Generator = torch.Generator | np.random.Generator


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from NumPy's global generator
    torch.manual_seed(seed)


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2^63) for the named purpose: SHA-256 of the run's seed and the names.

    Independent of the order in which purposes are asked for, so that one more consumer does not
    change the others.
    """
    text = "/".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """A torch generator (CPU) for the named purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


def rng_state(generators: Mapping[str, Generator] | None = None) -> dict[str, Any]:
    """The state of the global generators and of `generators`, as a checkpoint can hold it."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "generators": {
            name: generator_state(generator) for name, generator in (generators or {}).items()
        },
    }


def generator_state(generator: Generator) -> Any:
    """Where a generator stands: a byte tensor for torch, a nested dict for NumPy."""
    return (
        generator.get_state()
        if isinstance(generator, torch.Generator)
        else generator.bit_generator.state
    )


def restore_rng(
    state: Mapping[str, Any], generators: Mapping[str, Generator] | None = None
) -> None:
    """Put every generator back to `state`; ValueError when `generators` are not those that were
    saved."""
    generators = generators or {}
    if set(generators) != set(state["generators"]):
        raise ValueError(
            f"generators {sorted(generators)} do not match the saved ones {sorted(state['generators'])}"
        )
    random.setstate(state["python"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    for name, generator in generators.items():
        if isinstance(generator, torch.Generator):
            generator.set_state(state["generators"][name])
        else:
            generator.bit_generator.state = state["generators"][name]
