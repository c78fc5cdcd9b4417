"""The RL loop: collect, score by the reference, update, adapt the KL coefficient.

It reads and writes no files; callbacks do.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch

from vla.collectives import ReduceSum, single_process, sum_counts
from vla.rl import validation as checks
from vla.rl.kl import AdaptiveKL
from vla.rl.normalize import RunningMoments, normalize_rewards
from vla.rl.protocols import Algorithm, Optimizer, Policy, Reference, Scheduler
from vla.rl.rewards import trajectory_kl
from vla.rl.update import UpdateSettings, check_needs, update
from vla.threads import SINGLE_THREAD, Threads
from vla.types import Rollout, StateDict


@dataclass(frozen=True)
class LoopSettings:
    """Number of iterations, value warm-up, refresh of the reference and adaptive KL.

    The first `num_critic_warmup_iterations` train the critic alone. Every `reference_refresh_every`
    iterations the reference becomes the present policy (iterative GRPO). With `kl_target` (nats per
    trajectory) and `kl_horizon` the KL coefficient adapts.
    """

    num_iterations: int
    num_critic_warmup_iterations: int = 0
    reference_refresh_every: int | None = None
    kl_target: float | None = None
    kl_horizon: float | None = None
    normalize_rewards: bool = False

    def __post_init__(self) -> None:
        checks.check_at_least(
            "num_iterations", self.num_iterations, 0, "it counts rollouts with their updates"
        )
        checks.check_at_least(
            "num_critic_warmup_iterations",
            self.num_critic_warmup_iterations,
            0,
            "0 switches warm-up off",
        )
        if self.reference_refresh_every is not None:
            checks.check_at_least(
                "reference_refresh_every",
                self.reference_refresh_every,
                1,
                "null keeps the first reference",
            )
        if (self.kl_target is None) != (self.kl_horizon is None):
            raise ValueError(
                f"kl_target ({self.kl_target}) and kl_horizon ({self.kl_horizon}) belong "
                "together: give both (6 and "
                "10000 are OpenAI's) or neither"
            )
        for setting in ("kl_target", "kl_horizon"):
            if getattr(self, setting) is not None:
                checks.check_positive(
                    setting, getattr(self, setting), "null keeps kl_coefficient fixed"
                )


@dataclass
class LoopState:
    """State of the loop itself. The caller saves weights, optimizer, reference and global
    generators."""

    generator: torch.Generator = field(default_factory=torch.Generator)
    iteration: int = 0
    kl_coefficient: float | None = None
    moments: RunningMoments = field(default_factory=RunningMoments)

    def state_dict(self) -> StateDict:
        return {
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
            "kl_coefficient": self.kl_coefficient,
            "moments": self.moments.state_dict(),
        }

    def load_state_dict(self, state: StateDict) -> None:
        self.generator.set_state(state["generator"])
        self.iteration = state["iteration"]
        self.kl_coefficient = state["kl_coefficient"]
        self.moments = RunningMoments(**state["moments"])


def train_rl(
    policy: Policy,
    algorithm: Algorithm,
    collect: Callable[[int], Rollout],
    optimizer: Optimizer,
    update_settings: UpdateSettings,
    settings: LoopSettings,
    state: LoopState,
    *,
    reference: Reference | None = None,
    scheduler: Scheduler | None = None,
    on_iteration: Callable[
        [int, Rollout, dict[str, float]], bool | None
    ] = lambda iteration, rollout, metrics: None,
    reduce_sum: ReduceSum = single_process,
    threads: Threads = SINGLE_THREAD,
    timed: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Run the iterations from `state.iteration` to the last one.

    Args:
        collect: makes the rollout of an iteration, by the policy after that many updates.
        on_iteration: called with (number of finished iterations, rollout, metrics) to log, evaluate
            and save; True stops the loop.
        timed: context manager that times a named block.

    Raises:
        NonFiniteError: from an update. `on_iteration` has handled every iteration before it, so the
            last checkpoint is good.
        ValueError: for settings that the algorithm does not support.
    """
    check_loop(algorithm, settings, reference)
    while state.iteration < settings.num_iterations:
        rollout = collect(state.iteration)
        with timed("update"):
            metrics = run_iteration(
                policy,
                algorithm,
                rollout,
                optimizer,
                update_settings,
                settings,
                state,
                reference,
                reduce_sum,
                threads,
            )
        if scheduler is not None:
            scheduler.step()
        state.iteration += 1
        if (
            settings.reference_refresh_every is not None
            and state.iteration % settings.reference_refresh_every == 0
        ):
            assert reference is not None
            reference.refresh()
        if on_iteration(state.iteration, rollout, metrics):
            break


