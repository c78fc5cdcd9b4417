"""The data that environments exchange with a policy, and the protocol of a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sim.instructions import InstructionTemplate

if TYPE_CHECKING:
    from sim.controllers.controller import Controller
    from sim.diagnosis import EpisodeTrace, Reason
    from sim.physics import Physics
    from sim.randomize import Randomization

TARGET = 0
"""Index of the block and of the pad that an instruction names: the first ones."""


@dataclass(frozen=True)
class SimObservation:
    """The observation of n environments.

    Attributes:
        images: uint8 RGB [n, h, w, 3] per camera; empty when nothing was rendered.
        proprio: float32 [n, 7]: commanded x y z (m), roll pitch yaw (rad), measured gripper
            opening (m).
        instruction: n sentences.
    """

    images: dict[str, np.ndarray]
    proprio: np.ndarray
    instruction: list[str]


@dataclass(frozen=True)
class StepResult:
    """The result of a chunk of actions in n environments.

    Attributes:
        observation: after the chunk; images are rendered once, at its end.
        reward: float32 [n], summed over the executed control steps.
        terminated: bool [n], the task ended (success).
        truncated: bool [n], the time limit ended it.
        success: bool [n].
        num_steps: int64 [n], control steps executed; an environment that ends inside a chunk stops
            there.
        metrics: float32 [n] per name: the best value so far of every reward term. Where several
            tasks run, a term is called "task/term" and is NaN in environments of other tasks;
            "success" holds for all.
        frames: uint8 [n, H, h, w, 3] per camera after every control step, with
            `render_every_step`; else empty.
    """

    observation: SimObservation
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    success: np.ndarray
    num_steps: np.ndarray
    metrics: dict[str, np.ndarray]
    frames: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class ObjectFacts:
    """The ground truth of one object.

    Attributes:
        kind: "block" or "pad".
        color, shape: as instructions name them.
        role: "target" for an object that the instruction names, else "distractor".
        position: metres; yaw radians.
        grasped: whether the hand holds it.
        pixels: its centre in each camera's image, as fractions (right, down) in [0, 1]; None
            outside the image.
    """

    kind: str
    color: str
    shape: str
    role: str
    position: tuple[float, float, float]
    yaw: float
    grasped: bool
    pixels: dict[str, tuple[float, float] | None]

    @property
    def name(self) -> str:
        """Colour and shape, as in an instruction: "red cube"."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class SceneFacts:
    """The ground truth of one scene.

    Attributes:
        objects: blocks, then pads; of each kind the named ones come first.
        hand_position: measured tcp, metres; hand_yaw radians; gripper_opening metres.
        grasped: index into `objects` of the held block, or None.
        instruction: the task's instruction in this scene.
        success: whether the task is done.
        template: the task's sentence.
    """

    objects: tuple[ObjectFacts, ...]
    hand_position: tuple[float, float, float]
    hand_yaw: float
    gripper_opening: float
    grasped: int | None
    instruction: str
    success: bool
    template: InstructionTemplate


class Task(Protocol):
    """A task: how an episode starts, its instruction, rewards, success, controller and diagnosis.

    All methods take sorted ids [n]. `best` maps every reward term to its best value so far [n].
    A module of a task imports `sim.physics` for type checking only: settings are checked before
    MuJoCo loads.
    """

    name: str
    template: InstructionTemplate
    reward_names: tuple[str, ...]

    def __init__(self, ranges: Randomization) -> None: ...

    def initialise(
        self, physics: Physics, rngs: list[np.random.Generator], ids: np.ndarray
    ) -> None:
        """Write a start into the simulations, from one random generator each."""

    def reward_terms(
        self, physics: Physics, ids: np.ndarray, best: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Every reward term in [0, 1], [n]; "success" among them ends the episode at 1."""

    def success(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """Whether the task is done, bool [n]."""

    def controller(self) -> Controller:
        """The scripted controller that demonstrates the task."""

    def diagnose(self, trace: EpisodeTrace) -> Reason:
        """Why an episode failed; `sim.diagnosis` has the steps to compose it of."""
