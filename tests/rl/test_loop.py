"""The loop: it resumes bit for bit, steers the KL, refreshes its reference, warms its critic up."""

import contextlib
import copy
import dataclasses

import pytest
import torch

from tests.rl.toys import SETTINGS, Descent, GaussianPolicy, make_rollout, proprio_observation
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.diagnostics import NonFiniteError
from vla.rl.loop import LoopSettings, LoopState, train_rl
from vla.rl.normalize import RunningMoments, normalize_rewards
from vla.rl.reference import AdapterOff, CachedReference, FrozenCopy, make_reference
from vla.rl.rollout import collect_responses
from vla.rl.update import UpdateSettings

UPDATE = UpdateSettings(epochs=1, num_minibatches=2, micro_batch_rows=8)
STATES = proprio_observation(torch.linspace(-1, 1, 4).unsqueeze(1))


def collector(policy, scale=1.0):
    """Rollouts that depend only on the iteration and the weights, so that a resumed run sees the
    same."""

    def collect(iteration):
        torch.manual_seed(iteration)
        return collect_responses(
            policy,
            STATES,
            4,
            lambda d, rows: -scale * (d.action[:, 0, 0] - 1).square(),
            version=iteration,
        )

    return collect


def run(policy, settings, state, algorithm=None, lr=0.05, **kwargs):
    """Train with plain descent; the metrics of every iteration."""
    seen = []
    train_rl(
        policy,
        algorithm or make_algorithm("grpo", **SETTINGS["grpo"]),
        kwargs.pop("collect", None) or collector(policy),
        Descent(policy.parameters(), lr),
        UPDATE,
        settings,
        state,
        on_iteration=kwargs.pop(
            "on_iteration", lambda i, rollout, metrics: seen.append(metrics) and None
        ),
        **kwargs,
    )
    return seen


def test_a_resumed_run_is_the_same_run():
    settings = LoopSettings(
        num_iterations=6, kl_target=0.5, kl_horizon=50.0, normalize_rewards=True
    )
    algorithm = make_algorithm("grpo", **SETTINGS["grpo"], kl_coefficient=0.1)
    straight = GaussianPolicy()
    start = copy.deepcopy(straight)
    state = LoopState()
    metrics = run(straight, settings, state, algorithm, reference=FrozenCopy(straight, 8))

    broken = copy.deepcopy(start)
    reference, first = FrozenCopy(broken, 8), LoopState()
    run(
        broken,
        dataclasses.replace(settings, num_iterations=3),
        first,
        algorithm,
        reference=reference,
    )
    saved = copy.deepcopy((broken.state_dict(), first.state_dict(), reference.state_dict()))

    resumed = GaussianPolicy()
    fresh, again = FrozenCopy(resumed, 8), LoopState()
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    fresh.load_state_dict(saved[2])
    rest = run(resumed, settings, again, algorithm, reference=fresh)
    assert rest == metrics[3:]
    assert again.iteration == 6
    for a, b in zip(straight.parameters(), resumed.parameters()):
        assert torch.equal(a, b)


def test_kl_coefficient_follows_ziegler():
    policy = GaussianPolicy(critic=False)
    algorithm = make_algorithm("grpo", **SETTINGS["grpo"], kl_coefficient=0.2)
    settings, state = LoopSettings(num_iterations=4, kl_target=0.01, kl_horizon=100.0), LoopState()
    metrics = run(policy, settings, state, algorithm, reference=FrozenCopy(policy, 8), lr=0.2)
    coefficient = 0.2
    for one in metrics:
        assert one["kl_coefficient"] == pytest.approx(coefficient)
        error = min(max(one["kl_trajectory"] / 0.01 - 1, -0.2), 0.2)
        coefficient *= 1 + error * 16 / 100
    assert state.kl_coefficient == pytest.approx(coefficient)
    assert metrics[0]["kl_trajectory"] == pytest.approx(0.0, abs=1e-6)
    assert metrics[-1]["kl_trajectory"] > 0.01


def test_iterative_grpo_refreshes_its_reference():
    policy = GaussianPolicy(critic=False)
    algorithm = make_algorithm("grpo", **SETTINGS["grpo"], kl_coefficient=0.01)
    settings = LoopSettings(num_iterations=4, reference_refresh_every=2)
    metrics = run(policy, settings, LoopState(), algorithm, reference=FrozenCopy(policy, 8), lr=0.2)
    kl = [abs(one["kl_trajectory"]) for one in metrics]
    assert kl[0] < 1e-6 < kl[1]
    assert kl[2] < 1e-6 < kl[3]  # after two iterations the reference is the policy again


def test_critic_warmup_lasts_as_long_as_it_should():
    policy = GaussianPolicy()
    means = []
    run(
        policy,
        LoopSettings(num_iterations=4, num_critic_warmup_iterations=2),
        LoopState(),
        make_algorithm("ppo", **SETTINGS["ppo"]),
        on_iteration=lambda i, rollout, metrics: means.append(policy.mean.bias.item()) and None,
    )
    assert means[0] == means[1] == 0.0
    assert means[2] != 0.0


def test_the_callback_can_stop_and_the_scheduler_is_stepped():
    class Counting:
        steps = 0

        def step(self):
            self.steps += 1

    scheduler, state = Counting(), LoopState()
    policy = GaussianPolicy()
    stop = lambda i, rollout, metrics: i == 3  # noqa: E731
    run(policy, LoopSettings(num_iterations=10), state, on_iteration=stop, scheduler=scheduler)
    assert state.iteration == scheduler.steps == 3


