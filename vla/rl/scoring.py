"""Log-probabilities of stored draws, without gradient, in micro-batches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vla.devices import module_device, to_device
from vla.rl.protocols import Policy
from vla.types import Observation, Trace, map_rows


@torch.no_grad()
def score_logprobs(
    policy: Policy, observation: Observation, trace: Trace, num_rows: int, micro_batch_rows: int
) -> Float[Tensor, "R L"]:
    """Log-probabilities of stored draws under the present weights, on the CPU."""
    device = module_device(policy)

    def select_rows(piece: Tensor) -> tuple[Observation, Trace]:
        def take(tensor: Tensor) -> Tensor:
            return tensor[piece]

        return to_device((map_rows(observation, take), map_rows(trace, take)), device)

    pieces = torch.arange(num_rows).split(micro_batch_rows)
    return torch.cat([policy.score(*select_rows(piece)).logprobs.float().cpu() for piece in pieces])
