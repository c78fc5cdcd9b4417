"""When reinforcement learning ends: at a target or a plateau of validation success, after so many
iterations, decisions or seconds, or where nothing is learned. Every limit is a setting of `rl` of
the same name, and the run says which one it was.

Only `max_seconds` depends on the machine. It is a guard: no iteration is begun that will not fit,
and judging counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

NUM_RECENT = 3
"""Iterations whose longest stands for the next one."""
IDLE_COUNTS = (
    "num_groups",
    "groups_singleton",
    "groups_without_variance",
    "trajectories_unscorable",
)
"""What an iteration without an optimizer step is explained by."""


@dataclass(frozen=True)
class Limits:
    """What ends the iterations; null is no limit."""

    num_iterations: int
    max_decisions: int | None = None
    max_seconds: float | None = None
    target_success: float | None = None
    patience: int | None = None
    max_idle_iterations: int | None = None


@dataclass
class Spent:
    """What a run has used and reached so far, over all its sessions; it goes into the checkpoint.

    `num_steps` counts optimizer steps that moved the policy, `num_idle` the iterations since the
    last one, `num_stale` the validations since the best one. `after_seconds` is what judging takes
    when the iterations are over.
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
    """Limits, and what is spent of them."""

    def __init__(self, limits: Limits, after_seconds: float = 0.0) -> None:
        self.limits, self.spent = limits, Spent(after_seconds=after_seconds)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.spent)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.spent = Spent(**state)

    def note_iteration(
        self, metrics: Mapping[str, float], seconds: float, critic_only: bool = False
    ) -> None:
        """An iteration is over, `seconds` after the first began. `trainable_critic_parameters` ones are no reason
        to stop."""
        spent = self.spent
        spent.recent_seconds = [*spent.recent_seconds, seconds - spent.seconds][-NUM_RECENT:]
        spent.seconds = seconds
        spent.num_decisions += metrics["num_decisions"]
        moved = metrics["num_optimizer_steps"] if metrics.get("grad_norm_max", 1.0) > 0 else 0.0
        if critic_only:
            return
        if moved:
            spent.num_steps, spent.num_idle, spent.idle_counts = spent.num_steps + moved, 0, {}
            return
        spent.num_idle += 1
        spent.idle_counts = {
            n: spent.idle_counts.get(n, 0.0) + metrics[n] for n in IDLE_COUNTS if n in metrics
        }

    def note_validation(self, success: float, seconds: float, counts: bool = True) -> bool:
        """A validation is over, `seconds` after the first iteration began; whether none before was
        better. The one before the first iteration does not count as stale.
        """
        spent = self.spent
        spent.validation_seconds, spent.seconds = seconds - spent.seconds, seconds
        better, as_good = success > spent.best_success, success >= spent.best_success
        spent.num_stale = 0 if better or not counts else spent.num_stale + 1
        spent.best_success = max(success, spent.best_success)
        return as_good

    @property
    def next_seconds(self) -> float:
        """What one more iteration would take, with a validation behind it and the judging at the
        end."""
        spent = self.spent
        return (
            max(spent.recent_seconds, default=0.0) + spent.validation_seconds + spent.after_seconds
        )

    @property
    def share_of_seconds(self) -> float:
        """The share of the seconds for iterations that is used up; 0 without a limit."""
        limit = self.limits.max_seconds
        if limit is None:
            return 0.0
        room = limit - self.spent.after_seconds
        return min(1.0, self.spent.seconds / room) if room > 0 else 1.0

    def ended_by(self, num_iterations: int) -> str | None:
        """The setting that ends the run after so many iterations; None while it may go on."""
        limits, spent = self.limits, self.spent
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

    def summary(self, num_iterations: int) -> dict[str, Any]:
        """What results.json says about the end of the iterations."""
        name, spent = self.ended_by(num_iterations), self.spent
        found: dict[str, Any] = {
            "ended_by": name,
            "text": "stopped" if name is None else self._explained(name, num_iterations),
            "num_iterations": num_iterations,
            "num_optimizer_steps": int(spent.num_steps),
            "num_decisions": int(spent.num_decisions),
        }
        if num_iterations and not spent.num_steps:
            found["nothing_learned"] = "nothing was learned: " + self._idle()
        return found

    def _explained(self, name: str, num_iterations: int) -> str:
        spent = self.spent
        told = {
            "target_success": f"{100 * spent.best_success:.1f} % of validation starts",
            "patience": f"{spent.num_stale} validations in a row no better than {100 * spent.best_success:.1f} %",
            "max_idle_iterations": self._idle(),
            "num_iterations": "all iterations are done",
            "max_decisions": f"{spent.num_decisions:.0f} decisions",
            "max_seconds": f"{spent.seconds:.0f} s are used and {self.next_seconds:.0f} s more would be needed for an "
            "iteration with its judging and that at the end",
        }[name]
        return f"RL ended by rl.{name} ({getattr(self.limits, name)}) after {num_iterations} iterations: {told}"

    def _idle(self) -> str:
        spent = self.spent
        counts = {name: f"{spent.idle_counts.get(name, 0):.0f}" for name in IDLE_COUNTS}
        return (
            f"no optimizer step moved the policy in the last {spent.num_idle} iterations; of {counts['num_groups']} "
            f"groups {counts['groups_singleton']} had a single trajectory that could be scored and "
            f"{counts['groups_without_variance']} equal rewards, and {counts['trajectories_unscorable']} trajectories "
            "could not be scored"
        )