def run_iteration(
    policy: Policy,
    algorithm: Algorithm,
    rollout: Rollout,
    optimizer: Optimizer,
    update_settings: UpdateSettings,
    settings: LoopSettings,
    state: LoopState,
    reference: Reference | None,
    reduce_sum: ReduceSum,
    threads: Threads,
) -> dict[str, float]:
    """Update once from one rollout: reference log-probabilities, update, KL controller."""
    metrics = rollout_metrics(rollout, state.iteration, reduce_sum)
    if settings.normalize_rewards:
        state.moments = state.moments.update(rollout.returns, reduce_sum)
        rollout = normalize_rewards(rollout, state.moments, shift_mean=not algorithm.needs_groups)
    ref_logprobs = None
    if reference is not None:
        ref_logprobs = reference.logprobs(rollout)
        metrics["kl_trajectory"] = trajectory_kl(rollout, ref_logprobs, reduce_sum)
    if settings.kl_target is not None and state.kl_coefficient is None:
        state.kl_coefficient = algorithm.kl_coefficient  # type: ignore[attr-defined]
    if state.kl_coefficient is not None:
        algorithm = replace(algorithm, kl_coefficient=state.kl_coefficient)  # type: ignore[type-var]
        metrics["kl_coefficient"] = state.kl_coefficient
    warmup = state.iteration < settings.num_critic_warmup_iterations
    metrics |= update(
        policy,
        algorithm,
        rollout,
        optimizer,
        update_settings,
        generator=state.generator,
        ref_logprobs=ref_logprobs,
        critic_warmup=warmup,
        reduce_sum=reduce_sum,
        threads=threads,
    )
    if settings.kl_target is not None and not warmup:
        assert state.kl_coefficient is not None
        assert settings.kl_horizon is not None
        controller = AdaptiveKL(state.kl_coefficient, settings.kl_target, settings.kl_horizon)
        num_trajectories = int(metrics["num_trajectories"])
        state.kl_coefficient = controller.update(
            metrics["kl_trajectory"], num_trajectories
        ).coefficient
    return metrics


def rollout_metrics(rollout: Rollout, iteration: int, reduce_sum: ReduceSum) -> dict[str, float]:
    """Metrics of the global rollout: mean return, success, size and policy lag in updates."""
    returns = rollout.returns.double()
    scorable = ~returns.isnan()
    success = rollout.success.double() if rollout.success is not None else torch.zeros_like(returns)
    lag = (iteration - rollout.version).double()
    sums = torch.stack(
        [
            *(scorable.sum().double(), returns.nan_to_num(0.0).sum(), success.sum()),
            *(
                torch.tensor(float(len(returns))).double(),
                lag.sum(),
                torch.tensor(float(len(lag))).double(),
            ),
        ]
    )
    num_scorable, total, successes, num_trajectories, lags, num_rows = reduce_sum(sums).tolist()
    metrics = {
        "return_mean": total / num_scorable if num_scorable else float("nan"),
        "num_trajectories": num_trajectories,
        "num_decisions": num_rows,
        "policy_lag": lags / max(num_rows, 1.0),
    }
    if rollout.success is not None:
        metrics["success"] = successes / max(num_trajectories, 1.0)
    numbers = {name: float(v) for name, v in rollout.metrics.items() if isinstance(v, int | float)}
    return {**sum_counts(numbers, reduce_sum), **metrics}


def check_loop(algorithm: Algorithm, settings: LoopSettings, reference: Reference | None) -> None:
    """Check the settings against algorithm and reference before the first rollout.

    Raises:
        ValueError: naming the setting.
    """
    check_needs(algorithm, has_reference=reference is not None)
    if settings.reference_refresh_every is not None and reference is None:
        raise ValueError(
            f"reference_refresh_every ({settings.reference_refresh_every}) needs a reference "
            "policy: give one or set it to null"
        )
    if settings.kl_target is not None and not algorithm.needs_reference:
        raise ValueError(
            f"kl_target ({settings.kl_target}) steers kl_coefficient, which is 0 or not a setting "
            "of this algorithm: "
            "start it above 0 (.15 is OpenAI's) or set kl_target to null"
        )
    if settings.num_critic_warmup_iterations and not algorithm.needs_values:
        raise ValueError(
            f"num_critic_warmup_iterations ({settings.num_critic_warmup_iterations}) needs a "
            "critic: set it to 0"
        )
