"""Byte-level BPE tokenizers for tiny models that must work without a download.

A byte-level alphabet can encode and decode every string. Digits are split one by one for
arithmetic, as in SmolLM2 and Llama 3. Ids at the end of the vocabulary can be reserved for
locations and action tokens. RT-2 (Brohan et al. 2023) overwrites the least used ids instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD = "<|pad|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END)
"""Ids 0, 1 and 2 of every tokenizer trained here: padding, start of a chat turn (bos), end of a
turn (eos)."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML: `<|im_start|>role`, a line break, the content, `<|im_end|>`, a line break."""

_NUM_BYTES = 256


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = (), reserve_last: int = 0
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of exactly `vocab_size` ids, deterministic for equal texts.

    Order of the ids: `SPECIAL_TOKENS`, `special_tokens`, bytes and merges, then `reserve_last`
    reserved ids (`reserved_ids`). Unused tokens fill up where the texts offer too few merges.

    Raises ValueError where `vocab_size` cannot hold special tokens, 256 bytes and reserved ids.
    """
    specials = list(dict.fromkeys((*SPECIAL_TOKENS, *special_tokens)))
    smallest = len(specials) + _NUM_BYTES + reserve_last
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size ({vocab_size}) is too small: {len(specials)} special tokens, "
            f"{_NUM_BYTES} bytes and"
            f" reserve_last ({reserve_last}) need at least {smallest}"
        )
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - reserve_last,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.add_special_tokens(
        [f"<|unused_{i}|>" for i in range(vocab_size - reserve_last - core.get_vocab_size())]
    )
    core.add_special_tokens([_reserved(i) for i in range(reserve_last)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=TURN_START,
        eos_token=TURN_END,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def reserved_ids(tokenizer: PreTrainedTokenizerFast) -> range:
    """The ids that `reserve_last` set aside: the last of the vocabulary, in order; empty without
    any."""
    vocabulary = tokenizer.get_vocab()
    count = 0
    while _reserved(count) in vocabulary:
        count += 1
    return range(len(vocabulary) - count, len(vocabulary))


def _reserved(index: int) -> str:
    return f"<|reserved_{index}|>"
