"""The protocol of an action head: from states of a vision-language model to draws and their scores.

`VlaPolicy` (`vla_policy.py`) runs the model, freezes it, stores frozen computations in traces,
applies guidance and estimates values. A head adds the parts that differ between kinds of policies.

Shapes: `B` decisions, `S` states (rows of a context), `H` control steps a chunk, `A` action
dimensions, `L` draws a decision, `K` states of a denoising chain, `P` prefix tokens, `d` width of
the model.
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
    """Input of a head's decisions; `context` is the output of `Head.interpret`.

    `unlabelled` is the context without the advantage label (None: no guidance). `rows` is the row
    of the context of each decision (None: its own). `repeats` is the number of adjacent decisions
    of one state.
    """

    model: VisionLanguageModel
    context: C
    unlabelled: C | None = None
    guidance: float = 1.0
    rows: Int[Tensor, "B"] | None = None
    repeats: int = 1

    def guide(self, labelled: Tensor, predict: Callable[[C], Tensor]) -> Tensor:
        """Classifier-free guidance (Ho and Salimans 2022).

        unlabelled + guidance (labelled - unlabelled), where `labelled` is the prediction from the
        context and `predict` makes the other one.
        """
        if self.unlabelled is None:
            return labelled
        unlabelled = predict(self.unlabelled)
        return unlabelled + self.guidance * (labelled - unlabelled)

    def expand_to_decisions(self, values: Tensor) -> Tensor:
        """Values of states [S, ...] expanded to values of decisions [B, ...]."""
        return values if self.rows is None else values[self.rows]


@dataclass(frozen=True)
class Draws:
    """New decisions: actions in physical units, a trace for `score`, and log-probabilities.

    `mask` is True for real draws. `summary` is the input of the value head.
    """

    action: Float[Tensor, "B H A"]
    trace: dict[str, Tensor]
    logprobs: Float[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]
    summary: Float[Tensor, "S d"]


@dataclass(frozen=True)
class DrawScores:
    """Log-probabilities and entropies of stored draws, in nats; `summary` is the input of the value
    head. An entropy of None is a constant."""

    logprobs: Float[Tensor, "B L"]
    entropy: Float[Tensor, "B _"] | None
    summary: Float[Tensor, "S d"]


@runtime_checkable
class Head(Protocol[C]):
    """An action head; it is a `torch.nn.Module` too.

    Contract: for equal weights, `score(inputs, draw(inputs, greedy).trace)` gives the
    log-probabilities of the draws.
    """

    cache: Cache | None
    """The computation that traces store once the model is frozen.

    None: the head runs the language model for every draw, so the model cannot be frozen alone.
    """
    one_prediction: bool
    """True if the prediction depends on the state alone, not on the draws."""
    exact: bool
    """True if log-probabilities are exact, False if they are a surrogate."""
    temperature: float
    """Temperature of the draws; 1.0 where the head has none."""

    @property
    def chunk(self) -> int:
        """Control steps a chunk, H."""
        ...

    @property
    def num_draws(self) -> int:
        """Draws a decision, L."""
        ...

    def perceive(
        self,
        model: VisionLanguageModel,
        prefix: Float[Tensor, "B P W"],
        observation: Observation,
        dedup: bool,
    ) -> Tensor:
        """The head's input from the model, one tensor [B, ...] that a trace can store.

        With `dedup` equal rows may be computed once.
        """
        ...

    def interpret(
        self, model: VisionLanguageModel, perceived: Tensor, observation: Observation
    ) -> C:
        """The context of decisions: the output of `perceive` with plan and label added."""
        ...

    def summarize(self, inputs: HeadInput[C]) -> Float[Tensor, "S d"]:
        """Input of the value head."""
        ...

    def draw(self, inputs: HeadInput[C], greedy: bool) -> Draws:
        """New decisions; `greedy` takes the likeliest instead of a draw."""
        ...

    def score(self, inputs: HeadInput[C], trace: Trace) -> DrawScores:
        """Scores of stored draws under the present weights."""
        ...

    def imitation_terms(
        self,
        model: VisionLanguageModel,
        perceived: Tensor,
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
        trains_model: bool,
    ) -> tuple[Float[Tensor, "B _"], Bool[Tensor, "B _"]]:
        """Terms and a mask; their masked mean is the supervised loss.

        `trains_model` is False where `perceived` is a stored tensor, so that no gradient reaches
        the model.
        """
        ...

    def perception_parameters(self) -> Iterator[Parameter]:
        """Parameters of the head that `perceive` uses; they freeze with the model."""
        ...


@runtime_checkable
class CountingHead(Protocol):
    """A head whose chunks have different numbers of supervised terms.

    Without it, every control step that counts has equally many.
    """

    def count_terms(
        self, actions: Float[Tensor, "B H A"], action_mask: Bool[Tensor, "B H"]
    ) -> Int[Tensor, "B"]:
        """Number of True values in each row of the mask of `imitation_terms`."""
        ...


@runtime_checkable
class ChainHead(Protocol):
    """A head with a denoising chain in its traces, for the viewer."""

    def chain(self, trace: Trace) -> Float[Tensor, "B K H A"] | None:
        """States of the chain as actions (physical units); None if the trace has none."""
        ...


@runtime_checkable
class ActionCode(Protocol):
    """Translation between draws and physical actions, fitted on demonstrations."""

    @property
    def constants(self) -> tuple[float | None, ...]:
        """For each action dimension, the value that is executed where no draw decides it."""
        ...

    def to_dict(self) -> dict[str, Any]: ...


@runtime_checkable
class PolicySettings(PolicyTraits, Protocol):
    """Settings of a policy kind: a frozen dataclass in the file of its head, named in
    `vla.policies.POLICIES` or in the entry-point group `vla.policies`.

    Fields are the settings of `configs/policy/NAME.yaml`. Properties and `__post_init__` must not
    need torch: the settings are checked before it loads. `__post_init__` raises ValueError for
    values that contradict each other.
    """

    @property
    def chunk(self) -> int: ...

    @property
    def instruction_length(self) -> int: ...

    def fit_code(self, chunks: np.ndarray) -> Any:
        """An action code fitted to demonstrated chunks [N, H, A]."""
        ...

    def read_code(self, values: Mapping[str, Any]) -> Any:
        """The action code of a `to_dict`."""
        ...

    def code_notes(self, code: Any, frames: np.ndarray, names: Sequence[str]) -> list[str]:
        """Sentences about actions [N, A] that the code represents badly, such as rare jumps."""
        ...

    def make_head(self, model: VisionLanguageModel, code: Any) -> Head[Any]:
        """The head on a model, with new weights."""
        ...


def unique_consecutive_rows(
    perceived: Float[Tensor, "B ..."], observation: Observation
) -> tuple[Int[Tensor, "S"], Int[Tensor, "B"]]:
    """Runs of equal adjacent rows: the first row of each, and the run of every row.

    Draws from one state are adjacent and differ in the draw alone, so one prediction serves them.
    With a gradient every row is a run of its own.
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
