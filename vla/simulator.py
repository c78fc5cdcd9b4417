"""The simulator protocol: environments, scenes and experts of a robot run, found by name.

A package registers its simulators in the entry-point group `vla.simulators`; `sim.simulator` names
the one to use. A simulator imports nothing of vla: it satisfies the protocol by structure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from vla.config.simulation import Simulation, find_simulator

if TYPE_CHECKING:
    import numpy as np

    from vla.data.collection import Expert
    from vla.data.observations import RawObservation
    from vla.rl.protocols import VectorEnvironment
    from vla.viewer.payload import ReplayedEpisode

SceneFacts = object
"""The state of a scene in the simulator's own form; only the simulator reads it."""
DetectedObject = tuple[float, float, int, tuple[float, float, float], tuple[float, float]]
"""An object in an image: right and down (fractions of the image), kind (index into `object_names`),
position (metres) and heading (cosine, sine) in a frame that the image alone determines."""


@runtime_checkable
class SceneInstruction(Protocol):
    """An instruction about a scene with its targets."""

    @property
    def text(self) -> str:
        """The instruction."""

    @property
    def numbers(self) -> Sequence[float]:
        """The numbers that the plan head predicts (metres, or scaled to metres)."""

    @property
    def mentions(
        self,
    ) -> Sequence[tuple[str, tuple[float, float, float], tuple[float, float]]]:
        """Each named object: text up to the end of its name, position (metres) and heading (cosine,
        sine) relative to the gripper."""


@runtime_checkable
class SceneSource(Protocol):
    """Rendered scenes by seed, with questions, instructions and detections."""

    def scenes(self, seeds: Sequence[int]) -> tuple[RawObservation, Sequence[SceneFacts]]:
        """Observations and facts of the scenes with these seeds."""

    def sample_questions(
        self, facts: SceneFacts, rng: np.random.Generator, count: int
    ) -> Sequence[tuple[str, str | tuple[float, ...], str]]:
        """Questions about one scene: text, answer and unit, as `vla.data.questions.Question`."""

    @property
    def object_names(self) -> Sequence[str]:
        """Names of the kinds of objects."""

    @property
    def num_plan_numbers(self) -> int:
        """Number of targets of an instruction."""

    def sample_instruction(self, facts: SceneFacts, rng: np.random.Generator) -> SceneInstruction:
        """An instruction about one scene."""

    def detected_objects(self, facts: SceneFacts) -> Mapping[str, Sequence[DetectedObject]]:
        """Visible objects by camera."""


@runtime_checkable
class Simulator(Protocol):
    """Environments of a task, and everything else that training takes from a simulator.

    `reset` and `step` of an environment accept `render=False`. Its observations have `images`
    {camera: uint8 [n, h, w, 3]}, `proprio` float32 [n, s] and `instruction` (n strings).
    """

    @property
    def action_spec(self) -> Mapping[str, Any]:
        """Names, units, kinds, low, high, frame and control_hz of the action dimensions."""

    @property
    def proprio_names(self) -> Sequence[str]:
        """Names of the proprioceptive values."""

    @property
    def proprio_size(self) -> int:
        """Number of proprioceptive values."""

    @property
    def cameras(self) -> Sequence[str] | None:
        """Names of the cameras; None where any name is accepted."""

    def environment(self) -> VectorEnvironment:
        """The environments a policy acts in; created by the first call."""

    def recorder(self, num_envs: int) -> VectorEnvironment:
        """Environments that also render every control step (`StepResult.frames`)."""

    def scenes(self) -> SceneSource:
        """Random scenes for grounding."""

    def expert(
        self,
        environment: VectorEnvironment,
        seed: int,
        expert_perturbation_probability: float,
    ) -> Expert:
        """The scripted expert for demonstrations in `environment`.

        A short disturbance of its actions begins with `expert_perturbation_probability` per
        control step.
        """

    def texts(self) -> list[str]:
        """All instructions, questions and answers, for training a tokenizer."""

    def question_kind(self, question: str) -> str:
        """Name of a question's kind, for reports."""

    def task_name(self, instruction: str) -> str:
        """Name of an instruction's task, for reports."""


@runtime_checkable
class EpisodeViewer(Protocol):
    """A simulator that can show recorded and live episodes."""

    def replay(
        self, seeds: Sequence[int], actions: Sequence[np.ndarray], render: bool = True
    ) -> Sequence[ReplayedEpisode]:
        """Simulate episodes again from their seeds and actions; without images where `render` is
        False."""

    def watch(self, act: Callable[[Any], np.ndarray], typed: Iterator[str]) -> int:
        """Open the simulator's own viewer, controlled by `act`; the number of finished episodes.

        `typed` yields new instructions.
        """


MakeSimulator = Callable[[Simulation], Simulator]


def make_simulator(settings: Simulation) -> Simulator:
    """Make the simulator that the section `sim` describes.

    Environments are created at their first use.

    Raises:
        ValueError: the settings name a simulator, task or camera that does not exist.
    """
    simulator = find_simulator(settings.simulator)
    simulator.check(settings)
    return simulator(settings)
