"""Settings of grounding: lengths, batch sizes, loss weights and learning rates."""

from __future__ import annotations

from dataclasses import dataclass

from vla.config.robot import Grounding
from vla.sft.loop import SupervisedSettings

WARMUP_STEPS = 50
"""Warm-up steps of each phase, at most a tenth of the phase."""


@dataclass(frozen=True)
class GroundingSettings:
    """Settings of grounding, which has two phases.

    Phase 1 takes the first `detection_fraction` of the steps. It trains the vision tower alone on
    detection: one step costs a third of a step with questions, and questions teach locations only
    once the image tokens encode objects. Phase 2 trains the whole model. `plan_fraction` of its
    steps train the plan head on instructions, the others train question answering.
    """

    num_steps: int
    max_seconds: float | None
    batch_size: int
    questions_per_scene: int
    pool_size: int
    num_new_scenes_per_step: int
    detection_fraction: float
    detection_weight: float
    plan_fraction: float
    learning_rate: float
    muon_learning_rate: float
    weight_decay: float
    light: float

    @classmethod
    def from_section(cls, section: Grounding) -> GroundingSettings:
        """The settings in the section `grounding` of a configuration."""
        return cls(**section.model_dump())

    def is_plan_step(self, step: int) -> bool:
        """True where a step of phase 2 trains the plan head; these steps are evenly spaced."""
        return int((step + 1) * self.plan_fraction) > int(step * self.plan_fraction)

    def phase_settings(self, fraction: float) -> SupervisedSettings:
        """Settings of the supervised loop for a phase with this fraction of all steps."""
        num_steps = max(1, round(fraction * self.num_steps))
        return SupervisedSettings(
            num_steps=num_steps,
            batch_size=self.batch_size,
            max_seconds=None if self.max_seconds is None else fraction * self.max_seconds,
            warmup_steps=round(min(0.1, WARMUP_STEPS / num_steps) * num_steps),
            optimizer="muon",
            learning_rate=self.learning_rate,
            muon_learning_rate=self.muon_learning_rate,
            weight_decay=self.weight_decay,
            max_grad_norm=1.0,
            learning_rate_name="grounding.learning_rate",
        )
