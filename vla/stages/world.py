"""What a robot run needs from a simulator; scripts build it from `sim`, tests from something
smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from vla.rl.protocols import VectorEnvironment
from vla.stages.grounding import SceneSource


@runtime_checkable
class World(Protocol):
    """A task in a simulator."""

    @property
    def action_spec(self) -> Mapping[str, Any]:
        """What an action means: names, units, frame, limits, rate."""

    @property
    def proprio_names(self) -> Sequence[str]:
        """What each proprioceptive value is."""

    @property
    def proprio_size(self) -> int:
        """Number of proprioceptive values."""

    @property
    def cameras(self) -> Sequence[str] | None:
        """The cameras that can be drawn; None where any name goes."""

    def environment(self) -> VectorEnvironment:
        """The environments that a policy acts in; made at the first call."""

    def recorder(self, num_envs: int) -> Any:
        """A few environments whose steps give a picture after every control step
        (`StepResult.frames`)."""

    def scenes(self) -> SceneSource:
        """Random scenes with questions, for grounding."""

    def expert(self, environment: Any, seed: int, burst_probability: float) -> Any:
        """The scripted expert for demonstrations in `environment`, disturbed now and then."""

    def texts(self) -> list[str]:
        """Everything that instructions, questions and answers can say, for training a tokenizer."""

    def kind_of(self, question: str) -> str:
        """The name of a question's kind, for reports."""

    def task_of(self, instruction: str) -> str:
        """What kind of task an instruction asks for, for rows of a report: without colours and the
        like."""
