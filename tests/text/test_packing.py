import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.data.packing import attention_mask, first_fit, pack_completions, pack_texts
from vla.decoding.causal import hidden_states, output_head
from vla.decoding.logprobs import token_logprobs
from vla.text.tiny import tiny_language_model

PROMPTS = torch.tensor([[11, 12, 13], [21, 0, 0], [11, 12, 13]])
PROMPT_MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 1]]).bool()
COMPLETIONS = torch.tensor([[14, 15, 2], [22, 2, 0], [16, 2, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0]]).bool()


def test_a_group_in_one_row_by_hand():
    rows = pack_completions(PROMPTS, PROMPT_MASK, COMPLETIONS, MASK, [0, 1, 0], max_row_tokens=100)
    # the last token of a completion is never fed: [14, 15], [22], [16]
    assert rows.tokens.tolist() == [[11, 12, 13, 14, 15, 16], [21, 22, 0, 0, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 0, 0, 0, 0]]
    assert rows.segments.tolist() == [[0, 0, 0, 1, 1, 2], [0, 1, -1, -1, -1, -1]]
    # draws of completion 0 are predicted at slots 2, 3, 4 of row 0; of completion 1 at 0, 1 of row 1; of completion 2
    # at 2, 5 of row 0
    assert rows.slots.tolist() == [2, 3, 4, 6, 7, 2, 5]


def test_a_row_that_would_be_too_long_is_split():
    rows = pack_completions(PROMPTS, PROMPT_MASK, COMPLETIONS, MASK, [0, 1, 0], max_row_tokens=5)
    assert rows.tokens.tolist() == [[11, 12, 13, 14, 15], [21, 22, 0, 0, 0], [11, 12, 13, 16, 0]]
    assert rows.slots.tolist() == [2, 3, 4, 5, 6, 12, 13]


def test_without_sharing_every_completion_has_a_row():
    rows = pack_completions(PROMPTS, PROMPT_MASK, COMPLETIONS, MASK, None, max_row_tokens=5)
    assert rows.tokens.tolist() == [[11, 12, 13, 14, 15], [21, 22, 0, 0, 0], [11, 12, 13, 16, 0]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1, 3), min_size=1, max_size=12))
def test_who_attends_to_whom(segments):
    allowed = attention_mask(torch.tensor([segments]))[0, 0]
    for q in range(len(segments)):
        for k in range(len(segments)):
            same, prefix = segments[q] == segments[k], segments[k] == 0 and segments[q] >= 0
            assert bool(allowed[q, k]) == (k <= q and (same or prefix))
    assert allowed.any(-1).all()  # a softmax over nothing would be NaN


def test_sequences_are_packed_tightly():
    assert first_fit([5, 9, 3, 1, 6], 10) == [[1, 3], [4, 2], [0]]
    with pytest.raises(ValueError, match="a sequence takes 11 tokens, row_tokens is 10"):
        first_fit([3, 11], 10)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=30))
def test_every_sequence_is_packed_once_and_no_row_overflows(lengths):
    rows = first_fit(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)


def test_packed_texts_are_as_likely_as_alone_gradients_included():
    """No sequence sees its neighbours: log-probabilities and gradients are those of one row each."""
    torch.manual_seed(0)
    model = tiny_language_model(["x"], weight_scale=0.3)[0]
    texts = [(torch.randint(3, 320, (n,)).tolist(), [i % 3 != 0 for i in range(n)]) for n in (9, 4, 12, 7, 1)]
    gradients, losses = [], []
    for row_tokens in (16, 100):
        model.zero_grad()
        packed = pack_texts(texts, row_tokens, torch.device("cpu"))
        hidden = hidden_states(model, packed.rows.tokens, packed.rows.positions, attention_mask(packed.rows.segments))
        logprobs, _ = token_logprobs(output_head(model), hidden.flatten(0, 1)[packed.rows.slots], packed.targets)
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
        torch.testing.assert_close(gradient, model.model.embed_tokens.weight.grad, rtol=1e-3, atol=1e-3)
