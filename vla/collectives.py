"""Sums of gradients and counts over processes, by an all-reduce of `vla.training.distributed`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

ReduceSum = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes, e.g. `lambda x: accelerator.reduce(x, "sum")`."""


BUCKET_SIZE = 2**24
"""Elements per collective call: few calls for many small tensors, little extra memory for large
ones."""


def single_process(value: Tensor) -> Tensor:
    """The `ReduceSum` of a single process: the identity."""
    return value


def sum_over_processes(tensors: Sequence[Tensor], reduce_sum: ReduceSum) -> list[Tensor]:
    """Sums of tensors over processes, several tensors per collective call.

    Each sum has the memory layout of its tensor.
    """
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
    """Sum gradients over processes in place. A missing gradient counts as zero."""
    if reduce_sum is single_process:
        return
    trained = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    for parameter, total in zip(trained, sum_over_processes(gradients, reduce_sum), strict=True):
        parameter.grad = total


def sum_counts(numbers: Mapping[str, float], reduce_sum: ReduceSum) -> dict[str, float]:
    """Sums of counts over processes. Every process must pass the same names."""
    if reduce_sum is single_process or not numbers:
        return dict(numbers)
    names = sorted(numbers)
    totals = reduce_sum(
        torch.tensor([numbers[name] for name in names], dtype=torch.float64)
    ).tolist()
    return dict(zip(names, totals, strict=True))
