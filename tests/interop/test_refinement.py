"""LeRobot's ACT as a policy of RL: its contract, its gain, and its checkpoint afterwards."""

import copy
import json

import numpy as np
import pytest
import torch

import vla.runtime
from tests.interop.tiny_checkpoints import CAMERAS, SIZE, make_checkpoint
from vla.commands import train
from vla.interop.lerobot.refinement import open_act, save_checkpoint
from vla.policies.lerobot import LeRobotSettings, TextObserver
from vla.types import Observation


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint("act", tmp_path_factory.mktemp("lerobot") / "act")


def settings(**changes) -> LeRobotSettings:
    values = {
        "chunk": 4,
        "instruction_length": 64,
        "distribution": "laplace",
        "scale": 0.2,
        "learn_scale": True,
        "temperature": 1.0,
    }
    return LeRobotSettings(**(values | changes))


class Rows:
    """Two observations as a simulator gives them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.images = {
            name: rng.integers(0, 255, (2, SIZE, SIZE, 3), dtype=np.uint8) for name in CAMERAS
        }
        self.proprio = rng.normal(0, 0.02, (2, 7)).astype(np.float32)
        self.instruction = ["pick up the red cube", "lève le cube"]


def observe(length: int = 64) -> Observation:
    return TextObserver(length)(Rows())


@pytest.mark.parametrize("distribution", ["laplace", "normal"])
@pytest.mark.parametrize("head_only", [False, True])
def test_scores_are_the_log_probabilities_of_the_draws(checkpoint, distribution, head_only):
    chosen = settings(distribution=distribution, temperature=1.5)
    policy = open_act(checkpoint, chosen, detach_critic=True, device="cpu")
    if head_only:
        policy.freeze_model()
    for mode in (True, False):
        policy.train(mode)
        observation = observe()
        decision = policy.act(observation)
        scores = policy.score(observation, decision.trace)
        assert decision.logprobs.shape == (2, 28)
        assert torch.allclose(scores.logprobs, decision.logprobs, atol=1e-5)
        assert torch.allclose(policy.act(observation).logprobs, decision.logprobs) is False
        assert scores.entropy is not None
    # By hand: log p of a draw one scale from the centre, 1.5 x 0.2 = 0.3.
    means = policy.head(policy.features(observation))
    trace = {"drawn": means + 0.3}
    by_hand = -1 - np.log(0.6) if distribution == "laplace" else -0.5 - np.log(0.3 * 2.5066283)
    assert policy.score(observation, trace).logprobs.detach().numpy() == pytest.approx(
        by_hand, abs=1e-4
    )


def test_greedy_chunks_are_those_of_lerobot_and_so_are_the_saved_weights(checkpoint, tmp_path):
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    policy = open_act(checkpoint, settings(), detach_critic=True, device="cpu")
    with torch.no_grad():
        for parameter in policy.policy.parameters():
            parameter += 0.01 * torch.randn_like(parameter)  # as if RL had moved it
    observation = observe()
    ours = policy.act(observation, greedy=True).action
    unrefined = open_act(checkpoint, settings(), detach_critic=True, device="cpu")
    assert (unrefined.act(observation, greedy=True).action - ours).abs().max() > 1e-4

    saved = tmp_path / "saved"
    save_checkpoint(policy, checkpoint, saved)
    config = PreTrainedConfig.from_pretrained(saved)
    theirs = get_policy_class(config.type).from_pretrained(saved, config=config)
    before, after = make_pre_post_processors(config, pretrained_path=str(saved))
    rows = Rows()
    batch = {
        f"observation.images.{name}": torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255
        for name, image in rows.images.items()
    } | {"observation.state": torch.from_numpy(rows.proprio), "task": rows.instruction}
    for step in range(4):
        action = after(theirs.select_action(before(copy.deepcopy(batch))))
        assert torch.allclose(action, ours[:, step], atol=1e-5)


def test_the_reward_of_draws_moves_the_chunk(checkpoint):
    """An identity task: normalised actions of 0.5 everywhere. REINFORCE on ACT's own weights."""
    torch.manual_seed(0)
    policy = open_act(checkpoint, settings(), detach_critic=True, device="cpu")
    policy.freeze_model()
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 0.02)
    observation = observe()

    def error() -> float:
        return float((policy.act(observation, greedy=True).trace["drawn"] - 0.5).abs().mean())

    before = error()
    for _ in range(80):
        first = policy.act(observation)
        decisions = policy.redraw(observation, first.trace, 8)
        reward = -(decisions.trace["drawn"] - 0.5).abs().flatten(1).unflatten(0, (2, 8))
        advantage = (reward - reward.mean(1, keepdim=True)).flatten(0, 1)
        scores = policy.score(observation, decisions.trace)
        optimizer.zero_grad()
        (-(advantage * scores.logprobs).sum(-1).mean()).backward()
        optimizer.step()
    assert error() < 0.7 * before


def test_an_instruction_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"policy.instruction_length \(8\) is too small"):
        observe(8)


def test_a_run_refines_and_saves_a_checkpoint(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vla.runtime, "prepare", lambda *arguments, **settings: None)
    run = tmp_path / "run"
    few = [
        "preset=smoke", f"policy.path={checkpoint}", "evaluation.num_starts=2",
        "evaluation.num_validation_starts=2", "evaluation.num_videos=0", "sim.max_steps=8",
        "sim.num_envs=2", "rl.num_iterations=1", "evaluation.sampled=false",
    ]  # fmt: skip
    assert train.main([*few, f"run_dir={run}"]) == 0
    results = json.loads((run / "results.json").read_text())
    assert results["start"]["kind"] == "lerobot"
    assert results["rl"]["num_iterations"] == 1
    own = {path.name for path in checkpoint.iterdir()}
    assert own == {path.name for path in (run / "pretrained_model").iterdir()}
    assert (run / "pretrained_model" / "config.json").read_bytes() == (
        checkpoint / "config.json"
    ).read_bytes()
    for wrong, message in (
        ("rl.adapt=residual", "rl.adapt"),
        ("model.freeze_vision=true", "has no effect on policy.path"),
        ("sft.num_steps=3", "lerobot-train"),
    ):
        with pytest.raises(SystemExit):
            train.main([*few, wrong, f"run_dir={tmp_path / 'wrong'}"])
        assert message in capsys.readouterr().err
        assert not (tmp_path / "wrong").exists()
