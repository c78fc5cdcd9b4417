"""Pieces of work in several threads."""

import pytest
import torch
from torch import nn

from vla.threads import Threads, add_gradients, split_evenly


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_stand_in_order_and_the_callers_grad_mode_holds(count):
    before = torch.get_num_threads()
    with torch.no_grad():
        found = Threads(count).map(lambda item: (item, torch.is_grad_enabled()), range(5))
    assert found == [(item, False) for item in range(5)]
    assert all(
        gradients
        for _, gradients in Threads(count).map(lambda i: (i, torch.is_grad_enabled()), range(3))
    )
    assert torch.get_num_threads() == before


def test_an_error_in_a_thread_reaches_the_caller():
    def work(item):
        if item == 1:
            raise ValueError("item 1")
        return item

    with pytest.raises(ValueError, match="item 1"):
        Threads(2).map(work, range(3))


@pytest.mark.parametrize("count", [2, 3])
def test_gradients_are_those_of_one_thread_and_the_same_every_time(count):
    torch.manual_seed(0)
    model, unused = nn.Linear(7, 3), nn.Parameter(torch.ones(2))
    inputs = torch.randn(11, 7)
    parameters = [*model.parameters(), unused]

    def loss_of(rows):
        loss = model(inputs[rows]).square().sum()
        return (None if 4 in rows.tolist() else loss), len(rows)

    found = []
    for threads in (Threads(1), Threads(count), Threads(count)):
        model.zero_grad()
        sizes = add_gradients(parameters, torch.arange(11).split(2), loss_of, threads)
        assert sizes == [2, 2, 2, 2, 2, 1]
        assert unused.grad is None
        found.append([p.grad.clone() for p in model.parameters()])
    for one, many, again in zip(*found, strict=True):
        torch.testing.assert_close(many, one)
        assert torch.equal(many, again)


def test_pieces_are_even_and_enough_for_the_threads():
    rows = torch.arange(10)
    assert [len(piece) for piece in split_evenly(rows, 4, Threads(1))] == [4, 3, 3]
    assert [len(piece) for piece in split_evenly(rows, 4, Threads(2))] == [3, 3, 2, 2]
    assert [len(piece) for piece in split_evenly(rows, 64, Threads(2))] == [5, 5]
    assert [len(piece) for piece in split_evenly(rows[:1], 64, Threads(2))] == [1]
    assert split_evenly(rows[:0], 64, Threads(2)) == []
