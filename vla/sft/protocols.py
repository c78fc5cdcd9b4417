"""What supervised fine-tuning and the stages of a run ask of a robot's policy, beside what the core
asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.rl.protocols import Critic, Policy
from vla.types import Observation


@runtime_checkable
class ImitablePolicy(Policy, Critic, Protocol):
    """A policy with a critic, on a vision-language model, that learns from demonstrations.

    `chunk` control steps are decided at once, in `num_draws` draws; `temperature` is that of
    sampled decisions. It also has a `model`, its VisionLanguageModel; that is a submodule, which a
    check of protocols at run time does not see.
    """

    chunk: int
    temperature: float

    @property
    def num_draws(self) -> int: ...

    def imitation_terms(
        self,
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
    ) -> tuple[Float[Tensor, "B _"], Bool[Tensor, "B _"]]:
        """Terms whose mean, over those where the mask is True, supervised fine-tuning makes
        small."""
        ...

    def freeze_prefix(self) -> None:
        """Stop training what the prefix depends on."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


@runtime_checkable
class HeadPretrainablePolicy(ImitablePolicy, Protocol):
    """A policy whose head can be trained on what its model has seen, `hidden`, without running the
    model again."""

    can_train_head: bool

    def perceive(self, observation: Observation) -> Float[Tensor, "B q d"]: ...

    def imitation_terms(
        self,
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
        hidden: Float[Tensor, "B q d"] | None = None,
    ) -> tuple[Float[Tensor, "B _"], Bool[Tensor, "B _"]]: ...

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """All but the head's: what `hidden` depends on."""
        ...

    def freeze_model(self) -> None:
        """Stop training what `hidden` depends on."""
        ...
