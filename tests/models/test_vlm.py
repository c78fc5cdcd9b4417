"""Who sees whom in [prefix | text | queries], by hand and by what changes when something is
hidden."""

import dataclasses

import pytest
import torch

from tests.models.tiny import CAMERAS, VOCABULARY, tiny_observation, tiny_vlm
from vla.models.vlm import MIN_PROPRIO_STD, attention_mask, text_positions
from vla.models.vocabulary import action_ids
from vla.types import map_rows


@pytest.fixture(scope="module")
def model():
    return tiny_vlm()


def grid(*rows: str) -> torch.Tensor:
    """`1` where a row may look at a column."""
    return torch.tensor([[c == "1" for c in row.replace(" ", "")] for row in rows])


def test_the_attention_mask_by_hand():
    found = attention_mask(2, torch.tensor([[True, True, False]]), num_queries=2)
    expected = grid(
        "11 000 00",  # the prefix sees itself both ways and nothing else
        "11 000 00",
        "11 100 00",  # text sees the prefix and what was said before
        "11 110 00",
        "11 110 00",  # padding sees, so that no row is empty, and nobody sees it
        "11 110 11",  # queries see the prefix, the words and each other
        "11 110 11",
    )
    assert torch.equal(found[0], expected)


def test_the_attention_mask_of_packed_questions_by_hand():
    mask = torch.tensor([[True, True, True, True, False]])
    segments = torch.tensor([[0, 0, 1, 1, -1]])
    expected = grid(
        "1 00000",
        "1 10000",
        "1 11000",
        "1 00100",  # the second question does not see the first
        "1 00110",
        "1 00000",
    )
    assert torch.equal(attention_mask(1, mask, segments=segments)[0], expected)


def test_positions_by_hand():
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    found = text_positions(3, mask, None)
    assert found[mask].tolist() == [3, 4, 5, 3]
    assert found.min() >= 3
    packed = torch.tensor([[True, True, True, True, True, False]])
    segments = torch.tensor([[0, 0, 1, 1, 1, -1]])
    # Every question starts anew behind the prefix of three.
    assert text_positions(3, packed, segments)[packed].tolist() == [3, 4, 3, 4, 5]


def test_questions_packed_behind_one_prefix_get_the_answers_of_questions_asked_alone(model):
    observation = tiny_observation([7])
    prefix = model.prefix(observation)
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2]])
    together, _ = model(prefix, observation.tokens, observation.token_mask, segments=segments)
    for part in (slice(0, 3), slice(3, 5), slice(5, 7)):
        alone, _ = model(prefix, observation.tokens[:, part], observation.token_mask[:, part])
        torch.testing.assert_close(
            model.backbone.logits(together[:, part]),
            model.backbone.logits(alone),
            rtol=0,
            atol=1e-5,
        )
    unpacked, _ = model(prefix, observation.tokens, observation.token_mask)
    assert (
        unpacked[:, 3:] - together[:, 3:]
    ).abs().max() > 0.1  # the model does look at what it may


