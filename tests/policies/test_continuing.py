"""Real-time chunking: what is committed stays, what is not is free, and nothing planned changes
nothing."""

import numpy as np
import pytest
import torch

from tests.policies.kinds import CHUNK, flow
from tests.policies.tiny import named_number
from vla.actions.flow import FlowMatching
from vla.policies.real_time_chunking import (
    can_continue,
    continue_chunk,
    guidance_strength,
    guided_velocity,
    soft_mask,
)
from vla.serve.policy_service import batch_executing_plans, make_act
from vla.serve.requests import ExecutingPlan, ObservationBatch


@pytest.fixture(scope="module")
def policy():
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    made = flow("all_steps")(generator.uniform(-1, 1, size=(40, CHUNK, 1)).astype(np.float32))
    made.head.process = FlowMatching(num_steps=10, time_alpha=1.5, time_beta=1.0, noise_level=0.5)
    made.head.times = made.head.process.times
    return made


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def test_the_mask_falls_from_what_is_executed_to_what_is_free():
    # late 1, planned 3 of 4: 1, then c = 2/3 and 1/3: c (e^c - 1) / (e - 1) = 0.3677 and 0.0767;
    # then 0.
    np.testing.assert_allclose(soft_mask(ints(1), ints(3), 4)[0], [1, 0.3677, 0.0767, 0], atol=1e-3)
    np.testing.assert_array_equal(soft_mask(ints(0, 4), ints(0, 4), 4), [[0] * 4, [1] * 4])


def test_the_strength_is_the_papers():
    # t = 0.5: r^2 = 0.25 / 0.5 = 0.5, and 0.5 / (0.5 * 0.5) = 2. Near noise it is bounded by 5.
    assert guidance_strength(0.5) == pytest.approx(2.0)
    assert guidance_strength(0.0) == guidance_strength(0.01) == 5.0


def test_the_pull_is_the_gradient_of_the_difference(policy):
    _, observation, _ = named_number("parallel")
    inputs = policy.head_input(policy.perceive(observation), observation)
    state, wanted = torch.randn(4, CHUNK, 1), torch.zeros(4, CHUNK, 1)
    mask = torch.tensor([1.0, 0.5])[None, :, None].expand(4, -1, -1)
    velocity, pull = guided_velocity(policy.head, inputs, state, wanted, mask, 0.3)

    @torch.no_grad()
    def half_squared_difference(at: torch.Tensor) -> float:
        spoken = policy.head.predict(inputs, at[:, None], torch.full((4, 1), 0.3))[0][:, 0]
        return float((mask * (wanted - (at + 0.7 * spoken)).square()).sum() / 2)

    change = torch.zeros_like(state)
    change[2, 1] = 1e-3
    slope = (
        half_squared_difference(state + change) - half_squared_difference(state - change)
    ) / 2e-3
    assert float(pull[2, 1]) == pytest.approx(-slope, rel=2e-2)
    assert velocity.shape == state.shape


def test_what_is_committed_is_kept_and_nothing_planned_changes_nothing(policy):
    _, observation, _ = named_number("parallel")
    free = policy.act(observation, greedy=True).action
    nothing = continue_chunk(
        policy, observation, torch.zeros_like(free), ints(0, 0, 0, 0), ints(0, 0, 0, 0), greedy=True
    )
    torch.testing.assert_close(nothing, free)
    plan = free + 0.5
    held = continue_chunk(
        policy, observation, plan, ints(2, 2, 2, 2), ints(2, 2, 2, 2), greedy=True
    )
    assert float((held - plan).abs().mean()) < 0.1 * float((free - plan).abs().mean())
    # Rows do not mix: only the second one is doing something.
    mixed = continue_chunk(
        policy, observation, plan, ints(0, 2, 0, 0), ints(0, 2, 0, 0), greedy=True
    )
    torch.testing.assert_close(mixed[[0, 2, 3]], free[[0, 2, 3]])
    torch.testing.assert_close(mixed[1], held[1])


def test_a_server_goes_on_for_those_who_say_what_they_do(policy):
    _, observation, _ = named_number("parallel")
    plan = policy.act(observation, greedy=True).action[1].numpy() + 0.5

    going = (None, ExecutingPlan(plan, 2), None, None)
    shown = ObservationBatch({}, np.zeros((4, 3), np.float32), ["go"] * 4, going)
    answered = make_act(policy, lambda shown: observation, greedy=True)(shown)
    free = policy.act(observation, greedy=True).action.numpy()
    np.testing.assert_allclose(answered[[0, 2, 3]], free[[0, 2, 3]], atol=1e-5)
    assert np.abs(answered[1] - plan).mean() < 0.1 * np.abs(free[1] - plan).mean()
    rows, planned, late = batch_executing_plans(going, 3)
    assert (rows.shape, planned.tolist(), late.tolist()) == ((4, 3, 1), [0, 2, 0, 0], [0, 2, 0, 0])


def test_only_flow_can_go_on(policy):
    assert can_continue(policy)
    assert not can_continue(named_number("parallel")[0])
