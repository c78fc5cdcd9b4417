import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.data.tokenizer import SPECIAL_TOKENS, reserved_ids, train_tokenizer

SENTENCES = [
    f"{verb} the {colour} {shape} {place}"
    for verb in ("pick up", "put", "push")
    for colour in ("red", "blue", "green", "yellow")
    for shape in ("cube", "ball", "cylinder")
    for place in ("on the table", "in the bowl", "to the left of the plate")
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES, vocab_size=512, special_tokens=("<image>",), reserve_last=100)


def test_layout_of_the_ids(tokenizer):
    assert len(tokenizer) == 512
    assert [tokenizer.convert_tokens_to_ids(t) for t in (*SPECIAL_TOKENS, "<image>")] == [
        0,
        1,
        2,
        3,
    ]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert reserved_ids(tokenizer) == range(412, 512)
    assert tokenizer.convert_ids_to_tokens(412) == "<|reserved_0|>"
    assert tokenizer("<image>pick").input_ids[0] == 3


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_every_text_is_read_back_and_never_uses_reserved_ids(tokenizer, text):
    ids = tokenizer(text, split_special_tokens=True).input_ids
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(reserved_ids(tokenizer))


def test_words_of_the_corpus_become_one_token_and_digits_stay_apart(tokenizer):
    assert tokenizer.tokenize("pick up the red cube") == ["pick", "Ġup", "Ġthe", "Ġred", "Ġcube"]
    assert tokenizer.tokenize("123") == ["1", "2", "3"]


def test_training_is_deterministic(tokenizer):
    again = train_tokenizer(
        SENTENCES, vocab_size=512, special_tokens=("<image>",), reserve_last=100
    )
    assert again.get_vocab() == tokenizer.get_vocab()


def test_chat_template_is_chatml(tokenizer):
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size \(300\) is too small.*at least 359"):
        train_tokenizer(SENTENCES, vocab_size=300, reserve_last=100)


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    sentence = "put the red ball on the table 42"
    assert loaded(sentence).input_ids == tokenizer(sentence).input_ids
    assert loaded.chat_template == tokenizer.chat_template
