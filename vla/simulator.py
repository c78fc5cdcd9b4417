"""The simulator protocol: what a robot run needs from a simulator, and finding one by name.

A package registers its simulators in the entry-point group `vla.simulators`; `sim.simulator` names
the one to use. Nothing of vla is imported by a simulator: the protocol is met by structure.
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


@runtime_checkable
class SceneSource(Protocol):
    """The simulator's side: rendered scenes by seed, and questions about them."""

    def scenes(self, seeds: Sequence[int]) -> tuple[RawObservation, Sequence[Any]]:
        """Pictures and facts of the scenes that the seeds stand for."""

    def ask(
        self, facts: Any, rng: np.random.Generator, count: int
    ) -> Sequence[tuple[str, str | tuple[float, ...], str]]:
        """Questions about one scene: text, answer and unit, as `vla.data.questions.Question`."""

    @property
    def sighting_names(self) -> Sequence[str]:
        """What the kinds of objects that can be seen are called."""

    @property
    def num_plan_numbers(self) -> int:
        """How many numbers an instruction comes down to."""

    def plan(self, facts: Any, rng: np.random.Generator) -> Any:
        """An instruction about a scene: `text`, `numbers` (metres, or scaled like them), and
        `mentions` of objects: (text up to the name, place from the gripper in metres, heading from
        the gripper's).
        """

    def sightings(self, facts: Any) -> Mapping[str, Sequence[Any]]:
        """By camera, the objects in the picture: (right, down, kind, place, heading), see
        `vla.sft.detection`."""


@runtime_checkable
class Simulator(Protocol):
    """Environments of a task, with everything that training asks about them.

    `reset` and `step` of an environment take `render=False`; its observations have `images`
    {camera: uint8 [n, h, w, 3]}, `proprio` float32 [n, s] and `instruction` (n sentences).
    """

    @property
    def action_spec(self) -> Mapping[str, Any]:
        """Names, units, kinds, low, high, frame and control_hz of an action's dimensions."""

    @property
    def proprio_names(self) -> Sequence[str]:
        """The name of each proprioceptive value."""

    @property
    def proprio_size(self) -> int:
        """Number of proprioceptive values."""

    @property
    def cameras(self) -> Sequence[str] | None:
        """The cameras that can be drawn; None where any name goes."""

    def environment(self) -> VectorEnvironment:
        """The environments that a policy acts in; made at the first call."""

    def recorder(self, num_envs: int) -> VectorEnvironment:
        """Environments whose steps also give a picture after every control step
        (`StepResult.frames`)."""

    def scenes(self) -> SceneSource:
        """Random scenes with questions, for grounding."""

    def expert(self, environment: Any, seed: int, expert_perturbation_probability: float) -> Expert:
        """The scripted expert for demonstrations in `environment`, disturbed now and then."""

    def texts(self) -> list[str]:
        """Everything that instructions, questions and answers can say, for training a
        tokenizer."""

    def kind_of(self, question: str) -> str:
        """The name of a question's kind, for reports."""

    def task_of(self, instruction: str) -> str:
        """The task that an instruction asks for, without colours and the like, for reports."""


@runtime_checkable
class EpisodeViewer(Protocol):
    """A simulator whose recorded episodes can be shown."""

    def replay(
        self, seeds: Sequence[int], actions: Sequence[np.ndarray], render: bool = True
    ) -> Sequence[ReplayedEpisode]:
        """Episodes again from their seeds and actions; without `render` no picture is drawn."""

    def watch(self, act: Callable[[Any], np.ndarray], typed: Iterator[str]) -> int:
        """The simulator's own viewer with `act` deciding live; number of ended episodes."""


MakeSimulator = Callable[[Simulation], Simulator]


def make_simulator(settings: Simulation) -> Simulator:
    """The simulator that the section `sim` describes.

    Nothing heavy loads here: environments are made at their first use. Raises ValueError where the
    settings name what does not exist.
    """
    kind = find_simulator(settings.simulator)
    kind.check(settings)
    return kind(settings)
