"""Text and robot take one path: the same rows in either dress give the same bits."""

import dataclasses

import pytest
import torch

from tests.rl.toys import SETTINGS, make_rollout, text_observation
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.algorithms import ALGORITHMS
from vla.types import ActionScores, Observation, Rollout


def dressed_as_robot(num_rows: int) -> Observation:
    """Two cameras, proprioception, an instruction."""
    images = {
        name: torch.randint(0, 255, (num_rows, 4, 4, 3), dtype=torch.uint8)
        for name in ("front", "wrist")
    }
    tokens = torch.ones(num_rows, 3, dtype=torch.long)
    return Observation(images, torch.randn(num_rows, 7), tokens, tokens.bool())


def rows(num_draws: int, critic: bool) -> Rollout:
    """Seven decisions of four trajectories, of two starts, with gaps."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(7, num_draws, generator=generator) > 0.3
    mask[:, 0] = True
    return make_rollout(
        [0.0, 1.0, 0.5, 0.0, 0.25, 1.0, 0.0],
        [0, 0, 1, 2, 2, 2, 3],
        [0, 0, 1, 1],
        mask=mask.tolist(),
        values=torch.rand(7, generator=generator) if critic else None,
        final_values=[0.1, 0.2, 0.3, 0.4] if critic else None,
        terminated=[True, False, True, True],
    )


def outcome(name, rollout, **settings):
    """Bits of the loss and of its gradient with respect to every log-prob and value."""
    algorithm = make_algorithm(name, **{**SETTINGS[name], **settings})
    reference = rollout.logprobs - 0.2 if algorithm.needs_reference else None
    batch = algorithm.prepare(rollout, reference)
    generator = torch.Generator().manual_seed(4)
    moved = rollout.logprobs + 0.3 * torch.randn(rollout.logprobs.shape, generator=generator)
    logprobs = moved.requires_grad_()
    values = None if rollout.values is None else (rollout.values + 0.05).requires_grad_()
    output = algorithm.loss(batch, ActionScores(logprobs, torch.ones_like(logprobs), values))
    output.loss.backward()
    return output.loss.item(), logprobs.grad, None if values is None else values.grad.flatten()


def test_both_modes_train_by_the_same_class():
    from vla.pipelines.robot import rl as robot
    from vla.pipelines.text import rlhf, rlvr
    from vla.rl import loop
    from vla.training import rl_trainer, rollout_collection

    for pipeline in (robot, rlvr, rlhf):
        assert pipeline.RLTrainer is rl_trainer.RLTrainer
        assert pipeline.RolloutCollector is rollout_collection.RolloutCollector
        assert pipeline.make_algorithm is make_algorithm
    assert rl_trainer.train_rl is loop.train_rl


def same_bits(a, b) -> bool:
    """Whether loss and gradients are equal, those of values where both have them."""
    values = a[2] is b[2] is None or torch.equal(a[2], b[2])
    return a[0] == b[0] and torch.equal(a[1], b[1]) and values


@pytest.mark.parametrize("name", ALGORITHMS)
def test_words_and_cameras_give_the_same_bits(name):
    robot = rows(3, critic=name == "ppo")
    robot = dataclasses.replace(robot, observation=dressed_as_robot(7))
    text = dataclasses.replace(robot, observation=text_observation(torch.arange(14).reshape(7, 2)))
    settings = {"kl_coefficient": 0.1} if name in ("ppo", "grpo", "rloo", "reinforce") else {}
    assert same_bits(outcome(name, robot, **settings), outcome(name, text, **settings))


@pytest.mark.parametrize(
    "settings", [{}, {"value_clip": 0.02, "entropy_coefficient": 0.1}, {"kl_coefficient": 0.1}]
)
def test_credit_along_decisions_is_credit_along_draws_of_one(settings):
    """With one draw a decision, PPO's robot layout (values [R]) and text layout (values [R, 1])
    agree."""
    robot = rows(1, critic=True)
    text = dataclasses.replace(robot, values=robot.values.unsqueeze(1))
    assert same_bits(outcome("ppo", robot, **settings), outcome("ppo", text, **settings))


@pytest.mark.parametrize("name", ["reinforce", "reinforce_plus_plus"])
def test_critic_free_credit_along_decisions_is_credit_along_draws_of_one(name):
    rollout = rows(1, critic=False)
    assert same_bits(outcome(name, rollout, along="decision"), outcome(name, rollout, along="draw"))
