"""Several pieces of one piece of work at once, each in a thread of its own.

Torch spreads every single operation over the processor's cores. The operations of a small model are
too short for that: two threads are hardly faster than one. Two batches at once, each with half of
the threads, are. The weights are shared; what a thread adds is the gradient of its own pieces, so
there are few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn import Parameter

MAX_THREADS = 2
"""Pieces at once that are worth the memory of a gradient each; more than two have not been
measured."""


class Threads:
    """`count` pieces of work at once. Grad mode and precision are those of the caller in every
    thread."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"count ({count}) must be at least 1: it is the number of threads")
        self.count = count

    def map[Item, Result](
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> list[Result]:
        """What `function` gives for every item, in their order. One thread: one after another, in
        the caller's."""
        if self.count == 1 or len(items) < 2:
            return [function(item) for item in items]
        gradients, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        precision, before = torch.get_autocast_dtype("cpu"), torch.get_num_threads()
        each = max(1, before // self.count)

        def work(item: Item) -> Result:
            with (
                torch.set_grad_enabled(gradients),
                torch.autocast("cpu", precision, enabled=autocast),
            ):
                return function(item)

        try:
            with ThreadPoolExecutor(
                self.count, initializer=torch.set_num_threads, initargs=(each,)
            ) as pool:
                return list(pool.map(work, items))
        finally:
            torch.set_num_threads(before)


SINGLE_THREAD = Threads(1)
"""One after another."""


def usable_threads(device: torch.device) -> Threads:
    """As many as help on a processor with the threads that torch may use there; one on a GPU."""
    return (
        Threads(min(MAX_THREADS, torch.get_num_threads()))
        if device.type == "cpu"
        else SINGLE_THREAD
    )


def add_gradients[Piece, Result](
    parameters: Sequence[Parameter],
    pieces: Sequence[Piece],
    loss_of: Callable[[Piece], tuple[Tensor | None, Result]],
    threads: Threads = SINGLE_THREAD,
) -> list[Result]:
    """Add to `.grad` the gradients of the losses of all pieces; what `loss_of` gave beside them, in
    their order.

    Every thread has fixed pieces and sums their gradients by itself, and the sums are added in a
    fixed order: the result is the same to the bit, whichever thread is faster. None is a piece
    without a gradient.
    """

    def share(number: int) -> tuple[list[Result], list[Tensor | None] | None]:
        results, total = [], None
        for piece in pieces[number :: threads.count]:
            loss, result = loss_of(piece)
            results.append(result)
            if loss is None:
                continue
            if number == 0:  # the others leave .grad alone
                loss.backward()
            else:
                total = add_gradient_lists(
                    total, torch.autograd.grad(loss, parameters, allow_unused=True)
                )
        return results, total

    shares = threads.map(share, range(min(threads.count, len(pieces))))
    for _, total in shares[1:]:
        for parameter, more in zip(parameters, total or (), strict=bool(total)):
            if more is not None:
                parameter.grad = more if parameter.grad is None else parameter.grad.add_(more)
    return [shares[i % len(shares)][0][i // len(shares)] for i in range(len(pieces))]


def add_gradient_lists(
    total: list[Tensor | None] | None, more: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The sum of two gradients, in the place of the first."""
    if total is None:
        return list(more)
    pairs = zip(total, more, strict=True)
    return [b if a is None else a if b is None else a.add_(b) for a, b in pairs]


def split_evenly(rows: Tensor, most: int, threads: Threads) -> list[Tensor]:
    """Rows cut into pieces of at most `most` and about the same size, as many for each thread."""
    number = -(-len(rows) // most)
    number = min(-(-number // threads.count) * threads.count, len(rows))
    return list(rows.tensor_split(number)) if number else []
