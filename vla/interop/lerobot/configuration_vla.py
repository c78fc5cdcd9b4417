"""Settings of our policies in LeRobot; importing this module registers `--policy.type=vla`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig

from vla.config import RobotConfig, load
from vla.interop.lerobot.refusal import RefusedInput, refuse_value_errors

IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"
NOTHING = dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
"""The normalization of LeRobot: none, because our policies normalize by themselves."""


@PreTrainedConfig.register_subclass("vla")
@dataclass
class VlaConfig(PreTrainedConfig):
    """Settings that `lerobot-train` and `lerobot-eval` may set.

    Attributes:
        settings: our own settings in one string, e.g. "policy=flow policy.chunk=8"; for training
            from a dataset.
        chunk: control steps decided at once; None: as the settings say.
        greedy: True takes the most likely actions, False samples them.
        num_parameters: size of an exported policy, for information.
    """

    settings: str = ""
    chunk: int | None = None
    greedy: bool = True
    num_parameters: int | None = None
    push_to_hub: bool = False  # type: ignore[assignment] # the base class has a method and a field of this name
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict(NOTHING)
    )

    @property
    def horizon(self) -> int:
        """Control steps decided at once."""
        return self.chunk or robot_settings(self.settings).policy.chunk

    @property
    def observation_delta_indices(self) -> None:
        """The present observation only."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The chunk that begins now."""
        return list(range(self.horizon))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW at the rate of our settings: that of the head where only the head learns."""
        sft = robot_settings(self.settings).sft
        rate = sft.head_learning_rate if sft.head_only else sft.learning_rate
        return AdamWConfig(lr=rate, weight_decay=sft.weight_decay, grad_clip_norm=sft.max_grad_norm)

    def get_scheduler_preset(self) -> None:
        """A constant rate."""
        return None

    def validate_features(self) -> None:
        """Refuse a dataset or environment without cameras, state or action."""
        if (
            not self.image_features
            or self.robot_state_feature is None
            or self.action_feature is None
        ):
            there = ", ".join([*(self.input_features or {}), *(self.output_features or {})])
            raise RefusedInput(
                f"policy.type=vla needs {IMAGES}NAME, {STATE} and {ACTION}; there are "
                f"{there or 'none'}: record the "
                "dataset again with them"
            )

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(key.removeprefix(IMAGES) for key in self.image_features)


@lru_cache(maxsize=8)
def robot_settings(settings: str) -> RobotConfig:
    """Our settings of a string of `key=value` words; Refused, a ValueError, names a wrong one."""
    with refuse_value_errors():
        config = load(settings.split())
    assert isinstance(config, RobotConfig)
    return config
