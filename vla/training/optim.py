"""Optimizers, parameter groups, learning-rate schedules and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from vla.training.muon import Muon
from vla.types import StateDict

ScheduleKind = Literal["cosine", "linear", "constant"]
Group = dict[str, Any]
"""A parameter group of torch."""


SGD_MOMENTUM = 0.7


@runtime_checkable
class HasGroups(Protocol):
    """An optimizer with parameter groups."""

    @property
    def param_groups(self) -> list[Group]: ...


class CombinedOptimizer:
    """Several optimizers with the interface of one: AdamW for some parameters, Muon for others."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]):
        self.optimizers = list(optimizers)

    @property
    def param_groups(self) -> list[Group]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
        # Fused kernels change weights without counting it. Stored activations and inference
        # servers notice new weights by this count.
        torch.autograd.graph.increment_version(
            [parameter for group in self.param_groups for parameter in group["params"]]
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> StateDict:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: StateDict) -> None:
        for optimizer, part in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)
            for parameter, moments in optimizer.state.items():
                for name, value in moments.items():
                    if torch.is_tensor(value) and value.shape == parameter.shape:
                        # Fused kernels walk memory in order: moments need the memory layout of
                        # their weights (e.g. channels last).
                        moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def make_optimizer(
    module: nn.Module,
    kind: Literal["adamw", "muon", "sgd"],
    learning_rate: float,
    weight_decay: float,
    muon_learning_rate: float | None = None,
    learning_rates: Mapping[str, float] | None = None,
) -> CombinedOptimizer:
    """Make the optimizer of a module's trainable parameters.

    adamw  AdamW for all of them
    muon   Muon for the matrices of hidden layers, AdamW for the rest
    sgd    SGD with momentum `SGD_MOMENTUM`; it does not scale up the noise of small gradients

    Weight decay applies to the weights of linear and convolution layers only.

    Args:
        learning_rates: learning rate by name prefix, e.g. "value_head"; these parameters use AdamW.

    Raises:
        ValueError: where no parameter is trainable.
    """
    own_rates = dict(learning_rates or {})
    matrices: list[Parameter] = []
    groups: dict[tuple[float, float], Group] = {}
    decayed = decayed_names(module)
    for name, parameter in trainable_parameters(module):
        prefix = next((p for p in own_rates if name.startswith(p)), None)
        if (
            kind == "muon"
            and prefix is None
            and name in decayed
            and is_hidden_matrix(name, parameter)
        ):
            matrices.append(parameter)
            continue
        rate = learning_rate if prefix is None else own_rates[prefix]
        decay = weight_decay if name in decayed else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        if kind == "sgd":
            return CombinedOptimizer(
                [torch.optim.SGD(list(groups.values()), lr=learning_rate, momentum=SGD_MOMENTUM)]
            )
        # Fused: one pass over weights, gradients and moments, several times faster where they do
        # not fit in a cache.
        optimizers.append(torch.optim.AdamW(list(groups.values()), lr=learning_rate, fused=True))
    if matrices:
        assert muon_learning_rate is not None, "muon needs its own learning rate"
        optimizers.append(Muon(matrices, lr=muon_learning_rate, weight_decay=weight_decay))
    if not optimizers:
        raise ValueError(
            "nothing is left to train: every part of the model is frozen, unfreeze one or add "
            "model.lora"
        )
    return CombinedOptimizer(optimizers)


def trainable_parameters(module: nn.Module) -> Iterator[tuple[str, Parameter]]:
    """Names and parameters that take a gradient, each parameter once."""
    return (
        (name, parameter)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    )


def decayed_names(module: nn.Module) -> frozenset[str]:
    """Names of the weights with weight decay: linear and convolution layers, not biases, norms or
    embeddings."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return frozenset(
        f"{name}.weight" if name else "weight"
        for name, part in module.named_modules()
        if isinstance(part, layers) and id(part.weight) not in embeddings
    )


def is_hidden_matrix(name: str, parameter: Parameter) -> bool:
    """True for a matrix of a hidden layer: neither the output layer nor a single row or column."""
    return parameter.ndim == 2 and min(parameter.shape) > 1 and "lm_head" not in name


def schedule_scale(
    kind: ScheduleKind, progress: float, step: int = 0, warmup_steps: int = 0
) -> float:
    """Factor on the learning rate: linear warm-up times a decay over `progress` from 0 to 1.

    cosine (1 + cos(pi progress)) / 2;  linear 1 - progress;  constant 1. `step` counts from 0.
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    progress = min(max(progress, 0.0), 1.0)
    if kind == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * progress))
    return warm * (1 - progress) if kind == "linear" else warm


