"""Threads that score several micro-batches at once and sum their gradients.

Torch spreads each operation over the cores. The operations of a small model are too short for that:
two threads are hardly faster than one. Two micro-batches at once, each with half of the threads,
are faster. Threads share the weights, but each needs memory for its own gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn import Parameter

MAX_THREADS = 2
"""Most micro-batches at once: each needs memory for a gradient. More than two were not measured."""


class Threads:
    """`count` threads with the caller's grad mode and autocast precision.

    Raises:
        ValueError: for a `count` below 1.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"count ({count}) must be at least 1: it is the number of threads")
        self.count = count

    def map[Item, Result](
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> list[Result]:
        """Apply `function` to every item, in order. A single thread runs in the caller's thread."""
        if self.count == 1 or len(items) < 2:
            return [function(item) for item in items]
        # Grad mode and autocast are thread-local in torch: read them here, set them in each thread.
        gradients = torch.is_grad_enabled()
        autocast = torch.is_autocast_enabled("cpu")
        precision = torch.get_autocast_dtype("cpu")
        num_torch_threads = torch.get_num_threads()
        per_thread = max(1, num_torch_threads // self.count)

        def work(item: Item) -> Result:
            with (
                torch.set_grad_enabled(gradients),
                torch.autocast("cpu", precision, enabled=autocast),
            ):
                return function(item)

        try:
            with ThreadPoolExecutor(
                self.count, initializer=torch.set_num_threads, initargs=(per_thread,)
            ) as pool:
                return list(pool.map(work, items))
        finally:
            torch.set_num_threads(num_torch_threads)


SINGLE_THREAD = Threads(1)
"""A single thread."""


def usable_threads(device: torch.device) -> Threads:
    """The threads that speed up training: up to `MAX_THREADS` on a CPU, one on a GPU."""
    return (
        Threads(min(MAX_THREADS, torch.get_num_threads()))
        if device.type == "cpu"
        else SINGLE_THREAD
    )


def add_gradients[Piece, Result](
    parameters: Sequence[Parameter],
    pieces: Sequence[Piece],
    compute_loss: Callable[[Piece], tuple[Tensor | None, Result]],
    threads: Threads = SINGLE_THREAD,
) -> list[Result]:
    """Add the gradients of all pieces' losses to `.grad`; return the results in order of the
    pieces.

    `compute_loss(piece)` returns a loss and a result; the loss is None for a piece without a
    gradient. Each thread sums the gradients of fixed pieces, and the sums are added in a fixed
    order. So the result is bit-identical, whichever thread is faster.
    """

    def run_share(number: int) -> tuple[list[Result], list[Tensor | None] | None]:
        results: list[Result] = []
        total: list[Tensor | None] | None = None
        for piece in pieces[number :: threads.count]:
            loss, result = compute_loss(piece)
            results.append(result)
            if loss is None:
                continue
            if number == 0:  # only one thread may write to .grad
                loss.backward()
            else:
                total = add_gradient_lists(
                    total, torch.autograd.grad(loss, parameters, allow_unused=True)
                )
        return results, total

    shares = threads.map(run_share, range(min(threads.count, len(pieces))))
    for _, total in shares[1:]:
        for parameter, more in zip(parameters, total or (), strict=bool(total)):
            if more is not None:
                parameter.grad = more if parameter.grad is None else parameter.grad.add_(more)
    return [shares[i % len(shares)][0][i // len(shares)] for i in range(len(pieces))]


def add_gradient_lists(
    total: list[Tensor | None] | None, more: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The sum of two lists of gradients, in place of the first."""
    if total is None:
        return list(more)
    pairs = zip(total, more, strict=True)
    return [b if a is None else a if b is None else a.add_(b) for a, b in pairs]


def split_evenly(rows: Tensor, max_rows: int, threads: Threads) -> list[Tensor]:
    """Split rows into pieces of nearly equal size, at most `max_rows`, equally many per thread."""
    number = -(-len(rows) // max_rows)
    number = min(-(-number // threads.count) * threads.count, len(rows))
    return list(rows.tensor_split(number)) if number else []
