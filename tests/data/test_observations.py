"""What an environment shows becomes what a model takes, rows of all calls alike."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sim.questions import all_texts
from vla.config import load
from vla.data.observations import Observer
from vla.data.tokenizer import train_tokenizer
from vla.types import concatenate_rows


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(all_texts(), 768, reserve_last=384)


def shown(*instructions: str):
    images = {"front": np.arange(len(instructions) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3)}
    return SimpleNamespace(
        images=images, proprio=np.ones((len(instructions), 7)), instruction=list(instructions)
    )


def test_rows_of_different_calls_can_be_joined(tokenizer):
    observer = Observer(tokenizer, 16)
    first = observer(shown("put the red cube on the blue disc", "put it there"))
    second = observer(shown("put it there"))
    joined = concatenate_rows([first, second])
    assert joined.tokens.shape == (3, 16)
    assert torch.equal(joined.tokens[1], joined.tokens[2])
    ids = tokenizer.encode("put it there", add_special_tokens=False)
    assert joined.tokens[2, : len(ids) + 1].tolist() == [tokenizer.bos_token_id, *ids]
    assert joined.token_mask[2].sum() == len(ids) + 1
    assert (joined.tokens[~joined.token_mask] == tokenizer.pad_token_id).all()
    assert joined.images["front"].dtype == torch.uint8
    assert joined.proprio.dtype == torch.float32
    assert joined.images["front"][1].flatten().tolist() == list(range(12, 24))


def test_an_instruction_that_is_too_long_names_the_setting(tokenizer):
    with pytest.raises(
        ValueError, match=r"takes \d+ tokens, policy.instruction_length is 3: raise it"
    ):
        Observer(tokenizer, 3)(shown("put the red cube on the blue disc"))


def test_every_instruction_of_the_simulator_fits_the_default_length(tokenizer):
    observer = Observer(tokenizer, load().policy.instruction_length)
    instructions = [text for text in all_texts() if text.startswith("put ")]
    assert len(instructions) == 6 * 6 * 3 * 2  # colours of block and pad, shapes of each
    observation = observer(shown(*instructions))
    assert len({tuple(row) for row in observation.tokens.tolist()}) == len(instructions)
    assert observation.tokens.shape[1] == observer.length
