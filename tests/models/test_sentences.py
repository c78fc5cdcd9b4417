"""Images and state anywhere in the text: where they stand matters, and policies score what they
drew there too."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tests.models.tiny import IMAGE_SIZE, tiny_observation, tiny_vlm
from tests.policies.kinds import task_of
from tests.policies.test_kinds import restless
from vla.data.observations import Observer
from vla.models.token_layout import FLAT, PrefixLayout


class Words:
    """A tokenizer of whole words, numbered from 10 on as they come."""

    bos_token_id, pad_token_id = 1, 0

    def __init__(self):
        self.known: dict[str, int] = {}

    def get_vocab(self) -> dict[str, int]:
        return {"<begin>": 2}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [self.known.setdefault(word, 10 + len(self.known)) for word in text.split()]


@dataclass
class Shown:
    instruction: list[str]
    images: dict[str, np.ndarray]
    proprio: np.ndarray


def shown(*instructions: str) -> Shown:
    rows = len(instructions)
    images = {
        name: np.zeros((rows, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8) for name in ("front", "wrist")
    }
    return Shown(list(instructions), images, np.zeros((rows, 3), np.float32))


def test_an_observer_writes_slots_into_the_text():
    slots = tiny_vlm().slots
    assert slots == {"front": range(4), "wrist": range(4, 8), "state": range(8, 9)}
    observer = Observer(Words(), 5, sentence="see <wrist> hand <state> {instruction}", slots=slots)
    seen = observer(shown("go up", "go"))
    # Start, "see", four patches of the second camera, "hand", the state, the instruction; room for
    # 5 words and 5 slots.
    assert seen.tokens.tolist() == [
        [1, 10, -5, -6, -7, -8, 11, -9, 12, 13],
        [1, 10, -5, -6, -7, -8, 11, -9, 12, 0],
    ]
    assert seen.token_mask.sum(1).tolist() == [10, 9]
    with pytest.raises(ValueError, match=r"names <side>; there are <front>, <wrist>, <state>"):
        Observer(Words(), 9, sentence="<side> {instruction}", slots=slots)(shown("go"))
    # A special token of the tokenizer is a word: 10, then the state and "go".
    special = Observer(Words(), 3, sentence="<begin> <state> {instruction}", slots=slots)
    assert special(shown("go")).tokens.tolist() == [[1, 10, -9, 11]]


def with_slots(observation, before: int):
    """The prefix's nine tokens as slots behind the first `before` words."""
    rows = len(observation.tokens)
    slots = -1 - torch.arange(9).expand(rows, -1)
    tokens, mask = observation.tokens, observation.token_mask
    there = torch.ones(rows, 9, dtype=torch.bool)
    return replace(
        observation,
        tokens=torch.cat([tokens[:, :before], slots, tokens[:, before:]], dim=1),
        token_mask=torch.cat([mask[:, :before], there, mask[:, before:]], dim=1),
    )


def test_pictures_first_is_the_model_as_it_was():
    """With all slots before the words the sequence is the usual one, but that each picture sees
    itself alone: words that attend to a single picture and its state read the same.
    """
    torch.manual_seed(0)
    model = tiny_vlm(scale=1.0)
    model.cameras, model.camera_embedding = (
        ("front",),
        torch.nn.Parameter(model.camera_embedding[:1].detach()),
    )
    observation = tiny_observation([3, 2], padding=1)
    prefix = model.prefix(observation)[
        :, :4
    ]  # the picture alone: its patches see each other in both layouts
    layout = PrefixLayout(FLAT, 1, 3)  # four tokens
    layout.picture.zero_()
    model.layout = layout
    slots = -1 - torch.arange(4).expand(2, -1)
    tokens = torch.cat([slots, observation.tokens], dim=1)
    mask = torch.cat([torch.ones(2, 4, dtype=torch.bool), observation.token_mask], dim=1)
    queries = torch.randn(2, model.width)
    text, states = model(prefix, observation.tokens, observation.token_mask, queries)
    mixed, mixed_states = model(prefix, tokens, mask, queries)
    there = observation.token_mask
    torch.testing.assert_close(mixed[:, 4:][there], text[there], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed_states, states, rtol=1e-4, atol=1e-5)


def test_words_before_a_picture_do_not_see_it():
    model = tiny_vlm()
    observation = with_slots(tiny_observation([4, 4]), before=2)
    dark = replace(
        observation, images={name: image * 0 for name, image in observation.images.items()}
    )
    one, _ = model(model.prefix(observation), observation.tokens, observation.token_mask)
    other, _ = model(model.prefix(dark), observation.tokens, observation.token_mask)
    torch.testing.assert_close(one[:, :2], other[:, :2], rtol=0, atol=1e-6)
    assert ((one[:, 11:] - other[:, 11:]).abs().amax((1, 2)) > 1e-3).all()


@pytest.mark.parametrize("kind", ["token_parallel", "regression", "flow_one_step", "fast"])
def test_policies_act_on_sentences(kind):
    policy = restless(task_of(kind)[0].policy)
    observation = with_slots(tiny_observation([4, 3], padding=1), before=1)
    decision = policy.act(observation)
    gap = (
        (policy.score(observation, decision.trace).logprobs - decision.logprobs)[decision.mask]
        .abs()
        .max()
    )
    assert gap <= 1e-4
    moved = with_slots(tiny_observation([4, 3], padding=1), before=3)
    other = policy.score(moved, decision.trace).logprobs - decision.logprobs
    assert (other.abs().amax(1) > 1e-4).all()  # it matters where in the text they stand
