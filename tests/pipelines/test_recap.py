"""Advantage-conditioned training by the main command: rounds, what is saved, and the policy that is
read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vla.runtime
from tests.test_pipeline import TINY
from vla.commands.train import main
from vla.config import ConfigError, load
from vla.evaluation.checkpoint_settings import checkpoint_settings
from vla.pipelines.robot.policy import load_policy
from vla.simulator import make_simulator
from vla.training.checkpoint import last_checkpoint, load_checkpoint

FEW = [
    *(setting for setting in TINY if not setting.startswith("policy.num_bins")),
    "policy=flow",
    "policy.instruction_length=40",
    "policy.width=16",
    "policy.intermediate=16",
    "policy.samples=2",
    "data.num_demonstrations=2",
    "grounding.num_steps=2",
    "sft.head_steps=2",
    "sft.head_only=true",
    "recap.starts_per_round=3",
    "recap.num_bins=11",
    "recap.value_steps=3",
    "recap.guidance=1.5",
    "rl.num_iterations=0",
    "evaluation.num_starts=2",
    "evaluation.num_videos=0",
]


@pytest.fixture(scope="module", autouse=True)
def torch_may_be_loaded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vla.runtime, "prepare", lambda *arguments, **settings: None)
        yield


def test_rounds_go_on_where_they_stopped_and_the_policy_is_read_back(tmp_path: Path):
    folder = tmp_path / "run"
    assert main([*FEW, "recap.num_rounds=1", f"run_dir={folder}"]) == 0
    first = load_checkpoint(last_checkpoint(folder / "checkpoints" / "recap"))
    assert first["round"] == 1
    assert len(first["experience"]) == 1
    results = json.loads((folder / "results.json").read_text())
    (metrics,) = results["recap"]
    assert set(metrics) >= {
        "rollout_success",
        "validation_success",
        "value_loss",
        "value_explained_variance",
    }
    moved = [n for n, w in first["policy"].items() if not torch.equal(w, first["first"][n])]
    assert any(name.startswith("head.expert.") for name in moved)
    assert not any(
        name.startswith("model.") for name in moved
    )  # the vision-language model stands still

    policy, observer = load_policy(
        folder, checkpoint_settings(folder), make_simulator(checkpoint_settings(folder).sim)
    )
    assert (policy.guidance, observer.label) == (1.5, " yes")
    assert len(observer.words(" yes")) > 0
    for name, weight in policy.state_dict().items():
        assert torch.equal(weight, first["policy"][name]), name


def test_settings_that_cannot_go_together_are_refused():
    with pytest.raises(ConfigError, match=r"recap.guidance \(2.0\) combines predictions with and"):
        load(["policy=fast", "recap.num_rounds=1", "recap.guidance=2"])
    with pytest.raises(ConfigError, match=r"policy=token has none: choose"):
        load(["recap.num_rounds=1", "policy.decoding=autoregressive"])
    with pytest.raises(
        ConfigError, match=r"policy.token_weight \(1.0\) trains the vision-language model"
    ):
        load(["policy=flow", "policy.token_weight=1", "policy.stop_gradient_to_vlm=true"])
