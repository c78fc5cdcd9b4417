"""Guided decoding against the same thing done the slow way, by whole passes over every prompt."""

import warnings

import pytest
import torch

from vla.config import ConfigError, load
from vla.data.chat import pad_prompts
from vla.generation.generate import generate
from vla.generation.guidance import PLAUSIBLE, GuidedEngine, contrastive_logprobs
from vla.generation.sampling import Sampling
from vla.text.tiny_language_model import tiny_language_model

STOP, PAD, LENGTH = [2], 0, 6
OWN = [(5, 6, 7, 8), (5, 6, 9), (5, 6, 7, 10, 11, 12)]
OTHERS = {ids: [[*ids, 30], [*ids[:2], 31, 32]] for ids in OWN}


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(["what is two plus three"], weight_scale=0.3)[0]


@torch.no_grad()
def slowly(model, own, guidance):
    """Greedy, a prompt at a time and nothing kept; the tokens and their log-probabilities."""
    said, logprobs = [], []
    while len(said) < LENGTH and not (said and said[-1] in STOP):
        ways = [own, *OTHERS[own]]
        heard = torch.stack(
            [model(torch.tensor([[*way, *said]])).logits[0, -1].log_softmax(-1) for way in ways]
        )
        whole = heard.mean(0) + guidance * (heard[0] - heard.mean(0))
        whole[heard[0].exp() < PLAUSIBLE * heard[0].exp().max()] = -torch.inf
        said.append(int(whole.argmax()))
        logprobs.append(float(whole.log_softmax(-1).max()))
    return said, logprobs


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_it_says_what_whole_passes_over_every_way_to_ask_would(model, guidance):
    drawn = GuidedEngine(model, OTHERS, guidance)(
        *pad_prompts(OWN, 8, PAD), Sampling(), LENGTH, STOP, PAD, True
    )
    for row, own in enumerate(OWN):
        said, logprobs = slowly(model, own, guidance)
        assert drawn.tokens[row][drawn.mask[row]].tolist() == said
        assert drawn.logprobs[row][drawn.mask[row]].tolist() == pytest.approx(logprobs, abs=1e-3)
        assert drawn.tokens[row][~drawn.mask[row]].eq(PAD).all()


def test_a_model_that_recomputes_activations_in_training_still_keeps_its_cache():
    model = tiny_language_model(["what is two plus three"], weight_scale=0.3)[0]
    asked = (*pad_prompts(OWN, 8, PAD), Sampling(), LENGTH, STOP, PAD, True)
    expected = GuidedEngine(model, OTHERS, 4.0)(*asked).tokens
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    assert torch.equal(GuidedEngine(model, OTHERS, 4.0)(*asked).tokens, expected)
    assert model.training


def test_guidance_changes_what_is_said_and_without_it_nothing_does(model):
    prompts = pad_prompts(OWN, 8, PAD)
    plain = generate(model, *prompts, Sampling(), LENGTH, STOP, PAD, greedy=True).tokens
    same, other = (
        GuidedEngine(model, OTHERS, guidance)(*prompts, Sampling(), LENGTH, STOP, PAD, True).tokens
        for guidance in (1.0, 8.0)
    )
    assert torch.equal(same, plain)
    assert not torch.equal(other, plain)


def test_draws_follow_the_guided_distribution(model):
    torch.manual_seed(0)
    own = OWN[0]
    heard = torch.stack(
        [model(torch.tensor([list(w)])).logits[0, -1].log_softmax(-1) for w in (own, *OTHERS[own])]
    )
    expected = contrastive_logprobs(heard[:, None], 3.0).softmax(-1)[0]
    count = 4000
    drawn = GuidedEngine(model, OTHERS, 3.0)(
        *pad_prompts([own] * count, 4, PAD), Sampling(), 1, STOP, PAD, False
    )
    found = torch.bincount(drawn.tokens[:, 0], minlength=len(expected)) / count
    assert (found - expected).abs().max() < 4 * (0.25 / count) ** 0.5
    assert found[expected == 0].sum() == 0


def test_a_prompt_that_nobody_can_ask_otherwise_is_an_error(model):
    with pytest.raises(KeyError):
        GuidedEngine(model, OTHERS, 2.0)(
            *pad_prompts([(40, 41)], 4, PAD), Sampling(), 2, STOP, PAD, True
        )


def test_it_does_not_go_with_another_engine():
    with pytest.raises(
        ConfigError, match="text.guidance .3. combines several prompts at every token"
    ):
        load(["mode=text", "text=control", "language_model.engine=vllm", "rl.importance_cap=2"])
