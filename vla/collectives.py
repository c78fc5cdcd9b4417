"""Sums over processes: the function that the core is handed, and the identity of a single process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

ReduceSum = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes, e.g. `lambda x: accelerator.reduce(x, "sum")`."""


BUCKET_SIZE = 2**24
"""Numbers that cross processes at once: few calls for many small tensors, little memory beside
large ones."""


def single_process(value: Tensor) -> Tensor:
    """The sum over processes when there is one."""
    return value


def sum_over_processes(tensors: Sequence[Tensor], reduce_sum: ReduceSum) -> list[Tensor]:
    """The sums of tensors over processes, many of them in one call; each lies in memory as its
    tensor does."""
    sums: list[Tensor] = []
    buckets: list[list[Tensor]] = []
    for tensor in tensors:
        last = buckets[-1] if buckets else []
        fits = (
            last
            and last[0].dtype == tensor.dtype
            and sum(map(Tensor.numel, last)) + tensor.numel() <= BUCKET_SIZE
        )
        if fits:
            last.append(tensor)
        else:
            buckets.append([tensor])
    for bucket in buckets:
        total = reduce_sum(torch.cat([tensor.reshape(-1) for tensor in bucket]))
        parts = total.split([tensor.numel() for tensor in bucket])
        sums += [
            torch.empty_like(t).copy_(part.reshape(t.shape))
            for part, t in zip(parts, bucket, strict=True)
        ]
    return sums


def sum_gradients(parameters: Iterable[Parameter], reduce_sum: ReduceSum) -> None:
    """Sum gradients over processes; a parameter without one counts as zero. One process leaves them
    as they are."""
    if reduce_sum is single_process:
        return
    summed = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in summed]
    for parameter, total in zip(summed, sum_over_processes(gradients, reduce_sum), strict=True):
        parameter.grad = total


def sum_counts(numbers: Mapping[str, float], reduce_sum: ReduceSum) -> dict[str, float]:
    """Counts of all processes, which know the same names."""
    if reduce_sum is single_process or not numbers:
        return dict(numbers)
    names = sorted(numbers)
    totals = reduce_sum(
        torch.tensor([numbers[name] for name in names], dtype=torch.float64)
    ).tolist()
    return dict(zip(names, totals, strict=True))
