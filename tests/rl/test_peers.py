"""The same numbers from people who never saw our code, where the convention is the same.

Neither peer is a dependency: `pip install --no-deps stable-baselines3 trl` beside the tested set,
then run this file. TRL's trainers are asked for their loss alone, with log-probs in place of a
model.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from tests.rl.toys import make_rollout
from vla.rl.advantages import generalized_advantages
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.rewards import explained_variance
from vla.types import ActionScores

pytestmark = pytest.mark.filterwarnings("ignore")
MASK = [[True, True, True], [True, False, False], [True, True, False], [True, True, True]]


def trl_loss(trainer, moved, rollout, advantages, reference=None, **settings):
    """The loss of one of TRL's trainers for these log-probs."""

    class Peer:
        """What `_compute_loss` reads of a trainer; a single process, no accumulation, nothing
        logged."""

        accelerator = SimpleNamespace(
            num_processes=1,
            gather=lambda x: x,
            reduce=lambda x, reduction: x,
            gather_for_metrics=lambda x: x,
        )
        model = SimpleNamespace(training=True)
        args = SimpleNamespace(
            delta=settings.get("delta"), use_bias_correction_kl=False, steps_per_generation=1
        )
        importance_sampling_level: ClassVar[str] = settings.get("level", "token")
        loss_type: ClassVar[str] = settings.get("loss_type", "grpo")
        beta: ClassVar[float] = settings.get("beta", 0.0)
        epsilon_low: ClassVar[float] = settings.get("low", 0.2)
        epsilon_high: ClassVar[float] = settings.get("high", 0.28)
        max_completion_length: ClassVar[int] = 8
        top_entropy_quantile, off_policy_mask_threshold, current_gradient_accumulation_steps = (
            1.0,
            None,
            1,
        )
        aux_loss_enabled = use_vllm = _entropy_bonus_enabled = use_adaptive_entropy = False
        vllm_importance_sampling_correction = False

        def __init__(self):
            self._metrics = {"train": defaultdict(list)}

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            return moved, torch.ones_like(moved), None

    ids, mask = torch.zeros(len(moved), moved.shape[1], dtype=torch.long), rollout.mask.long()
    old = rollout.logprobs
    inputs = {
        **{
            "prompt_ids": ids,
            "prompt_mask": torch.ones_like(ids),
            "completion_ids": ids,
            "completion_mask": mask,
        },
        **{"advantages": advantages, "old_per_token_logps": old, "ref_per_token_logps": reference},
        **{"num_items_in_batch": mask.sum().float(), "old_logps": (old * mask).sum(1)},
    }
    return trainer._compute_loss(Peer(), None, inputs)


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("grpo", {}, {"loss_type": "grpo"}),
        ("grpo", {"reduction": "token"}, {"loss_type": "dapo"}),
        ("grpo", {"kl_coefficient": 0.04}, {"loss_type": "grpo", "beta": 0.04}),
        ("dapo", {}, {"loss_type": "dapo"}),
        ("dr_grpo", {"max_length": 8}, {"loss_type": "dr_grpo"}),
        ("gspo", {}, {"loss_type": "grpo", "level": "sequence"}),
        (
            "cispo",
            {"clip_low": 1.0},
            {"loss_type": "cispo", "high": 1.28},
        ),  # TRL's limit is absolute
        ("rloo", {}, {}),
    ],
)
def test_trl_has_the_same_loss_and_gradient(name, ours, theirs):
    trl = pytest.importorskip(
        "trl", reason="trl is not installed: it checks our losses where it is"
    )
    rollout = make_rollout([1.0, 0.0, 0.25, 0.5], [0, 1, 2, 3], [0, 0, 0, 0], mask=MASK)
    reference = rollout.logprobs + 0.3
    algorithm = make_algorithm(name, **{"clip_low": 0.2, "clip_high": 0.28, **ours})
    batch = algorithm.prepare(rollout, reference)
    trainer = trl.RLOOTrainer if name == "rloo" else trl.GRPOTrainer
    results = []
    for peer in (False, True):
        noise = 0.4 * torch.randn(
            rollout.logprobs.shape, generator=torch.Generator().manual_seed(1)
        )
        moved = (rollout.logprobs + noise).requires_grad_()
        if peer:
            loss = trl_loss(trainer, moved, rollout, batch.advantages[:, 0], reference, **theirs)
        else:
            loss = algorithm.loss(batch, ActionScores(moved)).loss
        loss.backward()
        results.append((loss.detach(), moved.grad * rollout.mask))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-7)


def test_stable_baselines3_has_the_same_gae_and_explained_variance():
    """Their buffer holds steps x environments; at a truncation the reward gets gamma V(final), as
    their collector does.
    """
    buffers = pytest.importorskip(
        "stable_baselines3.common.buffers", reason="stable-baselines3 is not installed"
    )
    from gymnasium.spaces import Box
    from stable_baselines3.common.utils import explained_variance as theirs

    generator = np.random.default_rng(0)
    steps, envs, gamma, gae_lambda = 12, 3, 0.97, 0.9
    rewards, values = (generator.normal(size=(steps, envs)).astype(np.float32) for _ in range(2))
    final = generator.normal(size=(steps, envs)).astype(
        np.float32
    )  # V of the observation an episode ends in
    ends = generator.random((steps, envs)) < 0.3
    truncated = ends & (generator.random((steps, envs)) < 0.5)
    last = generator.normal(size=envs).astype(np.float32)

    box = Box(-1, 1, (1,))
    buffer = buffers.RolloutBuffer(steps, box, box, "cpu", gae_lambda, gamma, envs)
    start = np.ones(envs, dtype=bool)
    for t in range(steps):
        paid = rewards[t] + gamma * final[t] * truncated[t]
        zero = np.zeros((envs, 1))
        buffer.add(zero, zero, paid, start, torch.from_numpy(values[t]), torch.zeros(envs))
        start = ends[t]
    buffer.compute_returns_and_advantage(torch.from_numpy(last), ends[-1])

    number = np.concatenate(
        [np.zeros((1, envs), dtype=int), ends[:-1].cumsum(0)]
    ) * envs + np.arange(envs)
    trajectory = np.unique(number, return_inverse=True)[1].reshape(steps, envs)
    bootstrap = np.zeros(trajectory.max() + 1, dtype=np.float32)
    for t, e in np.ndindex(steps, envs):
        if truncated[t, e]:
            bootstrap[trajectory[t, e]] = final[t, e]
        elif t == steps - 1 and not ends[t, e]:
            bootstrap[trajectory[t, e]] = last[e]
    flat = [torch.from_numpy(x.reshape(-1)) for x in (rewards, values)]
    counted = torch.ones(steps * envs, dtype=torch.bool)
    ours, returns = generalized_advantages(
        *flat,
        counted,
        torch.from_numpy(trajectory.reshape(-1)),
        torch.from_numpy(bootstrap),
        gamma,
        gae_lambda,
    )
    torch.testing.assert_close(
        ours, torch.from_numpy(buffer.advantages.reshape(-1)), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        returns, torch.from_numpy(buffer.returns.reshape(-1)), rtol=1e-4, atol=1e-5
    )
    expected = theirs(values.reshape(-1), buffer.returns.reshape(-1))
    assert explained_variance(flat[1], returns, counted) == pytest.approx(float(expected), rel=1e-4)
