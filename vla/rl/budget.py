"""Limits of an RL run, and the rule by which a validation is the best so far.

Every limit is a setting of `rl` with the same name. The run reports the limit that ended it.

Only `max_seconds` depends on the machine. An iteration starts only if it fits, with its validation
and the evaluation at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from vla.types import StateDict

NUM_RECENT = 3
"""Number of recent iterations; the longest one predicts the next."""
IDLE_COUNTS = (
    "num_groups",
    "groups_singleton",
    "groups_without_variance",
    "trajectories_unscorable",
)
"""Metrics that explain an iteration without an optimizer step."""


@dataclass(frozen=True)
class Limits:
    """Limits of the iterations; None is no limit."""

    num_iterations: int
    max_decisions: int | None = None
    max_seconds: float | None = None
    target_success: float | None = None
    patience: int | None = None
    max_idle_iterations: int | None = None


@dataclass
class Spent:
    """Amounts used by a run over all its sessions; part of the checkpoint.

    `num_steps` counts optimizer steps that moved the policy, `num_idle` the iterations since the
    last one, `num_stale` the validations since the best one. `after_seconds` is the expected time
    of the evaluation after the iterations.
    """

    seconds: float = 0.0
    num_decisions: float = 0.0
    num_steps: float = 0.0
    num_idle: int = 0
    idle_counts: dict[str, float] = field(default_factory=dict)
    best_success: float = -1.0
    num_stale: int = 0
    recent_seconds: list[float] = field(default_factory=list)
    validation_seconds: float = 0.0
    after_seconds: float = 0.0


class Budget:
    """Limits, and the amounts used of them."""

    def __init__(self, limits: Limits, after_seconds: float = 0.0) -> None:
        self.limits = limits
        self.spent = Spent(after_seconds=after_seconds)

    def state_dict(self) -> StateDict:
        return asdict(self.spent)

    def load_state_dict(self, state: StateDict) -> None:
        self.spent = Spent(**state)

    def note_iteration(
        self, metrics: Mapping[str, float], seconds: float, critic_only: bool = False
    ) -> None:
        """Record an iteration that ended `seconds` after the first began.

        `critic_only` iterations (value warm-up) do not count as idle.
        """
        spent = self.spent
        spent.recent_seconds = [*spent.recent_seconds, seconds - spent.seconds][-NUM_RECENT:]
        spent.seconds = seconds
        spent.num_decisions += metrics["num_decisions"]
        moved = metrics["num_optimizer_steps"] if metrics.get("grad_norm_max", 1.0) > 0 else 0.0
        if critic_only:
            return
        if moved:
            spent.num_steps += moved
            spent.num_idle = 0
            spent.idle_counts = {}
            return
        spent.num_idle += 1
        spent.idle_counts = {
            n: spent.idle_counts.get(n, 0.0) + metrics[n] for n in IDLE_COUNTS if n in metrics
        }

    def note_validation(self, success: float, seconds: float, counts: bool = True) -> bool:
        """Record a validation that ended `seconds` after the first iteration began.

        Returns True where no earlier one was better. `counts` False (the validation before the
        first iteration) never counts as stale.
        """
        spent = self.spent
        spent.validation_seconds = seconds - spent.seconds
        spent.seconds = seconds
        better = success > spent.best_success
        as_good = success >= spent.best_success
        spent.num_stale = 0 if better or not counts else spent.num_stale + 1
        spent.best_success = max(success, spent.best_success)
        return as_good

    @property
    def next_seconds(self) -> float:
        """Expected seconds of one more iteration, its validation and the evaluation at the end."""
        spent = self.spent
        return (
            max(spent.recent_seconds, default=0.0) + spent.validation_seconds + spent.after_seconds
        )

    @property
    def share_of_seconds(self) -> float:
        """Used fraction of the seconds for iterations; 0 without a limit."""
        limit = self.limits.max_seconds
        if limit is None:
            return 0.0
        room = limit - self.spent.after_seconds
        return min(1.0, self.spent.seconds / room) if room > 0 else 1.0

    def ended_by(self, num_iterations: int) -> str | None:
        """The limit reached after `num_iterations`; None while the run continues."""
        limits = self.limits
        spent = self.spent
        if limits.target_success is not None and spent.best_success >= limits.target_success:
            return "target_success"
        if limits.patience is not None and spent.num_stale >= limits.patience:
            return "patience"
        if limits.max_idle_iterations is not None and spent.num_idle >= limits.max_idle_iterations:
            return "max_idle_iterations"
        if num_iterations >= limits.num_iterations:
            return "num_iterations"
        if limits.max_decisions is not None and spent.num_decisions >= limits.max_decisions:
            return "max_decisions"
        if (
            limits.max_seconds is not None
            and spent.seconds + self.next_seconds > limits.max_seconds
        ):
            return "max_seconds"
        return None

    def summary(self, num_iterations: int) -> StateDict:
        """The end of the iterations for results.json: limit, text and counts."""
        name = self.ended_by(num_iterations)
        spent = self.spent
        summary: StateDict = {
            "ended_by": name,
            "text": "stopped" if name is None else self._explained(name, num_iterations),
            "num_iterations": num_iterations,
            "num_optimizer_steps": int(spent.num_steps),
            "num_decisions": int(spent.num_decisions),
        }
        if num_iterations and not spent.num_steps:
            summary["nothing_learned"] = "nothing was learned: " + self._idle()
        return summary

    def _explained(self, name: str, num_iterations: int) -> str:
        spent = self.spent
        reason = {
            "target_success": f"{100 * spent.best_success:.1f} % of validation starts",
            "patience": (
                f"{spent.num_stale} validations in a row "
                f"no better than {100 * spent.best_success:.1f} %"
            ),
            "max_idle_iterations": self._idle(),
            "num_iterations": "all iterations are done",
            "max_decisions": f"{spent.num_decisions:.0f} decisions",
            "max_seconds": f"{spent.seconds:.0f} s are used and {self.next_seconds:.0f} s more "
            "would be needed for an "
            "iteration with its validation and the evaluation at the end",
        }[name]
        limit = getattr(self.limits, name)
        return f"RL ended by rl.{name} ({limit}) after {num_iterations} iterations: {reason}"

    def _idle(self) -> str:
        spent = self.spent
        counts = {name: f"{spent.idle_counts.get(name, 0):.0f}" for name in IDLE_COUNTS}
        return (
            f"no optimizer step moved the policy in the last {spent.num_idle} iterations; of "
            f"{counts['num_groups']} "
            f"groups {counts['groups_singleton']} had a single trajectory that could be scored and "
            f"{counts['groups_without_variance']} equal rewards, and "
            f"{counts['trajectories_unscorable']} trajectories "
            "could not be scored"
        )
