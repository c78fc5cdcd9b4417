"""Collecting: exactly the running environments, no place left empty, time in order, the critic
asked where needed."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from tests.rl.toys import GaussianPolicy, TokenPolicy, proprio_observation, text_observation
from vla.rl.rollout import collect_responses, collect_rollout
from vla.types import Observation


@dataclass
class Result:
    observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    success: np.ndarray
    num_steps: np.ndarray
    metrics: dict = field(default_factory=dict)


class Countdown:
    """An environment lives as many chunks as its seed says: odd seeds terminate with success, even
    ones are truncated.

    Its observation is [seed, chunks done]; a chunk pays the seed. It refuses ids that are not
    running.
    """

    num_envs = 3

    def __init__(self):
        self.seed, self.done = np.zeros(self.num_envs, dtype=int), np.full(self.num_envs, -1)
        self.batches, self.resets = [], []

    def observe(self, ids):
        return np.stack([self.seed[ids], self.done[ids]], 1).astype(np.float32)

    def reset(self, seeds, ids=None):
        assert len(seeds) == len(ids)
        self.resets.append(list(seeds))
        self.seed[ids], self.done[ids] = seeds, 0
        return self.observe(ids)

    def step(self, actions, ids=None):
        assert actions.dtype == np.float32
        assert actions.shape == (len(ids), 1, 2)
        assert (self.done[ids] >= 0).all(), "stepped an environment that had ended"
        self.batches.append(list(ids))
        self.done[ids] += 1
        ended = self.done[ids] >= self.seed[ids]
        odd = self.seed[ids] % 2 == 1
        result = Result(
            self.observe(ids),
            self.seed[ids].astype(np.float32),
            ended & odd,
            ended & ~odd,
            ended & odd,
            np.ones(len(ids)),
        )
        self.done[ids[ended]] = -1
        return result


class Counting(GaussianPolicy):
    """Counts what it is asked; its value is the seed plus a tenth of the chunks done."""

    def __init__(self):
        super().__init__(state=2, actions=2)
        self.asked, self.valued = [], []

    def act(self, observation, *, greedy=False):
        self.asked.append(len(observation.tokens))
        return super().act(observation, greedy=greedy)

    def value(self, observation):
        self.valued.append(len(observation.tokens))
        return observation.proprio[:, 0] + 0.1 * observation.proprio[:, 1]


def observe(raw) -> Observation:
    return proprio_observation(torch.as_tensor(raw))


def collected(**kwargs):
    policy, environment = Counting(), Countdown()
    policy.valued.clear()
    return (
        policy,
        environment,
        collect_rollout(policy, environment, [1, 2, 3], 2, observe, version=4, **kwargs),
    )


def test_every_trajectory_runs_to_its_end_in_the_order_of_time():
    _, _, rollout = collected()
    assert rollout.group.tolist() == [0, 0, 1, 1, 2, 2]
    for number, seed in enumerate([1, 1, 2, 2, 3, 3]):
        own = rollout.trajectory == number
        seen = rollout.observation.proprio[own]
        assert seen[:, 0].tolist() == [seed] * seed
        assert seen[:, 1].tolist() == list(range(seed))
        assert rollout.rewards[own].tolist() == [seed] * seed
    assert rollout.returns.tolist() == [1, 1, 4, 4, 9, 9]
    assert (
        rollout.terminated.tolist()
        == rollout.success.bool().tolist()
        == [True, True, False, False, True, True]
    )
    assert rollout.truncated.tolist() == [False, False, True, True, False, False]
    assert rollout.version.tolist() == [4] * 12
    assert rollout.metrics == {"control_steps": 12.0, "decisions": 12.0}


def test_free_places_are_taken_at_once_and_only_running_rows_are_asked():
    policy, environment, _ = collected()
    # Places 0-2 hold seeds 1, 1, 2; after one chunk two free places take 2 and 3, and so on: full
    # but for the tail.
    assert environment.resets == [[1, 1, 2], [2, 3], [3]]
    assert policy.asked == [len(batch) for batch in environment.batches] == [3, 3, 3, 2, 1]
    assert sum(policy.asked) == 12


def test_the_critic_is_asked_for_the_final_observation_of_truncated_trajectories_alone():
    policy, _, rollout = collected()
    # Seed 2 after 2 chunks: 2.2; the others terminated.
    torch.testing.assert_close(rollout.final_values, torch.tensor([0.0, 0.0, 2.2, 2.2, 0.0, 0.0]))
    assert policy.valued == [
        3,
        3,
        1,
        3,
        1,
        2,
        1,
    ]  # act's own calls, and two extra ones of a row each
    torch.testing.assert_close(
        rollout.values, rollout.observation.proprio @ torch.tensor([1.0, 0.1])
    )


def test_log_probs_are_those_of_the_stored_draws():
    policy, _, rollout = collected()
    scores = policy.score(rollout.observation, rollout.trace)
    torch.testing.assert_close(scores.logprobs, rollout.logprobs)


def test_greedy_rollouts_repeat_and_progress_is_told():
    told = []
    first, second = (collected(greedy=True, on_decision=told.append)[2] for _ in range(2))
    assert torch.equal(first.trace["draw"], second.trace["draw"])
    assert told == [2, 3, 4, 5, 6] * 2


def test_a_policy_without_a_critic_leaves_final_values_out():
    rollout = collect_rollout(GaussianPolicy(2, 2, critic=False), Countdown(), [2], 1, observe)
    assert rollout.values is None
    assert rollout.final_values is None


def test_nothing_to_collect_is_refused():
    with pytest.raises(ValueError, match="group_size"):
        collect_rollout(GaussianPolicy(2, 2), Countdown(), [1], 0, observe)


def test_responses_are_grouped_by_prompt():
    prompts = torch.tensor([[0, 1], [2, 3]])
    rollout = collect_responses(
        TokenPolicy(),
        text_observation(prompts),
        3,
        lambda d, rows: (d.action == prompts[rows]).float().mean(1),
    )
    assert rollout.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert rollout.observation.tokens.tolist() == prompts.repeat_interleave(3, 0).tolist()
    expected = (rollout.trace["draw"] == rollout.observation.tokens).float().mean(1)
    assert torch.equal(rollout.rewards, expected)
    assert rollout.terminated.all()
    assert rollout.values.shape == (6, 2)


class Killing:
    """Keeps a rollout between two decisions, and ends the process it is in there: once for every
    decision."""

    def __init__(self):
        self.kept, self.left = None, 0

    def load(self):
        if self.kept is None:
            return None
        state, rng = self.kept
        torch.set_rng_state(rng)
        return state

    def save_if_due(self, state):
        self.left -= 1
        if self.left == 0:
            self.kept = state(), torch.get_rng_state()
            raise InterruptedError


def test_a_rollout_goes_on_in_another_process_after_any_decision():
    """Seven trajectories in three places: of 5, 2, 3, 4, 1, 6 and 2 chunks."""

    def collect(saver=None):
        return collect_rollout(
            Counting(), Countdown(), [5, 2, 3, 4, 1, 6, 2], 1, observe, saver=saver
        )

    torch.manual_seed(0)
    whole = collect()
    for step in range(1, 9):
        torch.manual_seed(0)
        saver = Killing()
        saver.left = step
        with pytest.raises(InterruptedError):
            collect(saver)
        torch.manual_seed(7)
        again = collect(saver)
        for name in (
            "logprobs",
            "rewards",
            "trajectory",
            "terminated",
            "truncated",
            "success",
            "final_values",
        ):
            assert torch.equal(getattr(whole, name), getattr(again, name)), (step, name)
        assert torch.equal(whole.observation.proprio, again.observation.proprio)
        assert torch.equal(whole.action, again.action)
        assert {n: v.tolist() for n, v in whole.episodes.items()} == {
            n: v.tolist() for n, v in again.episodes.items()
        }
