"""Detection targets by hand: which cell an object falls in, and what each cell is asked."""

import numpy as np
import pytest
import torch

from vla.sft.detection import (
    CellTargets,
    DetectionHead,
    build_cell_targets,
    detection_loss,
    grounded_phrase_loss,
)

NORTH = (0.0, 1.0)


def test_objects_fall_into_cells():
    # Two cameras of 2 x 2 cells: cells 0 to 3 are the front's (row by row), 4 to 7 the wrist's.
    seen = [
        {
            "front": [(0.6, 0.1, 5, (0.1, 0.2, 0.3), (0.6, 0.8))],
            "wrist": [(1.0, 1.0, 2, (0.0, 0.0, -0.1), (0.0, 0.0))],
        },
        {
            "front": [],
            "wrist": [(0.2, 0.7, 1, (0.4, 0.0, 0.0), NORTH), (0.0, 0.0, 3, (0.5, 0.0, 0.0), NORTH)],
        },
    ]
    kinds, places, headings, occupied = build_cell_targets(seen, ("front", "wrist"), 2)
    assert occupied.astype(int).tolist() == [[0, 1, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 0, 1, 0]]
    assert kinds[0, [1, 7]].tolist() == [5, 2]
    assert kinds[1, [4, 6]].tolist() == [3, 1]
    np.testing.assert_allclose(places[0, 1], [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(
        headings[:, [1, 6]], [[[0.6, 0.8], [0, 0]], [[0, 0], [0, 1]]], rtol=1e-6
    )


def test_a_token_names_the_words_it_resembles():
    head = DetectionHead(4, [[0, 1], [2]])
    embeddings = torch.eye(4)
    # "red cube" is e0 + e1, "disc" is e2; the first token is e0 + e1 itself, the second lies
    # between e1 and e2.
    tokens = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]])
    logits, places, headings = head(tokens, embeddings)
    assert (logits.shape, places.shape, headings.shape) == ((1, 2, 3), (1, 2, 3), (1, 2, 2))
    # scale 20 times the cosine; the last logit is "nothing", 0 at the start
    torch.testing.assert_close(
        logits[0], torch.tensor([[20.0, 0.0, 0.0], [10.0, 20 / 2**0.5, 0.0]])
    )


def test_the_loss_by_hand():
    head = DetectionHead(2, [[0], [1]])
    torch.nn.init.zeros_(head.place[1].weight)
    head.place[1].bias.data = torch.tensor(
        [1.0, 0.0, 0.0, 0.6, 0.8]
    )  # every cell says 10 cm along x, and 53 degrees
    tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    targets = CellTargets(
        kinds=torch.tensor([[0, 1]]),
        places=torch.tensor([[[0.1, 0.2, 0.0], [9.0, 9.0, 9.0]]]),
        headings=torch.tensor([[[1.0, 0.0], [9.0, 9.0]]]),
        occupied=torch.tensor([[True, False]]),
    )
    loss, metrics = detection_loss(head, tokens, torch.eye(2), targets)
    # Both cells have logits 20, 0, 0. The first should say kind 0: nearly no loss. The second
    # should say "nothing": log(e^20 + 2) - 0 = 20. Places count in the occupied cell only: |1 - 1|,
    # |0 - 2|, 0 in 10 cm, a mean of 2/3; so do headings: |.6 - 1|, |.8 - 0|, a mean of .6.
    assert loss.item() == pytest.approx(20 + 2 / 3 + 0.6, abs=1e-4)
    assert metrics["heading_error"] == pytest.approx(0.6)
    assert metrics["detection_accuracy"] == 1.0
    assert metrics["detection_error"] == pytest.approx(0.1 * 2 / 3)


NONE = torch.zeros(1, 2, dtype=torch.bool)


def test_no_object_in_any_picture_is_no_error():
    head = DetectionHead(2, [[0], [1]])
    empty = CellTargets(
        torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, 3), torch.zeros(1, 2, 2), NONE
    )
    loss, _ = detection_loss(head, torch.randn(1, 2, 2), torch.eye(2), empty)
    assert torch.isfinite(loss)


def test_words_say_where_and_how_turned_by_hand():
    head = torch.nn.Identity()  # states are the answers
    states = torch.tensor([[[9.0] * 5, [1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 2.0, 0.0, 0.0, 0.5]]])
    places = torch.tensor(
        [[[0.1, 0.1, 0.0], [0.0, 0.2, 0.0]]]
    )  # 1, 1, 0 and 0, 2, 0 in units of 10 cm
    headings = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    loss = grounded_phrase_loss(head, states, torch.tensor([[1, 2]]), places, headings)
    # Places: one of six numbers is off by 1. Headings: one of four is off by a half.
    assert loss.item() == pytest.approx(1 / 6 + 0.5 / 4)
