"""The action head of a robot policy: the part that turns what a vision-language model perceived
into draws, and scores them.

`VlaPolicy` (`policy.py`) runs the model, freezes it, keeps what is frozen in traces, applies
guidance and estimates values. A head adds what differs between kinds of policies.

Shapes: `B` decisions, `S` states (rows of a context), `H` control steps a chunk, `A` action
dimensions, `L` draws a decision, `d` width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import Parameter

from vla.models.vlm import VisionLanguageModel
from vla.policies.traits import Cache, PolicyTraits
from vla.types import Observation, Trace

C = TypeVar("C")


@dataclass(frozen=True)
class HeadInput(Generic[C]):
    """Input of a head's decisions: `context` is its interpretation of what the model perceived.

    `unlabelled` is the same without the advantage label (None: no guidance). `rows` is the row of the
    context that each decision is drawn from (None: its own). `repeats` decisions of one state stand
    together.
    """

    model: VisionLanguageModel
    context: C
    unlabelled: C | None = None
    guidance: float = 1.0
    rows: Int[Tensor, "B"] | None = None
    repeats: int = 1

    def guide(self, labelled: Tensor, predict: Callable[[C], Tensor]) -> Tensor:
        """Classifier-free guidance (Ho and Salimans 2022): plain + guidance (labelled - plain), of
        a prediction from the context and one from `unlabelled`."""
        if self.unlabelled is None:
            return labelled
        unlabelled = predict(self.unlabelled)
        return unlabelled + self.guidance * (labelled - unlabelled)

    def expand_to_decisions(self, values: Tensor) -> Tensor:
        """Values of states [S, ...] as values of decisions [B, ...]."""
        return values if self.rows is None else values[self.rows]


@dataclass(frozen=True)
class Draws:
    """New decisions. `summary` [S, d] is the input of the value head."""

    action: Float[Tensor, "B H A"]
    trace: dict[str, Tensor]
    logprobs: Float[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]
    summary: Float[Tensor, "S d"]


@dataclass(frozen=True)
class DrawScores:
    """Log-probabilities and entropies (None: no weight can change them) of stored draws."""

    logprobs: Float[Tensor, "B L"]
    entropy: Float[Tensor, "B _"] | None
    summary: Float[Tensor, "S d"]


@runtime_checkable
class Head(Protocol[C]):
    """An action head, which is a `torch.nn.Module` too.

    Contract: `score(inputs, draw(inputs, greedy).trace)` gives the log-probabilities of the
    draws, for equal weights.
    """

    cache: Cache | None
    """What a frozen model leaves in traces. None: the head runs the language model for every draw,
    so the model cannot be frozen apart from it."""
    one_prediction: bool
    """Whether one prediction serves all decisions from a state, whatever was drawn."""
    exact: bool
    """Whether log-probabilities are exact, not a surrogate."""
    temperature: float

    @property
    def chunk(self) -> int: ...

    @property
    def num_draws(self) -> int: ...

    def perceive(
        self,
        model: VisionLanguageModel,
        prefix: Float[Tensor, "B P d"],
        observation: Observation,
        dedup: bool,
    ) -> Tensor:
        """What the head takes from the model [B, ...]; with `dedup` equal rows are computed
        once."""
        ...

    def interpret(
        self, model: VisionLanguageModel, perceived: Tensor, observation: Observation
    ) -> C:
        """The context of decisions: what was perceived, with the plan and the label in it."""
        ...

    def summarize(self, inputs: HeadInput[C]) -> Float[Tensor, "S d"]:
        """Input of the value head."""
        ...

    def draw(self, inputs: HeadInput[C], greedy: bool) -> Draws: ...

    def score(self, inputs: HeadInput[C], trace: Trace) -> DrawScores: ...

    def imitation_terms(
        self,
        model: VisionLanguageModel,
        perceived: Tensor,
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
        trains_model: bool,
    ) -> tuple[Float[Tensor, "B _"], Bool[Tensor, "B _"]]:
        """Terms whose mean over the mask is the supervised loss. `trains_model` is False where
        `perceived` was computed beforehand, so no gradient reaches the model."""
        ...

    def perception_parameters(self) -> Iterator[Parameter]:
        """Parameters of the head that `perceive` depends on; they freeze with the model."""
        ...


@runtime_checkable
class ChainHead(Protocol):
    """A head whose traces hold a denoising chain that a viewer can show."""

    def chain(self, trace: Trace) -> Float[Tensor, "B K H A"] | None:
        """States of the chain as actions; None where the trace holds none of it."""
        ...


@runtime_checkable
class ActionCode(Protocol):
    """Translation between draws and physical actions, fitted on demonstrations."""

    @property
    def constants(self) -> tuple[float | None, ...]: ...

    def to_dict(self) -> dict[str, Any]: ...


@runtime_checkable
class PolicySettings(PolicyTraits, Protocol):
    """Settings of a policy kind: a frozen dataclass in the file of its head, named in
    `vla.policies.POLICIES` or in the entry-point group `vla.policies`.

    Fields are the settings of `configs/policy/NAME.yaml`. Properties and `__post_init__` must not
    need torch: the settings are checked before it loads. `__post_init__` raises ValueError where
    values do not go together.
    """

    @property
    def chunk(self) -> int: ...

    @property
    def instruction_length(self) -> int: ...

    def fit_code(self, chunks: np.ndarray) -> Any:
        """The code of actions for demonstrated chunks [N, H, A]."""
        ...

    def read_code(self, values: Mapping[str, Any]) -> Any:
        """The code of actions from its `to_dict`."""
        ...

    def code_notes(self, code: Any, frames: np.ndarray, names: Sequence[str]) -> list[str]:
        """Sentences about actions [N, A] that the code represents badly, such as rare jumps."""
        ...

    def make_head(self, model: VisionLanguageModel, code: Any) -> Head[Any]: ...


def unique_consecutive_rows(
    perceived: Float[Tensor, "B ..."], observation: Observation
) -> tuple[Int[Tensor, "S"], Int[Tensor, "B"]]:
    """First row of each run of equal neighbours, and the run that every row belongs to.

    Several draws from one state stand together and differ in the draw alone, so one prediction
    serves them. Rows that carry a gradient are left as they are.
    """
    rows = torch.arange(len(perceived), device=perceived.device)
    if perceived.requires_grad or len(perceived) < 2:
        return rows, rows
    parts = [
        t for t in (perceived.flatten(1), observation.proprio, observation.tokens) if t is not None
    ]
    new = torch.ones(len(perceived), dtype=torch.bool, device=perceived.device)
    new[1:] = torch.stack([(part[1:] != part[:-1]).any(1) for part in parts]).any(0)
    return rows[new], new.long().cumsum(0) - 1
