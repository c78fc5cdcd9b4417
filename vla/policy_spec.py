"""What a policy says of the world it was made for: enough to load it without a simulator, as on a
real robot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import torch
from annotated_types import MinLen
from pydantic import PositiveInt
from torch import Tensor

from vla.config import RobotConfig
from vla.files.reading import KEYS, DamagedFile, read_json

PROPRIO = "model.proprio_mean"
PLAN = "model.plan.dimensions"
QUERIES = "model.plan.queries"
"""The weights whose sizes say how many numbers are felt and planned, and how many queries plan
them."""


class ActionSpec(TypedDict):
    """What an action means: a name, unit, kind and limits for every dimension."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    names: list[str]
    units: list[str]
    kinds: list[str]
    low: list[float]
    high: list[float]
    frame: str
    control_hz: float


class ReplaySpec(TypedDict):
    """What the policy.json of an evaluation holds: enough to look at its episodes."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    action_spec: ActionSpec


class PolicySpec(ReplaySpec):
    """What the policy.json of a run or an export holds."""

    cameras: Annotated[list[str], MinLen(1)]
    image_size: PositiveInt
    chunk: PositiveInt
    instruction_length: PositiveInt
    policy: str
    proprio_names: NotRequired[list[str] | None]
    resize: NotRequired[str | None]
    actions: dict[str, Any]


def read_policy_spec(folder: Path, kind: Any = PolicySpec) -> dict[str, Any]:
    """The policy.json of a run, an export or (kind `Shown`) an evaluation."""
    path = folder / "policy.json"
    policy_spec = read_json(path, kind, REMEDY)
    spec = policy_spec["action_spec"]
    if len({len(spec[name]) for name in ("names", "units", "kinds", "low", "high")}) != 1:
        raise DamagedFile(
            path,
            "names, units, kinds, low and high of its action_spec are not equally long",
            REMEDY,
        )
    return policy_spec


REMEDY = "restore it, or export the policy again"


@dataclass(frozen=True)
class NoSceneSource:
    """Where no simulator is, nothing can be asked; only the number of plan numbers is known."""

    num_plan_numbers: int


@dataclass(frozen=True)
class SpecSimulator:
    """A `vla.simulator.World` to load a policy into, made of its policy spec and the shapes of its
    weights."""

    action_spec: Mapping[str, Any]
    proprio_names: Sequence[str]
    num_plan_numbers: int
    cameras: None = None

    @property
    def proprio_size(self) -> int:
        return len(self.proprio_names)

    def scenes(self) -> NoSceneSource:
        return NoSceneSource(self.num_plan_numbers)

    def texts(self) -> list[str]:
        """None: the tokenizer stands beside the weights."""
        return []

    def environment(self) -> Any:
        """Raises ValueError, as all that needs a simulator."""
        raise ValueError("there is no simulator here: only the policy's policy.json is known")

    def recorder(self, num_envs: int) -> Any:
        return self.environment()

    def expert(self, environment: Any, seed: int, expert_perturbation_probability: float) -> Any:
        return self.environment()

    def question_kind(self, question: str) -> str:
        return "unknown"

    def task_name(self, instruction: str) -> str:
        return instruction


def simulator_from_spec(folder: Path, weights: Mapping[str, Tensor]) -> SpecSimulator:
    """The world that the policy in `folder` was made for, as far as the policy itself knows it."""
    policy_spec = read_policy_spec(folder)
    return SpecSimulator(
        policy_spec["action_spec"], proprio_names(policy_spec, weights), num_plan_numbers(weights)
    )


def proprio_names(policy_spec: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[str]:
    """What each number of the policy's state is; numbered where the policy spec is of a version that
    did not say."""
    return policy_spec.get("proprio_names") or [f"state_{i}" for i in range(len(weights[PROPRIO]))]


def num_plan_numbers(weights: Mapping[str, Tensor]) -> int:
    """How many numbers the plan of these weights holds."""
    return len(weights[PLAN]) if PLAN in weights else 1


def without_checkpoint(config: RobotConfig) -> RobotConfig:
    """The settings of a model that is loaded whole: without the checkpoint that its run began with,
    which may have become another since.
    """
    return config.model_copy(update={"model": config.model.model_copy(update={"checkpoint": None})})


def match_query_count(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Give a model built anew as many plan queries as the weights have: those of the checkpoint
    that a run began with, which need not be as many as its policy's chunk has control steps.
    """
    if model.plan is not None and QUERIES in weights:
        model.plan.queries = torch.nn.Parameter(torch.zeros_like(weights[QUERIES]))
