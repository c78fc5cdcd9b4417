"""`lerobot-train` on data of other robots: any shape of picture, any names; what cannot be learned
ends in one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.foreign import foreign, put
from tests.test_pipeline import TINY
from vla.data.image_fitting import fit_to_square

pytestmark = pytest.mark.filterwarnings("ignore")  # LeRobot's own
SETTINGS = " ".join(
    [*(word for word in TINY if not word.startswith("sim.reward")), "policy.instruction_length=32"]
)
ARMS = [f"{side}_{joint}" for side in ("left", "right") for joint in ("waist", "elbow")]


def made(folder, settings=SETTINGS):
    """A policy of ours for a dataset, as LeRobot's factory makes it, and a batch of it."""
    from lerobot.configs.types import FeatureType
    from lerobot.datasets.factory import resolve_delta_timestamps
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.utils.collate import lerobot_collate_fn
    from lerobot.utils.feature_utils import dataset_to_policy_features

    from vla.interop.lerobot.configuration_vla import VlaConfig
    from vla.interop.lerobot.modeling_vla import VlaPolicy

    config = VlaConfig(settings=settings, device="cpu")
    meta = LeRobotDataset("local/x", root=folder).meta
    features = dataset_to_policy_features(meta.features)
    config.output_features = {n: f for n, f in features.items() if f.type is FeatureType.ACTION}
    config.input_features = {n: f for n, f in features.items() if n not in config.output_features}
    rows = LeRobotDataset(
        "local/x", root=folder, delta_timestamps=resolve_delta_timestamps(config, meta)
    )
    return VlaPolicy(config, dataset_meta=meta), lerobot_collate_fn([rows[i] for i in range(4)])


@pytest.fixture(scope="module")
def two_arms(tmp_path_factory):
    """(policy, batch) of a robot that is nothing like the simulator's, its pictures 30 x 48."""
    folder = tmp_path_factory.mktemp("foreign") / "arms"
    return made(
        foreign(
            folder, size=(30, 48), cameras=("cam_high", "cam_low"), actions=ARMS, state=ARMS, fps=30
        )
    )


def test_pictures_become_square_as_in_our_own_training(two_arms):
    policy, batch = two_arms
    seen = policy.observe(batch).images["cam_high"]
    assert seen.shape == (4, 32, 32, 3)
    original = (batch["observation.images.cam_high"][0] * 255).round().byte().movedim(0, -1).numpy()
    np.testing.assert_array_equal(seen[0], fit_to_square(original, 32))
    as_bytes = (batch["observation.images.cam_high"] * 255).round().byte()
    again = policy.observe({**batch, "observation.images.cam_high": as_bytes}).images["cam_high"]
    assert torch.equal(again, seen)


def test_it_learns_acts_and_says_what_it_was_made_for(two_arms, tmp_path):
    policy, batch = two_arms
    loss, _ = policy.forward(batch)
    assert torch.isfinite(loss)
    assert policy.predict_action_chunk(batch).shape == (4, policy.policy.chunk, 4)
    policy_spec = policy.bundle.policy_spec
    assert (policy_spec["resize"], policy_spec["image_size"]) == ("resize_with_pad", 32)
    assert policy_spec["proprio_names"] == policy_spec["action_spec"]["names"] == ARMS
    policy.save_pretrained(tmp_path / "saved")
    again = type(policy).from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(
        again.predict_action_chunk(batch), policy.predict_action_chunk(batch)
    )


@pytest.mark.parametrize("key", ["action", "observation.state"])
def test_a_batch_that_is_not_finite_is_refused(two_arms, key):
    from vla.interop.lerobot.refusal import RefusedInput

    policy, batch = two_arms
    broken = {**batch, key: batch[key].clone()}
    broken[key][1, ..., 2] = torch.nan
    with pytest.raises(
        RefusedInput, match=rf"{key} holds \d numbers that are NaN or infinite .the first in row 1"
    ):
        policy.forward(broken)


def test_a_policy_whose_actions_are_not_finite_does_not_act(two_arms, monkeypatch):
    policy, batch = two_arms
    decision = policy.policy.act(policy.observe(batch), greedy=True)
    monkeypatch.setattr(
        type(policy.policy),
        "act",
        lambda *_, **__: type(decision)(
            decision.action * torch.nan, decision.trace, decision.logprobs, decision.mask
        ),
    )
    with pytest.raises(ValueError, match="the policy holds 64 numbers that are NaN or infinite"):
        policy.predict_action_chunk(batch)


def test_a_policy_of_a_version_that_named_no_rule_takes_square_pictures_only(two_arms, monkeypatch):
    policy, batch = two_arms
    monkeypatch.delitem(policy.bundle.policy_spec, "resize")
    with pytest.raises(
        ValueError, match="30 x 48 pixels, and the policy's policy.json names no rule"
    ):
        policy.observe(batch)
    square = {name: v[..., :30] if "images" in name else v for name, v in batch.items()}
    assert policy.observe(square).images["cam_low"].shape == (4, 32, 32, 3)


def test_datasets_that_cannot_be_learned_are_refused(tmp_path):
    from vla.interop.lerobot.refusal import RefusedInput

    broken = foreign(tmp_path / "nan", cameras=("front",), change=put("action", 1, np.nan, 1, 2))
    with pytest.raises(
        RefusedInput, match="action: dy .dimension 1. is nan in frame 2 of episode 1"
    ):
        made(broken)

    def failing(frame, episode, step):
        frame["next.success"] = np.array([episode == 1])

    extra = {"next.success": {"dtype": "bool", "shape": (1,), "names": None}}
    failed = foreign(tmp_path / "failed", cameras=("front",), extra=extra, change=failing)
    with pytest.raises(
        RefusedInput, match=r"data.failures=drop.*give it --dataset.episodes=\[1\] instead"
    ):
        made(failed, f"{SETTINGS} data.failures=drop")
    with pytest.raises(
        RefusedInput, match="policy.type=vla needs .*record the dataset again with them"
    ):
        made(foreign(tmp_path / "blind", cameras=()))
    with pytest.raises(RefusedInput, match="data.failure"):
        made(failed, f"{SETTINGS} data.failure=drop")


def test_a_refusal_is_shown_in_one_line():
    code = """
from vla.interop.lerobot.refusal import install_one_line_refusals, refuse_value_errors
install_one_line_refusals()
with refuse_value_errors():
    raise ValueError("the dataset D has no pictures: record it again")
"""
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == "error: the dataset D has no pictures: record it again\n"
