"""Any gymnasium environment as a simulator that training pipelines find by name.

`pyproject.toml` registers it as `gymnasium` in the entry-point group `vla.simulators`. What it
lacks beside the tabletop (scenes to ask about, episodes to show) is refused with the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from annotated_types import Ge, Le, Len

from sim.environment_cache import EnvironmentCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from sim.experts.gymnasium import GymnasiumExpert
    from sim.gymnasium_vector import GymnasiumVector
    from sim.task import SimObservation


@dataclass(frozen=True)
class GymnasiumSettings:
    """The settings of `sim.make_gymnasium`, and what datasets call the robot."""

    id: str
    make: dict[str, Any]
    robot: str
    num_envs: int
    cameras: Annotated[tuple[str, ...], Len(1, 1)]
    image_size: int
    max_steps: int
    renderer: Literal["auto", "egl"]
    instruction: str
    success: tuple[str, ...]
    success_return: float | None
    proprio: tuple[str, ...]
    proprio_size: Annotated[int, Ge(1), Le(16384)] | None
    reward: dict[str, float]


class GymnasiumSimulator:
    """An environment that `gymnasium.make` makes from `sim.id`."""

    Settings = GymnasiumSettings
    start_settings = ("robot", "max_steps", "id", "make")
    has_scenes = False
    restores_states = False
    perturbations = ("none",)
    cameras = None

    def __init__(self, settings: GymnasiumSettings):
        self.settings = settings
        self._environments = EnvironmentCache(self._make)

    @staticmethod
    def check(settings: GymnasiumSettings) -> None:
        """Nothing: what `sim.id` needs is known once gymnasium has loaded its package."""

    @staticmethod
    def task_names(settings: GymnasiumSettings) -> tuple[str, ...]:
        """The environment in one word: its id, and Meta-World's name of a task."""
        parts = [settings.id, *(str(v) for k, v in settings.make.items() if k == "env_name")]
        return ("-".join(parts).replace("/", "-"),)

    def _make(self, num_envs: int, render_every_step: bool) -> GymnasiumVector:
        from sim import make_gymnasium

        s = self.settings
        return make_gymnasium(
            id=s.id,
            num_envs=num_envs,
            cameras=s.cameras,
            image_size=s.image_size,
            max_steps=s.max_steps,
            instruction=s.instruction,
            success=s.success,
            success_return=s.success_return,
            proprio=s.proprio,
            proprio_size=s.proprio_size,
            reward=s.reward,
            make=s.make,
            renderer=s.renderer,
            render_every_step=render_every_step,
        )

    def environment(self) -> GymnasiumVector:
        return self._environments.environment(self.settings.num_envs)

    def recorder(self, num_envs: int) -> GymnasiumVector:
        return self._environments.recorder(num_envs)

    @property
    def action_spec(self) -> dict[str, Any]:
        return self.environment().action_spec.to_dict()

    @property
    def proprio_names(self) -> tuple[str, ...]:
        return self.environment().proprio_names

    @property
    def proprio_size(self) -> int:
        return len(self.proprio_names)

    def scenes(self) -> NoScenes:
        return NoScenes()

    def expert(
        self, environment: GymnasiumVector, seed: int, expert_perturbation_probability: float
    ) -> GymnasiumExpert:
        from sim.experts.gymnasium import GymnasiumExpert, build_act

        return GymnasiumExpert(environment, build_act(self.settings.id, self.settings.make), seed)

    def texts(self) -> list[str]:
        from sim.questions import all_texts

        return [*all_texts(), self.settings.instruction]

    def question_kind(self, question: str) -> str:
        return "unknown"

    def task_name(self, instruction: str) -> str:
        return self.settings.id

    def replay(
        self, seeds: Sequence[int], actions: Sequence[np.ndarray], render: bool = True
    ) -> NoReturn:
        """Raises ValueError: the state of these environments cannot be read."""
        raise ValueError(
            f"episodes of {self.settings.id} cannot be shown: only the simulator's own scenes can"
        )

    def watch(self, act: Callable[[SimObservation], np.ndarray], typed: Iterator[str]) -> NoReturn:
        """Raises ValueError: MuJoCo's viewer opens tabletop scenes only."""
        raise ValueError(f"sim.id ({self.settings.id}) cannot be shown in MuJoCo's own viewer")


class NoScenes:
    """The scene source of environments whose contents are unknown: every request is refused."""

    object_names: Sequence[str] = ()
    num_plan_numbers = 1

    def scenes(self, *_: object) -> NoReturn:
        raise ValueError(
            "sim=gym has no scenes to ask about: set grounding.num_steps=0 and "
            "data.question_weight=0"
        )

    sample_questions = sample_instruction = detected_objects = scenes
