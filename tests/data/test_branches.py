import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla.data.tree_attention import build_tree_attention
from vla.generation.hf_decoder import enable_tree_attention
from vla.text.tiny_language_model import tiny_language_model


def ways(parents):
    """For every place the places on its way back to the first token, itself included."""
    found = []
    for node, parent in enumerate(parents):
        found.append({node} | (found[parent] if parent >= 0 else set()))
    return found


def seen_by(branches, node):
    """The places a query attends to, read off the tensors."""
    stretch, column = divmod(int(branches.order[node]), branches.queries.shape[1])
    assert int(branches.queries[stretch, column]) == node
    return branches.keys[stretch][branches.visible[stretch, 0, column]].tolist()


def test_a_fork_by_hand():
    """0 - 1 - 2 - 3 and 1 - 4: a stretch of four, and one of one whose way is 0, 1, 4."""
    branches = build_tree_attention([-1, 0, 1, 2, 1], [0, 1, 2, 3, 2])
    assert branches.queries.tolist() == [[0, 1, 2, 3], [4, 0, 0, 0]]
    assert branches.keys.tolist() == [[0, 1, 2, 3], [0, 1, 4, 0]]
    assert [seen_by(branches, node) for node in range(5)] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 4],
    ]


@given(st.lists(st.integers(min_value=-1, max_value=40), min_size=1, max_size=90), st.booleans())
def test_every_place_sees_its_way_once_and_nothing_else(drawn, long_runs):
    parents = [
        min(parent, i - 1) if not long_runs or i % 7 == 0 else i - 1
        for i, parent in enumerate(drawn)
    ]
    depths = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    branches = build_tree_attention(parents, depths)
    for node, way in enumerate(ways(parents)):
        seen = seen_by(branches, node)
        assert len(seen) == len(way)
        assert set(seen) == way
    assert bool(branches.visible.any(-1).all())  # a query that saw nothing would be NaN
    assert len(np.unique(branches.order)) == len(parents)


def test_who_allow_branches():
    model = tiny_language_model(["x"])[0]
    assert enable_tree_attention(model)
    model.model.gradient_checkpointing = True
    assert not enable_tree_attention(model)
    model.model.gradient_checkpointing = False
    model.config._attn_implementation = "eager"
    assert not enable_tree_attention(model)


def test_the_usual_attention_is_back_after_an_error():
    from vla.generation.hf_decoder import hidden_states

    model = tiny_language_model(["x"])[0]
    tree, two = build_tree_attention([-1, 0], [0, 1]), torch.tensor([[1, 2]])
    with pytest.raises(TypeError):
        hidden_states(model, two, "no positions", tree)
    assert model.config._attn_implementation == "sdpa"
