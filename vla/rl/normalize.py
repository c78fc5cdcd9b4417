"""Running moments, and rewards normalised to unit scale (Stiennon 2020 for reward models; Engstrom
2020 for control)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vla.collectives import ReduceSum, single_process
from vla.types import Rollout


@dataclass(frozen=True)
class RunningMoments:
    """Count, mean and sum of squared deviations of all values so far, merged by batch (Chan
    1979)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def standard_deviation(self) -> float:
        """Unbiased standard deviation; 1 for fewer than two values or equal ones."""
        variance = self.squares / (self.count - 1) if self.count > 1 else 0.0
        return variance**0.5 if variance > 0 else 1.0

    def update(
        self, values: Float[Tensor, "K"], reduce_sum: ReduceSum = single_process
    ) -> RunningMoments:
        """Return the moments with the values of all processes added; NaN are left out."""
        exact = values[~values.isnan()].double()
        count, total = reduce_sum(
            torch.stack([torch.tensor(float(len(exact))).double(), exact.sum()])
        ).tolist()
        if count == 0:
            return self
        mean = total / count
        squares = float(reduce_sum((exact - mean).square().sum()))
        all_count = self.count + count
        shift = mean - self.mean
        return RunningMoments(
            all_count,
            self.mean + shift * count / all_count,
            self.squares + squares + shift**2 * self.count * count / all_count,
        )

    def state_dict(self) -> dict[str, float]:
        return asdict(self)


def normalize_rewards(rollout: Rollout, moments: RunningMoments, *, shift_mean: bool) -> Rollout:
    """Divide rewards by the standard deviation of returns; `shift_mean` subtracts the mean return
    from the last row.

    The shift does not change group advantages; it moves a critic's targets towards 0.
    """
    rewards = rollout.rewards
    if shift_mean:
        last = torch.zeros(rollout.num_trajectories, dtype=torch.long)
        last = last.scatter_reduce(
            0, rollout.trajectory, torch.arange(len(rewards)), "amax", include_self=False
        )
        rewards = rewards.index_add(
            0, last, torch.full((len(last),), -moments.mean, dtype=rewards.dtype)
        )
    return replace(rollout, rewards=rewards / moments.standard_deviation)
