import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.data.packing import attention_mask, pack_completions

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
