"""Log-probabilities of stored draws, without gradient, in micro-batches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vla.rl.protocols import Policy
from vla.types import Observation, Trace, map_rows


def module_device(policy: Policy) -> torch.device:
    """Device of a policy's parameters; CPU without parameters."""
    first = next(iter(policy.parameters()), None)
    return torch.device("cpu") if first is None else first.device


@torch.no_grad()
def score_logprobs(
    policy: Policy, observation: Observation, trace: Trace, num_rows: int, micro_batch_rows: int
) -> Float[Tensor, "R L"]:
    """Log-probabilities of stored draws under the present weights, on the CPU."""
    device = module_device(policy)

    def select_rows(piece: Tensor) -> tuple[Observation, Trace]:
        def take(tensor: Tensor) -> Tensor:
            return tensor[piece].to(device)

        return map_rows(observation, take), map_rows(trace, take)

    pieces = torch.arange(num_rows).split(micro_batch_rows)
    return torch.cat([policy.score(*select_rows(piece)).logprobs.float().cpu() for piece in pieces])
