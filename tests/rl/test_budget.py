"""What ends reinforcement learning, and that the run says which limit it was."""

from dataclasses import fields

import pytest

from vla.config import load
from vla.rl.budget import IDLE_COUNTS, Budget, Limits

STEP = {"num_decisions": 10.0, "num_optimizer_steps": 4.0, "grad_norm_max": 0.5}
IDLE = {
    "num_decisions": 10.0,
    "num_optimizer_steps": 0.0,
    "num_groups": 8.0,
    "groups_singleton": 6.0,
    "groups_without_variance": 2.0,
    "trajectories_unscorable": 6.0,
}
STILL = {**STEP, "grad_norm_max": 0.0}


def run(
    limits: Limits, iterations: list[dict[str, float]], seconds: float = 1.0, **validations: float
) -> Budget:
    """Iterations of so many seconds each; `v3=.5` is a validation after the third that takes no
    time."""
    budget = Budget(limits)
    for i, metrics in enumerate(iterations, 1):
        budget.note_iteration(metrics, i * seconds)
        if f"v{i}" in validations:
            budget.note_validation(validations[f"v{i}"], i * seconds)
    return budget


@pytest.mark.parametrize(
    ("limits", "iterations", "validations", "ended_by"),
    [
        (Limits(3), [STEP] * 2, {}, None),
        (Limits(3), [STEP] * 3, {}, "num_iterations"),
        (Limits(9, max_decisions=20), [STEP], {}, None),
        (Limits(9, max_decisions=20), [STEP] * 2, {}, "max_decisions"),
        (Limits(9, target_success=0.9), [STEP] * 2, {"v1": 0.89}, None),
        (Limits(9, target_success=0.9), [STEP] * 2, {"v1": 0.9}, "target_success"),
        (Limits(9, patience=2), [STEP] * 4, {"v1": 0.5, "v2": 0.5, "v3": 0.6, "v4": 0.6}, None),
        (
            Limits(9, patience=2),
            [STEP] * 4,
            {"v1": 0.5, "v2": 0.6, "v3": 0.6, "v4": 0.5},
            "patience",
        ),
        (Limits(9, max_idle_iterations=2), [STEP, IDLE], {}, None),
        (Limits(9, max_idle_iterations=2), [STEP, IDLE, STEP, IDLE], {}, None),
        (Limits(9, max_idle_iterations=2), [STEP, IDLE, STILL], {}, "max_idle_iterations"),
        (Limits(9), [IDLE] * 8, {}, None),
    ],
)
def test_what_ends_a_run(limits, iterations, validations, ended_by):
    budget = run(limits, iterations, **validations)
    assert budget.ended_by(len(iterations)) == ended_by
    told = budget.summary(len(iterations))
    assert told["ended_by"] == ended_by
    assert ended_by is None or told["text"].startswith(
        f"RL ended by rl.{ended_by} ({getattr(limits, ended_by)})"
    )
    again = Budget(limits)
    again.load_state_dict(budget.state_dict())
    assert again.summary(len(iterations)) == told


def test_no_iteration_is_begun_that_would_not_fit():
    # Iterations of 10 s, validations of 3, judging after them of 20: after four, 43 s are used; one
    # more would take 10 + 3 + 20, so it fits into 76 s and not into 75.
    for limit, ended_by in ((76.0, None), (75.0, "max_seconds")):
        budget = Budget(Limits(99, max_seconds=limit), after_seconds=20.0)
        for i in range(1, 5):
            budget.note_iteration(STEP, 10.0 * i)
        budget.note_validation(0.5, 43.0)
        assert budget.ended_by(4) == ended_by
        assert budget.share_of_seconds == 43 / (limit - 20)


def test_the_longest_of_the_last_iterations_stands_for_the_next():
    budget = Budget(Limits(99, max_seconds=1000.0))
    for seconds in (50.0, 53.0, 60.0, 61.0):  # 50, 3, 7 and 1 s each: the first is out of sight
        budget.note_iteration(STEP, seconds)
    assert budget.next_seconds == 7.0


def test_a_run_that_learned_nothing_says_why():
    told = run(Limits(2), [IDLE, IDLE]).summary(2)
    assert told["num_optimizer_steps"] == 0
    assert told["nothing_learned"] == (
        "nothing was learned: no optimizer step moved the policy in the last 2 iterations; of 16 "
        "groups 12 had a "
        "single trajectory that could be scored and 4 equal rewards, and 12 trajectories could "
        "not be scored"
    )
    assert "nothing_learned" not in run(Limits(2), [IDLE, STEP]).summary(2)
    assert set(IDLE_COUNTS) < set(IDLE)


def test_iterations_of_the_critic_alone_are_no_reason_to_stop():
    budget = Budget(Limits(9, max_idle_iterations=1))
    budget.note_iteration(STEP, 1.0, critic_only=True)
    assert budget.ended_by(1) is None
    assert budget.summary(1)["num_optimizer_steps"] == 0


def test_the_validation_before_the_first_iteration_is_not_stale():
    budget = Budget(Limits(9, patience=1))
    budget.note_validation(0.0, 1.0, counts=False)
    budget.note_validation(0.0, 1.0, counts=False)
    assert budget.ended_by(0) is None


@pytest.mark.parametrize("mode", ["robot", "text"])
def test_every_limit_is_a_setting(mode):
    rl = load([f"mode={mode}"]).rl
    budget = Budget(Limits(**{field.name: getattr(rl, field.name) for field in fields(Limits)}))
    assert budget.ended_by(0) is None
    assert budget.ended_by(rl.num_iterations) == "num_iterations"
