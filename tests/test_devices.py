"""Devices and precision: every kind of policy on a pretended GPU, and in bfloat16 on the CPU."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.models.tiny import tiny_observation
from tests.policies.kinds import KINDS, task_of
from vla.config import ConfigError, load
from vla.devices import (
    autocast_dtype,
    available_device,
    choose_device,
    constant,
    to_device,
    to_host,
)
from vla.types import Observation

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
MAX_WAITS = {"fast": 6, "text": 45}
"""Synchronisations of a decision; 3 for the others. FAST is encoded on the CPU. Text has four tokens
a decision here."""


@pytest.fixture(scope="module")
def on_device():
    """What each kind of policy did on the pretended device (`tests/on_pretended_device.py`)."""
    script = ROOT / "tests" / "on_pretended_device.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", [*KINDS, *(f"{kind}_frozen" for kind in KINDS), "text"])
def test_a_policy_acts_scores_and_learns_on_a_device(kind, on_device):
    result = on_device[kind]
    assert "error" not in result, result
    assert result["gap"] < 1e-4
    assert result["waits"] <= MAX_WAITS.get(kind.removesuffix("_frozen"), 3)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_in_bfloat16_are_scored_alike(kind):
    """Weights, log-probabilities and losses stay in float32; products are in bfloat16."""
    policy = task_of(kind)[0].policy
    policy.model.autocast = torch.bfloat16
    observation = tiny_observation([5, 2, 4, 1], padding=2)
    decision = policy.act(observation)
    scores = policy.score(observation, decision.trace)
    assert decision.logprobs.dtype == scores.logprobs.dtype == torch.float32
    gap = (scores.logprobs - decision.logprobs)[decision.mask].abs().mean()
    assert gap < 0.05, gap
    scores.logprobs.sum().backward()
    terms, counted = policy.imitation_terms(
        observation, torch.rand(4, 2, 1) * 3, torch.ones(4, 2, dtype=torch.bool)
    )
    assert terms.dtype == torch.float32
    (terms * counted).sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@dataclass(frozen=True)
class Parts:
    observation: Observation
    numbers: tuple[torch.Tensor, ...]
    name: str = "as it is"


def test_a_structure_travels_as_one_copy_and_comes_back_equal():
    """The meta device has no values, so the way back is tried from the CPU to itself."""
    observation = tiny_observation([5, 2])
    parts = Parts(observation, (torch.tensor(3.5), torch.zeros(0, 4), torch.tensor([True, False])))
    there = to_device(parts, torch.device("meta"))
    assert {t.device.type for t in there.numbers} == {"meta"}
    assert there.observation.images["front"].shape == observation.images["front"].shape
    assert there.name == "as it is"
    assert to_host(parts) is parts


def test_devices_by_name():
    assert choose_device("cpu") == CPU
    assert constant((1.0, 2.0), CPU) is constant((1.0, 2.0), CPU)
    if not torch.cuda.is_available():
        assert available_device("cuda:3") == choose_device("auto")
        with pytest.raises(ValueError, match=r"train.device \(cuda:1\): no GPU is visible here"):
            choose_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "tpu", ""])
def test_a_device_that_does_not_exist_is_refused_with_the_settings(name):
    with pytest.raises(ConfigError, match=r"train\.device"):
        load([f"train.device={name}"])


def test_precision_by_setting():
    expected = {"auto": None, "fp32": None, "bf16": torch.bfloat16}
    assert {name: autocast_dtype(name, CPU) for name in expected} == expected
