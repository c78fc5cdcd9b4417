import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.data.prefix_tree import build_prefix_trees, pack_completions, pack_texts
from vla.generation.hf_decoder import enable_tree_attention, hidden_states, output_head
from vla.generation.logprobs import token_logprobs
from vla.text.tiny_language_model import tiny_language_model

PROMPTS = torch.tensor([[11, 12, 13], [21, 0, 0], [11, 12, 13]])
PROMPT_MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 1]]).bool()
COMPLETIONS = torch.tensor([[14, 15, 2], [22, 2, 0], [16, 2, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0]]).bool()


def test_a_tree_by_hand():
    """Prompts [11 12 13] and [21]; completions [14 15 2], [22 2], [16 2], and [14 2], whose first
    token is said twice. The last token of a completion is never fed.
    """
    prompts, prompt_mask = PROMPTS[[0, 1, 2, 0]], PROMPT_MASK[[0, 1, 2, 0]]
    completions = torch.cat([COMPLETIONS, torch.tensor([[14, 2, 0]])])
    mask = torch.cat([MASK, torch.tensor([[True, True, False]])])
    rows = pack_completions(prompts, prompt_mask, completions, mask, share=True, max_row_tokens=100)
    assert rows.tokens.tolist() == [[11, 12, 13, 14, 15, 16], [21, 22, 0, 0, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 0, 0, 0, 0]]
    # who sees whom: 15 sees 14 and the prompt; 16 sees the prompt; padding itself
    assert rows.attention[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert rows.attention[1, 0].int().sum(1).tolist() == [1, 2, 1, 1, 1, 1]
    # draws of completion 0 are predicted at places 2, 3, 4 of row 0; of 1 at 0, 1 of row 1; of 2 at
    # 2, 5; of 3 at 2, 3
    assert rows.slots.tolist() == [2, 3, 4, 6, 7, 2, 5, 2, 3]


def test_a_row_that_would_be_too_long_is_split():
    rows = pack_completions(PROMPTS, PROMPT_MASK, COMPLETIONS, MASK, share=True, max_row_tokens=5)
    assert rows.tokens.tolist() == [[11, 12, 13, 14, 15], [11, 12, 13, 16, 0], [21, 22, 0, 0, 0]]
    assert rows.slots.tolist() == [2, 3, 4, 10, 11, 7, 8]


def test_without_sharing_every_completion_has_a_row():
    rows = pack_completions(PROMPTS, PROMPT_MASK, COMPLETIONS, MASK, share=False, max_row_tokens=5)
    assert rows.tokens.tolist() == [[11, 12, 13, 14, 15], [21, 22, 0, 0, 0], [11, 12, 13, 16, 0]]
    assert rows.attention.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]


SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(SEQUENCES, st.sampled_from([0.0, 0.25, 1.0]))
def test_every_place_sees_its_own_beginning_and_nothing_else(sequences, min_shared):
    trees, found = build_prefix_trees(sequences, 10, min_shared)
    assert all(len(tree.tokens) <= 10 for tree in trees)
    for sequence, (number, places) in zip(sequences, found, strict=True):
        tree = trees[number]
        allowed = tree.attention(12)
        assert [tree.tokens[place] for place in places] == sequence
        assert [tree.depths[place] for place in places] == list(range(len(sequence)))
        for depth, place in enumerate(places):
            assert allowed[place].nonzero()[0].tolist() == sorted(places[: depth + 1])
    for tree in trees:  # no beginning has two places, and no place is there for nothing
        beginnings = {
            tuple(s[: i + 1])
            for s, (n, _) in zip(sequences, found)
            if trees[n] is tree
            for i in range(len(s))
        }
        assert len(tree.tokens) == len(beginnings)


def test_sequences_join_the_row_that_holds_most_of_them():
    # [1 2 3 4] and [5 6 7] share nothing; [1 2 9] has two of three in the first row; [5 8] half in
    # the second
    trees, found = build_prefix_trees(
        [[5, 8], [1, 2, 3, 4], [1, 2, 9], [5, 6, 7]], 100, min_shared=0.25
    )
    assert [tree.tokens for tree in trees] == [[1, 2, 3, 4, 9], [5, 6, 7, 8]]
    assert [number for number, _ in found] == [1, 0, 0, 1]
    # with no need to share, all of them stand in one row
    assert (
        len(
            build_prefix_trees([[5, 8], [1, 2, 3, 4], [1, 2, 9], [5, 6, 7]], 100, min_shared=0.0)[0]
        )
        == 1
    )


def test_rows_are_of_one_size_where_that_saves_padding():
    # 6 x 4 tokens, at most 20 a row: 20 and 4 would be padded to 40; 12 and 12 need none
    trees, _ = build_prefix_trees([[i, i, i, i] for i in range(6)], 20, min_shared=0.0)
    assert [len(tree.tokens) for tree in trees] == [12, 12]


def test_a_text_longer_than_a_row_is_named():
    with pytest.raises(ValueError, match="a sequence takes 11 tokens, row_tokens is 10"):
        pack_texts([([1] * 3, [True] * 3), ([1] * 11, [True] * 11)], 10, True, torch.device("cpu"))


def test_packed_texts_are_as_likely_as_alone_gradients_included():
    """No sequence sees its neighbours: log-probabilities and gradients are those of one row
    each."""
    torch.manual_seed(0)
    model = tiny_language_model(["x"], weight_scale=0.3)[0]
    texts = [
        (torch.randint(3, 320, (n,)).tolist(), [i % 3 != 0 for i in range(n)])
        for n in (9, 4, 12, 7, 1)
    ]
    texts.append(([*texts[2][0][:6], 5, 6], texts[2][1][:8]))  # begins like another
    gradients, losses = [], []
    assert enable_tree_attention(model)
    for row_tokens, share, branches in (
        (16, True, False),
        (100, True, False),
        (100, False, False),
        (100, True, True),
    ):
        model.zero_grad()
        packed = pack_texts(texts, row_tokens, share, torch.device("cpu"), branches)
        rows = packed.rows
        hidden = hidden_states(model, rows.tokens, rows.positions, rows.attention).flatten(0, 1)
        logprobs, _ = token_logprobs(output_head(model), hidden, rows.slots, packed.targets)
        losses.append(torch.zeros(len(texts)).index_add(0, packed.sequence, logprobs))
        losses[-1].sum().backward()
        gradients.append(model.model.embed_tokens.weight.grad.clone())
    alone = torch.zeros(len(texts))
    model.zero_grad()
    for i, (ids, learned) in enumerate(texts):
        every = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        alone[i] = sum(every[j - 1, ids[j]] for j in range(1, len(ids)) if learned[j])
    alone.sum().backward()
    for loss, gradient in zip(losses, gradients, strict=True):
        torch.testing.assert_close(loss, alone.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            gradient, model.model.embed_tokens.weight.grad, rtol=1e-3, atol=1e-3
        )
