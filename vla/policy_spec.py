"""The policy spec (policy.json): action spec, cameras and sizes that load a policy without its
simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, NotRequired, TypedDict

import torch
from annotated_types import MinLen
from pydantic import PositiveInt
from torch import Tensor

from vla.config import RobotConfig
from vla.files.reading import KEYS, DamagedFile, JsonMapping, JsonObject, read_json

PROPRIO = "model.proprio_mean"
PLAN = "model.plan.dimensions"
QUERIES = "model.plan.queries"
"""Weights whose lengths are the numbers of state values, plan values and plan queries."""


class ActionSpec(TypedDict):
    """The action spec: name, unit, kind and limits of every dimension, reference frame and rate."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    names: list[str]
    units: list[str]
    kinds: list[str]
    low: list[float]
    high: list[float]
    frame: str
    control_hz: float


class ReplaySpec(TypedDict):
    """The policy.json of an evaluation, sufficient to show its episodes."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    action_spec: ActionSpec


class PolicySpec(ReplaySpec):
    """The policy.json of a run or an export."""

    cameras: Annotated[list[str], MinLen(1)]
    image_size: PositiveInt
    chunk: PositiveInt
    instruction_length: PositiveInt
    policy: str
    proprio_names: NotRequired[list[str] | None]
    resize: NotRequired[str | None]
    actions: JsonObject


def read_policy_spec(folder: Path, kind: object = PolicySpec) -> JsonObject:
    """The policy.json of a run, an export or (kind `ReplaySpec`) an evaluation.

    Raises DamagedFile where it is missing, malformed, or its lists differ in length.
    """
    path = folder / "policy.json"
    policy_spec = read_json(path, kind, REMEDY)
    action_spec = policy_spec["action_spec"]
    if len({len(action_spec[name]) for name in ("names", "units", "kinds", "low", "high")}) != 1:
        raise DamagedFile(
            path,
            "names, units, kinds, low and high of its action_spec are not equally long",
            REMEDY,
        )
    return policy_spec


REMEDY = "restore it, or export the policy again"


@dataclass(frozen=True)
class NoSceneSource:
    """The scene source of a policy without a simulator: the number of plan values alone."""

    num_plan_numbers: int


@dataclass(frozen=True)
class SpecSimulator:
    """A `vla.simulator.Simulator` to load a policy into, made from its spec and the shapes of its
    weights."""

    action_spec: JsonMapping
    proprio_names: Sequence[str]
    num_plan_numbers: int
    cameras: None = None

    @property
    def proprio_size(self) -> int:
        return len(self.proprio_names)

    def scenes(self) -> NoSceneSource:
        return NoSceneSource(self.num_plan_numbers)

    def texts(self) -> list[str]:
        """No texts: the tokenizer is stored with the weights."""
        return []

    def environment(self) -> NoReturn:
        """Refuse with ValueError, as everything that needs a simulator."""
        raise ValueError(
            "the policy was loaded from its policy.json alone, without a simulator: choose one by "
            "sim.simulator"
        )

    def recorder(self, num_envs: int) -> NoReturn:
        self.environment()

    def expert(
        self, environment: object, seed: int, expert_perturbation_probability: float
    ) -> NoReturn:
        self.environment()

    def question_kind(self, question: str) -> str:
        return "unknown"

    def task_name(self, instruction: str) -> str:
        return instruction


def simulator_from_spec(folder: Path, weights: Mapping[str, Tensor]) -> SpecSimulator:
    """A stand-in for the simulator of the policy in `folder`, from its spec and weights."""
    policy_spec = read_policy_spec(folder)
    return SpecSimulator(
        policy_spec["action_spec"], proprio_names(policy_spec, weights), num_plan_numbers(weights)
    )


def proprio_names(policy_spec: JsonMapping, weights: Mapping[str, Tensor]) -> list[str]:
    """The name of every state value; numbered where the policy spec has no names."""
    return policy_spec.get("proprio_names") or [f"state_{i}" for i in range(len(weights[PROPRIO]))]


def num_plan_numbers(weights: Mapping[str, Tensor]) -> int:
    """The number of plan values of these weights."""
    return len(weights[PLAN]) if PLAN in weights else 1


def without_checkpoint(config: RobotConfig) -> RobotConfig:
    """The settings of a model without its initial checkpoint, for weights that are loaded whole.

    The checkpoint may have changed since the run began.
    """
    return config.model_copy(update={"model": config.model.model_copy(update={"checkpoint": None})})


def match_query_count(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Resize a new model's plan queries to the number in the weights.

    A run's initial checkpoint may have another number of queries than the policy's chunk has steps.
    """
    if model.plan is not None and QUERIES in weights:
        model.plan.queries = torch.nn.Parameter(torch.zeros_like(weights[QUERIES]))
