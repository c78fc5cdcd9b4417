"""A run that adapts a frozen policy: what RL moves, and that the policy is saved, resumed, exported
and loaded with its adapter."""

import json

import numpy as np
import pytest
import torch

import vla
import vla.runtime
from tests.interop.test_evaluate_checkpoint import FEW
from tests.test_pipeline import TINY
from vla.commands import export, train
from vla.training.checkpoint import last_checkpoint, load_checkpoint


@pytest.mark.parametrize(("policy", "adapt"), [("flow", "noise"), ("token", "residual")])
def test_an_adapted_policy_is_saved_resumed_exported_and_loaded(
    policy, adapt, tmp_path, monkeypatch
):
    monkeypatch.setattr(vla.runtime, "prepare", lambda *arguments, **settings: None)
    folder = tmp_path / "run"
    tiny = [setting for setting in TINY if policy == "token" or "num_bins" not in setting]
    given = [f"policy={policy}", f"rl.adapt={adapt}", "evaluation.num_videos=0"]
    assert train.main([*tiny, *FEW, *given, f"run_dir={folder}"]) == 0
    assert train.main([f"resume={folder}", "rl.num_iterations=2"]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["rl"]["num_iterations"] == 2
    assert results["model"]["num_adapter_parameters"] > 256 * 256
    assert "of which RL trains an adapter of" in (folder / "report.html").read_text()

    before, after = (
        load_checkpoint(last_checkpoint(folder / "checkpoints" / stage))["policy"]
        for stage in ("sft", "rl")
    )
    assert {
        name.split(".")[0] for name in before if not torch.equal(before[name], after[name])
    } <= {
        "adapter",
        "value_head",
    }
    assert any("adapter" in n for n in before if not torch.equal(before[n], after[n]))

    assert export.main([str(folder), str(tmp_path / "exported")]) == 0
    chunks = []
    for name in (folder, tmp_path / "exported"):
        loaded = vla.load_policy(name)
        assert loaded.policy.adapter is not None
        images = {
            camera: np.full((*size, 3), 90, np.uint8) for camera, size in loaded.image_size.items()
        }
        state = np.zeros(len(loaded.state_names), np.float32)
        chunks.append(loaded.act_chunk(images, state, "pick up the red cube"))
    assert np.array_equal(*chunks)


def test_a_frozen_policy_is_the_start_of_an_adapted_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vla.runtime, "prepare", lambda *arguments, **settings: None)
    frozen, run = tmp_path / "frozen", tmp_path / "run"
    only_sft = [one for one in FEW if not one.startswith("rl.")]
    given = ["policy=regression", "evaluation.num_videos=0"]
    tiny = [one for one in TINY if "num_bins" not in one and not one.startswith("rl.")]
    assert train.main([*tiny, *only_sft, *given, "rl.num_iterations=0", f"run_dir={frozen}"]) == 0
    again = [f"policy.path={frozen}", "rl.num_iterations=1", "rl.adapt=residual"]
    few = ["evaluation.num_starts=3", "evaluation.num_videos=0", "rl.target_success=null"]
    assert train.main(["preset=smoke", *again, *few, f"run_dir={run}"]) == 0
    state = load_checkpoint(last_checkpoint(run / "checkpoints" / "rl"))["policy"]
    base = load_checkpoint(last_checkpoint(frozen / "checkpoints" / "sft"))["policy"]
    for name, tensor in base.items():
        assert "value_head" in name or torch.equal(state[name], tensor), name
    assert any(name.startswith("adapter.") for name in state)
    # From there on the adapter stays.
    other = [f"policy.path={run}", "rl.adapt=head", f"run_dir={tmp_path / 'other'}"]
    with pytest.raises(SystemExit):
        train.main(["preset=smoke", *other])
    assert "rl.adapt (head) is not the one of the policy of policy.path" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
