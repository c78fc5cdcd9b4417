"""Any gymnasium environment as a world: what it lacks beside ours (scenes to ask about, an expert)
is said clearly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scripts.world_environments import WorldEnvironments


class GymnasiumWorld(WorldEnvironments):
    """An environment of gymnasium as a `vla.stages.world.World`."""

    def _make(self, num_envs: int, render_every_step: bool) -> Any:
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

    @property
    def action_spec(self) -> dict[str, Any]:
        return self.environment().action_spec.to_dict()

    @property
    def proprio_names(self) -> tuple[str, ...]:
        return self.environment().proprio_names

    def scenes(self) -> NoScenes:
        return NoScenes()

    def expert(self, environment: Any, seed: int, burst_probability: float) -> Any:
        from sim.experts.gymnasium import GymnasiumExpert, build_act

        return GymnasiumExpert(environment, build_act(self.settings.id, self.settings.make), seed)

    def texts(self) -> list[str]:
        from sim.questions import all_texts

        return [*all_texts(), self.settings.instruction]

    def kind_of(self, question: str) -> str:
        return "unknown"

    def task_of(self, instruction: str) -> str:
        return self.settings.id


class NoScenes:
    """Where nobody knows what is in the picture, there is nothing to ask
    (`vla.stages.grounding.SceneSource`)."""

    sighting_names: Sequence[str] = ()
    num_plan_numbers = 1

    def scenes(self, seeds: Sequence[int]) -> Any:
        raise ValueError(
            "sim=gym has no scenes to ask about: set grounding.num_steps=0 and data.question_weight=0"
        )

    ask = plan = sightings = scenes
