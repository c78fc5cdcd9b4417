"""The tabletop tasks in MuJoCo as a simulator that training pipelines find by name.

`pyproject.toml` registers it as `tabletop` in the entry-point group `vla.simulators`. It satisfies
the protocol `vla.simulator.Simulator` by its structure: nothing of vla is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le

from sim.choices import CAMERAS, RobotName
from sim.environment_cache import EnvironmentCache
from sim.perturbations import PERTURBATIONS, PerturbationName
from sim.tabletop_scenes import QUESTION_WEIGHTS, TabletopScenes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from sim.experts import Expert
    from sim.replay import Replay
    from sim.task import SimObservation
    from sim.vector import VectorEnvironment

PROPRIO_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper_opening")


@dataclass(frozen=True)
class TabletopSettings:
    """The settings of `sim.make_vector`.

    Attributes:
        task: one of `sim.tasks.task_names()`, or several that take turns.
        robot: one of ROBOTS.
        num_envs: environments stepped and rendered together.
        cameras: some of CAMERAS.
        image_size: height and width of the pictures, pixels.
        max_steps: control steps of an episode, at 20 Hz.
        renderer: how pictures are drawn.
        num_threads: physics and drawing threads; 0: one per core.
        num_distractors: blocks, and as many pads, beside the ones that the instruction names.
        perturbation: what differs from training, for evaluation.
        reward: weight per reward term.
        randomization: ranges that replace those of `sim.randomize`.
    """

    task: str | tuple[str, ...]
    robot: RobotName
    num_envs: int
    cameras: tuple[str, ...]
    image_size: int
    max_steps: int
    renderer: Literal["auto", "egl", "warp"]
    num_threads: Annotated[int, Ge(0), Le(1024)]
    num_distractors: Annotated[int, Ge(0), Le(10**4)]
    perturbation: PerturbationName
    reward: dict[str, float]
    randomization: dict[str, Any]


class TabletopSimulator:
    """Tasks of a robot arm at a table. MuJoCo loads when environments are first made.

    Raises ValueError, with the setting and its remedy, where `settings` name what does not exist.
    """

    Settings = TabletopSettings
    start_settings = (
        "task",
        "robot",
        "max_steps",
        "num_distractors",
        "randomization",
        "perturbation",
    )
    has_scenes = True
    restores_states = True
    perturbations = tuple(PERTURBATIONS)
    cameras = CAMERAS
    proprio_names = PROPRIO_NAMES
    proprio_size = len(PROPRIO_NAMES)

    def __init__(self, settings: TabletopSettings):
        self.check(settings)
        self.settings = settings
        self._environments = EnvironmentCache(self._make)

    @staticmethod
    def check(settings: TabletopSettings) -> None:
        """Raise a ValueError for an unknown name or an impossible range; MuJoCo stays unloaded."""
        unknown = [camera for camera in settings.cameras if camera not in CAMERAS]
        if unknown:
            raise ValueError(
                f"sim.cameras={list(settings.cameras)} names {unknown[0]}, the simulator draws "
                f"{', '.join(CAMERAS)}: choose from these; lerobot-train --policy.type=vla "
                '--policy.settings="model.checkpoint=null" trains on a dataset without a simulator'
            )
        from sim.settings import check_settings

        check_settings(
            task=settings.task,
            robot=settings.robot,
            cameras=settings.cameras,
            reward=settings.reward,
            randomization=settings.randomization,
            num_distractors=settings.num_distractors,
            perturbation=settings.perturbation,
        )

    @staticmethod
    def task_names(settings: TabletopSettings) -> tuple[str, ...]:
        """The tasks that take turns."""
        return (settings.task,) if isinstance(settings.task, str) else settings.task

    def _make(self, num_envs: int, render_every_step: bool) -> VectorEnvironment:
        from sim import make_vector

        s = self.settings
        return make_vector(
            task=s.task,
            robot=s.robot,
            num_envs=num_envs,
            cameras=s.cameras,
            image_size=s.image_size,
            max_steps=s.max_steps,
            renderer=s.renderer,
            num_threads=s.num_threads,
            reward=s.reward,
            randomize=s.randomization,
            num_distractors=s.num_distractors,
            perturbation=s.perturbation,
            render_every_step=render_every_step,
        )

    def environment(self) -> VectorEnvironment:
        return self._environments.environment(self.settings.num_envs)

    def recorder(self, num_envs: int) -> VectorEnvironment:
        return self._environments.recorder(num_envs)

    @property
    def action_spec(self) -> dict[str, Any]:
        from sim.spec import DEFAULT_ACTION_SPEC

        return DEFAULT_ACTION_SPEC.to_dict()

    def scenes(self) -> TabletopScenes:
        return TabletopScenes(self.environment(), QUESTION_WEIGHTS)

    def expert(
        self, environment: VectorEnvironment, seed: int, expert_perturbation_probability: float
    ) -> Expert:
        from sim.experts import Expert

        return Expert(
            environment, seed=seed, expert_perturbation_probability=expert_perturbation_probability
        )

    def texts(self) -> list[str]:
        from sim.questions import all_texts

        return all_texts(self.task_names(self.settings))

    def question_kind(self, question: str) -> str:
        from sim.questions import question_kind

        return question_kind(question)

    def task_name(self, instruction: str) -> str:
        from sim.scenes.objects import COLORS

        return " ".join(word for word in instruction.split() if word not in COLORS)

    def replay(
        self, seeds: Sequence[int], actions: Sequence[np.ndarray], render: bool = True
    ) -> list[Replay]:
        """Episodes again from their seeds and actions; without `render` no picture is drawn."""
        from sim.replay import replay

        return replay(self.environment(), seeds, actions, render)

    def watch(self, act: Callable[[SimObservation], np.ndarray], typed: Iterator[str]) -> int:
        """MuJoCo's viewer with `act` deciding live; number of ended episodes."""
        from sim.native import watch

        return watch(self.environment(), act, typed=typed)