def test_a_broken_iteration_leaves_the_last_good_one_standing():
    policy, good = GaussianPolicy(critic=False), []
    fine = collector(policy)

    def collect(iteration):
        rollout = fine(iteration)
        return (
            rollout
            if iteration < 2
            else dataclasses.replace(rollout, logprobs=rollout.logprobs + float("nan"))
        )

    def keep(iteration, rollout, metrics):
        good.append(copy.deepcopy(policy.state_dict()))

    state = LoopState()
    with pytest.raises(NonFiniteError, match="loss"):
        run(policy, LoopSettings(num_iterations=5), state, collect=collect, on_iteration=keep)
    assert state.iteration == len(good) == 2
    for name, value in policy.state_dict().items():
        assert torch.equal(value, good[-1][name])


def test_an_adapter_switched_off_is_the_reference():
    policy = GaussianPolicy(critic=False)
    base = copy.deepcopy(policy.state_dict())
    policy.mean.bias.data += 0.3
    adapted = copy.deepcopy(policy.state_dict())

    @contextlib.contextmanager
    def without_adapter():
        policy.load_state_dict(base)
        yield
        policy.load_state_dict(adapted)

    rollout = collector(policy)(0)
    reference = AdapterOff(policy, without_adapter, 3)
    frozen = GaussianPolicy(critic=False)
    frozen.load_state_dict(base)
    assert torch.equal(
        reference.logprobs(rollout), frozen.score(rollout.observation, rollout.trace).logprobs
    )
    assert policy.mean.bias.item() == pytest.approx(0.3)
    with pytest.raises(ValueError, match="reference_refresh_every"):
        reference.refresh()


def test_cached_log_probs_must_belong_to_the_draws():
    rollout = collector(GaussianPolicy())(0)
    assert torch.equal(
        CachedReference(lambda r: r.logprobs - 1).logprobs(rollout), rollout.logprobs - 1
    )
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        CachedReference(lambda r: r.logprobs[:2]).logprobs(rollout)


def test_the_rollout_as_reference_is_a_copy_refreshed_every_iteration():
    copied, kept = GaussianPolicy(critic=False), GaussianPolicy(critic=False)
    free = copy.deepcopy(copied)
    algorithm = make_algorithm("grpo", **SETTINGS["grpo"], kl_coefficient=0.5)
    every = LoopSettings(num_iterations=3, reference_refresh_every=1)
    run(copied, every, LoopState(), algorithm, reference=make_reference("copy", copied, 8), lr=0.2)
    run(
        kept,
        LoopSettings(num_iterations=3),
        LoopState(),
        algorithm,
        reference=make_reference("rollout", kept, 8),
        lr=0.2,
    )
    run(free, LoopSettings(num_iterations=3), LoopState(), lr=0.2)
    assert torch.allclose(kept.mean.bias, copied.mean.bias, atol=1e-6)
    assert (
        kept.mean.bias - free.mean.bias
    ).abs() > 1e-3  # the second step of each rollout was held back


def test_a_reference_without_the_adapter_needs_one():
    policy = GaussianPolicy(critic=False)
    assert isinstance(make_reference("auto", policy, 8), FrozenCopy)
    assert isinstance(make_reference("auto", policy, 8, contextlib.nullcontext), AdapterOff)
    assert isinstance(make_reference("copy", policy, 8, contextlib.nullcontext), FrozenCopy)
    with pytest.raises(ValueError, match=r"rl.reference \(adapter_off\)"):
        make_reference("adapter_off", policy, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference_refresh_every": 2}, "reference_refresh_every.*reference"),
        ({"kl_target": 6.0, "kl_horizon": 100.0}, "kl_target.*kl_coefficient"),
        ({"num_critic_warmup_iterations": 2}, "num_critic_warmup_iterations.*critic"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_rollout(settings, message):
    def collect(iteration):
        raise AssertionError("collected")

    with pytest.raises(ValueError, match=message):
        run(
            GaussianPolicy(),
            LoopSettings(num_iterations=1, **settings),
            LoopState(),
            collect=collect,
        )


def test_running_moments_are_those_of_everything_seen():
    values = torch.tensor([1.0, 4.0, float("nan"), 2.0, 9.0])
    moments = RunningMoments().update(values[:2]).update(values[2:3]).update(values[3:])
    seen = values[[0, 1, 3, 4]]  # mean 4, squares 9 + 0 + 4 + 25 = 38
    assert moments.count == 4
    assert moments.mean == pytest.approx(seen.mean().item())
    assert moments.standard_deviation == pytest.approx((38 / 3) ** 0.5)
    assert RunningMoments().standard_deviation == 1.0


def test_normalized_rewards_by_hand():
    # Returns 3 and 5 have mean 4 and std sqrt(2); the mean comes off each trajectory's last row.
    rollout = make_rollout([1.0, 5.0, 2.0], [0, 1, 0], [0, 1])
    moments = RunningMoments().update(rollout.returns)
    plain = normalize_rewards(rollout, moments, shift_mean=False)
    torch.testing.assert_close(plain.rewards, torch.tensor([1.0, 5.0, 2.0]) / 2**0.5)
    shifted = normalize_rewards(rollout, moments, shift_mean=True)
    torch.testing.assert_close(shifted.rewards, torch.tensor([1.0, 1.0, -2.0]) / 2**0.5)
    assert shifted.returns.mean().item() == pytest.approx(0.0, abs=1e-6)