def test_right_padding_changes_nothing(model):
    queries = torch.randn(3, model.width)
    observation, padded = tiny_observation([5, 2]), tiny_observation([5, 2], padding=4)
    padded = dataclasses.replace(padded, images=observation.images, proprio=observation.proprio)
    padded.tokens[:, :5] = observation.tokens
    padded.tokens[~padded.token_mask] = 17  # what stands there must not matter either
    hidden, answers = model(
        model.prefix(observation), observation.tokens, observation.token_mask, queries
    )
    wide, wide_answers = model(model.prefix(padded), padded.tokens, padded.token_mask, queries)
    mask = observation.token_mask
    torch.testing.assert_close(wide[:, :5][mask], hidden[mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(wide_answers, answers, rtol=0, atol=1e-5)


def test_queries_see_the_text_and_the_text_does_not_see_them(model):
    observation = tiny_observation([4, 4])
    prefix, queries = model.prefix(observation), torch.randn(2, model.width)
    hidden, answers = model(prefix, observation.tokens, observation.token_mask, queries)
    without, none = model(prefix, observation.tokens, observation.token_mask)
    assert none.shape == (2, 0, model.width)
    torch.testing.assert_close(hidden, without, rtol=0, atol=1e-5)
    other = observation.tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % 64
    moved = model(prefix, other, observation.token_mask, queries)[1] - answers
    assert (moved.abs().amax((1, 2)) > 1e-3).all()
    # The first query sees the second one.
    replaced = torch.stack([queries[0], -queries[1]])
    moved = model(prefix, observation.tokens, observation.token_mask, replaced)[1] - answers
    assert moved[:, 0].abs().max() > 1e-3


def test_rows_do_not_see_each_other(model):
    observation = tiny_observation([5, 3, 4])
    whole = model(model.prefix(observation), observation.tokens, observation.token_mask)[0]
    for row in range(3):
        one = map_rows(observation, lambda t, r=row: t[r : r + 1])
        alone = model(model.prefix(one), one.tokens, one.token_mask)[0]
        mask = one.token_mask[0]
        torch.testing.assert_close(alone[0][mask], whole[row][mask], rtol=0, atol=1e-5)


def written_without_cache(model, observation, row: int, count: int) -> list[int]:
    """Greedy words of one row, every one from a whole forward pass over what stands there."""
    one = map_rows(observation, lambda t: t[row : row + 1])
    tokens, prefix = one.tokens[:, one.token_mask[0]], model.prefix(one)
    words = []
    for _ in range(count):
        hidden, _ = model(prefix, tokens, torch.ones_like(tokens, dtype=torch.bool))
        words.append(
            int(model.backbone.logits(hidden[0, -1])[: action_ids(VOCABULARY).start].argmax())
        )
        tokens = torch.cat([tokens, torch.tensor([[words[-1]]])], dim=1)
    return words


@torch.no_grad()
def test_generating_with_a_cache_is_the_argmax_of_whole_passes(model):
    observation = tiny_observation([5, 2, 4], padding=2)
    expected = [written_without_cache(model, observation, row, 6) for row in range(3)]
    assert len({tuple(words) for words in expected}) == 3
    never = next(i for i in range(64) if all(i not in words for words in expected))
    assert model.generate(observation, 6, end_token=never).tolist() == expected
    # What follows the end is the end. Taken as the end: a word that the first row writes.
    end = expected[0][2]
    stopped = [
        w[: w.index(end) + 1] + [end] * (5 - w.index(end)) if end in w else w for w in expected
    ]
    length = min(6, max(w.index(end) + 1 if end in w else 6 for w in expected))
    assert model.generate(observation, 6, end_token=end).tolist() == [w[:length] for w in stopped]


@torch.no_grad()
def test_answers_in_words_hold_no_action_ids():
    """Which a new policy gives embeddings that nobody has taught to be unlikely."""
    model, actions = tiny_vlm(), torch.tensor(action_ids(VOCABULARY))
    first = int(actions[0])
    weight = model.backbone.model.get_output_embeddings().weight
    weight[actions] = (
        4.0 * weight[(actions - first) % first]
    )  # likelier than the likely words they are made of
    observation = tiny_observation([5, 2, 4])
    hidden, _ = model(model.prefix(observation), observation.tokens, observation.token_mask)
    assert bool((model.backbone.logits(hidden[:, 0]).argmax(-1) >= first).all())
    assert int(model.generate(observation, 6, end_token=0).max()) < first


def test_the_prefix_is_cameras_in_their_order_then_proprioception(model):
    observation = tiny_observation([3, 3])
    prefix = model.prefix(observation)
    assert prefix.shape == (2, model.num_prefix, model.width)
    assert model.num_prefix == 2 * 4 + 1
    swapped = dataclasses.replace(
        observation, images={c: observation.images[c] for c in reversed(CAMERAS)}
    )
    assert torch.equal(model.prefix(swapped), prefix)
    front = dataclasses.replace(
        observation, images={**observation.images, "front": 255 - observation.images["front"]}
    )
    changed = (model.prefix(front) - prefix).abs().amax((0, 2)) > 1e-4
    assert changed.tolist() == [True] * 4 + [False] * 5
    felt = dataclasses.replace(observation, proprio=observation.proprio + 1)
    changed = (model.prefix(felt) - prefix).abs().amax((0, 2)) > 1e-4
    assert changed.tolist() == [False] * 8 + [True]


def test_the_parameters_of_the_prefix_are_those_its_gradient_reaches(model):
    prefix = model.prefix(tiny_observation([2, 2]))
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(
        (prefix * torch.randn_like(prefix)).sum(), list(named.values()), allow_unused=True
    )
    reached = {
        name for name, gradient in zip(named, gradients, strict=True) if gradient is not None
    }
    listed = {id(p) for p in model.prefix_parameters()}
    assert reached == {name for name, parameter in named.items() if id(parameter) in listed}
    assert all(not name.startswith("backbone") for name in reached)


def test_proprioception_is_normalised_by_the_data():
    model = tiny_vlm()
    model.fit_proprio(torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, 4.0]]))
    assert model.proprio_mean.tolist() == [2.0, 5.0, 3.0]
    # Standard deviations by hand: sqrt(2), 0 raised to the floor, sqrt(2).
    torch.testing.assert_close(model.proprio_std, torch.tensor([2**0.5, MIN_PROPRIO_STD, 2**0.5]))
    assert "proprio_mean" in model.state_dict()


def test_what_is_missing_is_named(model):
    observation = tiny_observation([2])
    front = dataclasses.replace(observation, images={"front": observation.images["front"]})
    with pytest.raises(
        ValueError, match=r"trained with cameras \['front', 'wrist'\].*add \['wrist'\]"
    ):
        model.prefix(front)
    with pytest.raises(ValueError, match="takes proprioception and the observation has none"):
        model.prefix(dataclasses.replace(observation, proprio=None))
    small = {camera: image[:, :4, :4] for camera, image in observation.images.items()}
    with pytest.raises(ValueError, match=r"takes 8 x 8 pixels, got \(4, 4\): set sim.image_size"):
        model.prefix(dataclasses.replace(observation, images=small))
