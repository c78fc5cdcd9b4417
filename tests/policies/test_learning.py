"""A token policy learns to say the number it is told: by imitation, and by the core from reward
alone."""

import math

import pytest
import torch

from tests.policies.tiny import DECODINGS, identity_task, named_number
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.loop import LoopSettings, LoopState, train_rl
from vla.rl.rollout import collect_responses
from vla.rl.update import UpdateSettings
from vla.sft.loop import SupervisedSettings, SupervisedTrainer
from vla.sft.losses import imitation_loss
from vla.training.optim import make_optimizer


@pytest.mark.parametrize("decoding", DECODINGS)
def test_by_imitation(decoding):
    policy, observation, actions = named_number(decoding)
    mask = torch.ones(4, 2, dtype=torch.bool)
    assert (policy.act(observation, greedy=True).action != actions).any()
    losses = []
    settings = SupervisedSettings(
        num_steps=60, batch_size=4, learning_rate=0.02, warmup_steps=6, max_grad_norm=1.0
    )
    SupervisedTrainer(policy, settings).train(
        lambda step: [None],
        lambda batch: (imitation_loss(policy, observation, actions, mask), {}),
        lambda step, metrics: losses.append(metrics["loss"]),
    )
    assert losses[0] == pytest.approx(math.log(4), abs=0.5)  # four numbers, as good as a guess
    assert losses[-1] < 0.05
    assert torch.equal(policy.act(observation, greedy=True).action, actions)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("grpo", {"clip_low": 0.2, "clip_high": 0.28}),
        (
            "ppo",
            {
                "clip_low": 0.2,
                "clip_high": 0.2,
                "value_coefficient": 0.5,
                "gamma": 1.0,
                "gae_lambda": 0.95,
            },
        ),
    ],
)
@pytest.mark.parametrize("decoding", DECODINGS)
def test_by_reward(decoding, name, settings):
    task = identity_task(decoding)
    torch.manual_seed(0)
    task.policy.freeze_prefix()  # as a run does: traces carry the prefix
    curve, gaps = [], []

    def note(iteration, rollout, metrics):
        curve.append(metrics["return_mean"])
        gaps.append(metrics.get("logprob_gap_max", 0.0))  # none where every group agrees

    train_rl(
        task.policy,
        make_algorithm(name, **settings),
        lambda iteration: collect_responses(
            task.policy, task.observation, 32, task.reward, version=iteration
        ),
        make_optimizer(task.policy, "muon", task.learning_rate, 0.0, muon_learning_rate=0.01),
        UpdateSettings(epochs=2, num_minibatches=1, micro_batch_rows=128, max_grad_norm=1.0),
        LoopSettings(num_iterations=30),
        LoopState(),
        on_iteration=note,
    )
    assert curve[0] < 0.35  # a guess among four
    assert max(curve[-5:]) > task.solved, curve
    assert max(gaps) < 1e-4
