"""Random generators of a run: seeding, derived seeds, and state for a checkpoint."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

import numpy as np
import torch

from vla.types import StateDict

Generator = torch.Generator | np.random.Generator


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from NumPy's global generator
    torch.manual_seed(seed)


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2^63) for a named purpose: SHA-256 of the run's seed and the names.

    It does not depend on other purposes, so a new consumer changes no other seed.
    """
    text = "/".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """A torch generator (CPU) for a named purpose, seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


def rng_state(generators: Mapping[str, Generator] | None = None) -> StateDict:
    """State of the global generators and of `generators`, in the types of a checkpoint."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    assert isinstance(keys, np.ndarray)
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "generators": {
            name: generator_state(generator) for name, generator in (generators or {}).items()
        },
    }


def generator_state(generator: Generator) -> object:
    """State of a generator: a byte tensor for torch, a nested dict for NumPy."""
    return (
        generator.get_state()
        if isinstance(generator, torch.Generator)
        else generator.bit_generator.state
    )


def restore_rng(state: StateDict, generators: Mapping[str, Generator] | None = None) -> None:
    """Restore every generator from `state`.

    Raises:
        ValueError: where `generators` are not the saved ones.
    """
    generators = generators or {}
    if set(generators) != set(state["generators"]):
        raise ValueError(
            f"generators {sorted(generators)} do not match the saved ones "
            f"{sorted(state['generators'])}"
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
