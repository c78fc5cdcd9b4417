"""Metrics of an update, and the error that names rows with a non-finite loss or gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Parameter

from vla.collectives import ReduceSum
from vla.rl.batch import Batch, LossOutput
from vla.rl.losses import draw_log_ratio
from vla.rl.protocols import Algorithm, Policy
from vla.types import ActionScores


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is NaN or infinite. The optimizer step was not taken.

    `rows` are the numbers of the rollout's rows that caused it.
    """

    def __init__(self, what: str, rows: Sequence[int], num_optimizer_steps: int) -> None:
        self.what = what
        self.rows = tuple(sorted(rows))
        self.num_optimizer_steps = num_optimizer_steps
        numbers = ", ".join(map(str, self.rows[:16])) + (", ..." if len(self.rows) > 16 else "")
        where = (
            f"rollout rows {numbers}"
            if self.rows
            else "no single row here (another process, or the sum overflowed)"
        )
        super().__init__(
            f"{what} is not finite: {where}. The parameters are those after {num_optimizer_steps} "
            "good optimizer "
            "steps of this update. Look at these rows' observations, log-probabilities and "
            "rewards; where the policy "
            "diverged, lower the learning rate or max_grad_norm"
        )


SUMS = (
    *("draws", "policy_loss", "value_loss", "kl", "ratio", "ratio_squared"),
    *("clip_fraction", "kl_reference", "entropy"),
)
"""Sums over draws, in the order of their exchange between processes. The last three come from
`LossOutput.metrics`.
"""


class Diagnostics:
    """Sums over the draws of an update. The sums of a minibatch become global at its end."""

    def __init__(self, sampled_logprobs: Float[Tensor, "R L"]) -> None:
        self.sampled_logprobs = sampled_logprobs
        self.bad_rows: list[int] = []
        self.num_optimizer_steps = 0
        self.rows_active = 0.0
        self.stopped_early = False
        self.approx_kl = 0.0
        self.ratio_min = math.inf
        self.ratio_max = -math.inf
        self.gap_max = 0.0
        self.gap_sum = 0.0
        self.gap_count = 0.0
        self.norms: list[float] = []
        self.finished: list[dict[str, float]] = []
        self.passes = 0.0
        self.start_minibatch()

    def start_minibatch(self) -> None:
        """Clear the sums of the previous minibatch."""
        self.sums = {name: torch.zeros((), dtype=torch.float64) for name in SUMS}
        self.present: set[str] = set()

    @torch.no_grad()
    def observe(
        self, rows: Int[Tensor, "B"], batch: Batch, scores: ActionScores, output: LossOutput
    ) -> None:
        """Add a micro-batch."""
        counted = batch.weights != 0
        log_ratio = draw_log_ratio(scores.logprobs, batch.old_logprobs, counted)
        ratio = log_ratio.exp()
        self._add("draws", counted.sum())
        self._add("policy_loss", output.policy.sum())
        if output.value is not None:
            self._add("value_loss", output.value.sum())
        self._add("kl", torch.where(counted, ratio - 1 - log_ratio, 0.0).sum())
        self._add("ratio", torch.where(counted, ratio, 0.0).sum())
        self._add("ratio_squared", torch.where(counted, ratio.square(), 0.0).sum())
        for name, value in output.metrics.items():
            self._add(name, value)
        if bool(counted.any()):
            chosen = ratio[counted]
            self.ratio_min = min(self.ratio_min, float(chosen.min()))
            self.ratio_max = max(self.ratio_max, float(chosen.max()))
        if self.num_optimizer_steps == 0:
            self._observe_gap(rows, batch, scores)

    def _observe_gap(self, rows: Int[Tensor, "B"], batch: Batch, scores: ActionScores) -> None:
        """Compare log-probabilities with those of the rollout, equal before any optimizer step."""
        sampled = self.sampled_logprobs[rows].to(scores.logprobs.device)
        gap = (scores.logprobs - sampled)[batch.mask].abs()
        if gap.numel():
            self.gap_max = max(self.gap_max, float(gap.max()))
            self.gap_sum += float(gap.sum())
            self.gap_count += gap.numel()

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value.detach().double().cpu()
        self.present.add(name)

    def finish_minibatch(self, fraction: float, reduce_sum: ReduceSum) -> bool:
        """Sum over processes; True where a row of any process is not finite.

        `fraction` is the minibatch's fraction of the active rows.
        """
        local = [self.sums[name] for name in SUMS] + [
            torch.tensor(float(n in self.present)) for n in SUMS
        ]
        *totals, num_bad = reduce_sum(
            torch.stack([*local, torch.tensor(float(len(self.bad_rows)))]).double()
        ).tolist()
        present = totals[len(SUMS) :]
        self.finished.append({name: totals[i] for i, name in enumerate(SUMS) if present[i]})
        self.passes += fraction
        self.approx_kl = self.finished[-1].get("kl", 0.0) / max(
            self.finished[-1].get("draws", 0.0), 1.0
        )
        return num_bad > 0

    def note_step(self, norm: float) -> None:
        """Record an optimizer step and its gradient norm before clipping."""
        self.num_optimizer_steps += 1
        self.norms.append(norm)

    def summary(self) -> dict[str, float]:
        """Means over minibatches; losses are of the whole batch, per pass."""
        result = {
            "num_optimizer_steps": float(self.num_optimizer_steps),
            "rows_active": self.rows_active,
            "stopped_early": float(self.stopped_early),
        }
        if not self.finished:
            return result
        draws = max(sum(part["draws"] for part in self.finished), 1.0)
        for name in self.finished[0]:
            total = sum(part.get(name, 0.0) for part in self.finished)
            if name in ("policy_loss", "value_loss"):
                result[name] = total / self.passes
            elif name not in ("draws", "ratio", "ratio_squared"):
                result["approx_kl" if name == "kl" else name] = total / draws
        sizes = [
            p["ratio"] ** 2 / (p["draws"] * p["ratio_squared"])
            for p in self.finished
            if p["ratio_squared"] > 0
        ]
        result["effective_sample_size"] = sum(sizes) / len(sizes) if sizes else math.nan
        result["ratio_min"] = self.ratio_min
        result["ratio_max"] = self.ratio_max
        result["logprob_gap_max"] = self.gap_max
        result["logprob_gap_mean"] = self.gap_sum / max(self.gap_count, 1.0)
        if self.norms:
            result["grad_norm"] = sum(self.norms) / len(self.norms)
            result["grad_norm_max"] = max(self.norms)
        return result


def rows_with_bad_gradients(
    policy: Policy,
    algorithm: Algorithm,
    batch: Batch,
    rows: Int[Tensor, "B"],
    parameters: Sequence[Parameter],
) -> list[int]:
    """Numbers of the rows with a non-finite gradient, computed row by row (slow, only after an
    error)."""
    bad_rows = []
    for row in rows.split(1):
        part = batch.select(row).map(lambda tensor: tensor.to(parameters[0].device))
        loss = algorithm.loss(part, policy.score(part.observation, part.trace)).loss
        if not loss.requires_grad:
            continue
        gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        if not all(bool(g.isfinite().all()) for g in gradients if g is not None):
            bad_rows.append(int(row))
    return bad_rows
