"""Questions as ids: places keep their millimetres, answers are told from prompts, packs from each
other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sim.questions import all_texts
from vla.data.questions import LOCATION_RANGE, Question, QuestionEncoder
from vla.data.tokenizer import train_tokenizer
from vla.models.vocabulary import NUM_ACTION_IDS, NUM_LOCATIONS, location_ids

VOCABULARY = 768


@pytest.fixture(scope="module")
def encoder():
    reserved = NUM_LOCATIONS + NUM_ACTION_IDS
    return QuestionEncoder(
        train_tokenizer(all_texts(), VOCABULARY, reserve_last=reserved), VOCABULARY
    )


def test_places_stand_before_the_actions():
    assert location_ids(768) == range(384, 512)
    assert VOCABULARY - location_ids(VOCABULARY).stop == NUM_ACTION_IDS


def test_location_tokens_by_hand(encoder):
    # [-0.32, 0.32] in 128 parts of 5 mm: 0 begins the 65th part, 7 mm lie in the one after it,
    # -0.32 in the first.
    first = encoder.first_location
    assert encoder.locations((0.0, 0.007, -0.32, 0.3199, 5.0, -5.0), "m") == [
        first + i for i in (64, 65, 0, 127, 127, 0)
    ]
    # Radians are divided by 5: 0.1 rad is 0.02, four parts on.
    assert encoder.locations((0.1,), "rad") == [first + 68]
    assert encoder.numbers([first + 64, first], "m") == pytest.approx([0.0025, -0.3175])
    assert encoder.numbers([first + 64], "rad") == pytest.approx([0.0125])
    assert np.isnan(encoder.numbers([first - 1, first + NUM_LOCATIONS, 5], "m")).all()


@given(value=st.floats(-LOCATION_RANGE, LOCATION_RANGE))
def test_a_place_comes_back_within_two_and_a_half_millimetres(encoder, value):
    (back,) = encoder.numbers(encoder.locations((value,), "m"), "m")
    assert abs(back - value) <= 0.0025 + 1e-9
    (angle,) = encoder.numbers(encoder.locations((5 * value,), "rad"), "rad")
    assert abs(angle - 5 * value) <= 0.0125 + 1e-9


def test_prompts_and_answers(encoder):
    tokenizer = encoder.tokenizer
    colour = Question("what colour is the cube?", "red")
    where = Question("where is the red cube?", (0.1, -0.2, 0.0), "m")
    assert encoder.prompt(colour)[0] == tokenizer.bos_token_id
    assert tokenizer.decode(encoder.prompt(colour)[1:]) == "what colour is the cube?"
    assert encoder.answer(colour)[-1] == encoder.answer(where)[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(encoder.answer(colour)[:-1]) == " red"
    assert encoder.numbers(encoder.answer(where)[:-1], "m") == pytest.approx(
        [0.1, -0.2, 0.0], abs=0.0026
    )


def test_a_pack_by_hand(encoder):
    short, long = (
        Question("is there a disc?", "no"),
        Question("how far is the blue brick turned?", (0.2,), "rad"),
    )
    packed = encoder.pack([[short, long], [short]])
    p, a = len(encoder.prompt(short)), len(encoder.answer(short))
    q, b = len(encoder.prompt(long)), len(encoder.answer(long))
    assert packed.tokens.shape == (2, p + a + q + b)
    assert packed.tokens[0].tolist() == [
        *encoder.prompt(short),
        *encoder.answer(short),
        *encoder.prompt(long),
        *encoder.answer(long),
    ]
    assert packed.answers[0].int().tolist() == [0] * p + [1] * a + [0] * q + [1] * b
    assert packed.segments[0].tolist() == [0] * (p + a) + [1] * (q + b)
    assert packed.segments[1].tolist() == [0] * (p + a) + [-1] * (q + b)
    assert packed.token_mask[1].int().tolist() == [1] * (p + a) + [0] * (q + b)
    assert (packed.tokens[1, p + a :] == encoder.tokenizer.pad_token_id).all()
    assert not (packed.answers & ~packed.token_mask).any()


def test_rows_are_padded_on_the_right(encoder):
    tokens, mask = encoder.pad([[5, 6, 7], [8]])
    pad = encoder.tokenizer.pad_token_id
    assert tokens.tolist() == [[5, 6, 7], [8, pad, pad]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert (tokens.dtype, mask.dtype) == (torch.int64, torch.bool)


def test_no_words_are_written_in_reserved_ids(encoder):
    used = {token for text in all_texts() for token in encoder.words(text)}
    assert max(used) < encoder.first_location
    assert encoder.tokenizer.unk_token_id not in used
    for text in all_texts()[::7]:
        assert encoder.tokenizer.decode(encoder.words(text)) == text