class Schedule:
    """Learning-rate schedule of an optimizer; call `step()` after each optimizer step.

    `elapsed()` is the used fraction of a time limit. The schedule follows steps or time, whichever
    is further on.
    """

    def __init__(
        self,
        optimizer: HasGroups,
        kind: ScheduleKind,
        num_steps: int,
        warmup_steps: int = 0,
        elapsed: Callable[[], float] = lambda: 0.0,
    ):
        self.optimizer = optimizer
        self.kind = kind
        self.elapsed = elapsed
        self.num_steps = num_steps
        self.warmup_steps = warmup_steps
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.num_done = 0
        self._apply()

    def step(self) -> None:
        self.num_done += 1
        self._apply()

    def _apply(self) -> None:
        progress = max(self.num_done / max(self.num_steps, 1), self.elapsed())
        scale = schedule_scale(self.kind, progress, self.num_done, self.warmup_steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * scale

    def resume(self, num_done: int) -> None:
        """Continue after `num_done` steps."""
        self.num_done = num_done
        self._apply()

    def state_dict(self) -> StateDict:
        return {"num_done": self.num_done, "rates": self.rates}

    def load_state_dict(self, state: StateDict) -> None:
        self.num_done = state["num_done"]
        self.rates = list(state["rates"])
        self._apply()


class EMA:
    """Exponential moving average of the trainable weights.

        average <- average + (1 - d) (weights - average),    d = min(decay, (1 + n) / (10 + n))

    `n` counts updates: the smaller decay at the start removes the first weights soon.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.average = {
            name: parameter.detach().clone() for name, parameter in trainable_parameters(module)
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the weights; call it after each optimizer step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        weights = dict(trainable_parameters(module))
        torch._foreach_lerp_(
            list(self.average.values()), [weights[name] for name in self.average], 1 - decay
        )

    @contextmanager
    def use_average(self, module: nn.Module) -> Iterator[None]:
        """Give the module the averaged weights within the block, and its own after it."""
        own = {name: parameter.detach().clone() for name, parameter in trainable_parameters(module)}
        self.copy_to(module)
        try:
            yield
        finally:
            load_weights(own, module)

    def copy_to(self, module: nn.Module) -> None:
        """Copy the averaged weights into the module."""
        load_weights(self.average, module)

    def averaged_weights(self, module: nn.Module) -> dict[str, Tensor]:
        """A copy of the averaged weights by all names that the module has for them."""
        own = {id(parameter): name for name, parameter in trainable_parameters(module)}
        copies = {name: tensor.clone() for name, tensor in self.average.items()}
        return {
            name: copies[own[id(parameter)]]
            for name, parameter in module.named_parameters(remove_duplicate=False)
            if id(parameter) in own
        }

    def state_dict(self) -> StateDict:
        return {"num_updates": self.num_updates, "average": self.average}

    def load_state_dict(self, state: StateDict) -> None:
        if set(state["average"]) != set(self.average):
            raise ValueError(
                "the averaged weights belong to another model: resume with the model of the run"
            )
        self.num_updates = state["num_updates"]
        for name, tensor in self.average.items():
            tensor.copy_(state["average"][name])


def copy_weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the trainable weights by name; tied weights have several names and one copy."""
    copies = {id(p): p.detach().clone() for _, p in trainable_parameters(module)}
    return {
        name: copies[id(parameter)]
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if id(parameter) in copies
    }


@torch.no_grad()
def load_weights(weights: Mapping[str, Tensor], module: nn.Module) -> None:
    """Copy weights into the module's trainable parameters of the same names."""
    for name, parameter in trainable_parameters(module):
        parameter.copy_(weights[name])
