import math

import pytest
import torch

from vla.generation.beam import beam_search
from vla.generation.best_of import best_of, best_of_kl, majority_vote
from vla.generation.generate import left_pad
from vla.text.tiny_language_model import tiny_language_model


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(["what is two plus three"], weight_scale=0.25)[0]


@pytest.fixture(scope="module")
def prompts():
    torch.manual_seed(3)
    mask = torch.arange(8) < torch.tensor([3, 8, 5])[:, None]
    return torch.randint(3, 320, (3, 8)).masked_fill(~mask, 0), mask


def logprob(model, prompt, completion):
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return float(logits.detach().log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum())


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_beams_are_scored_by_the_model_and_sorted(model, prompts, length_penalty):
    tokens, mask = prompts
    found = beam_search(model, tokens, mask, 4, 6, list(range(2, 60)), length_penalty)
    for row, hypotheses in enumerate(found):
        assert len(hypotheses) == 4
        assert len({h.tokens for h in hypotheses}) == 4
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        for h in hypotheses:
            assert h.logprob == pytest.approx(
                logprob(model, tokens[row][mask[row]].tolist(), h.tokens), abs=1e-3
            )
            assert h.score == pytest.approx(h.logprob / len(h.tokens) ** length_penalty)
            assert not any(2 <= t < 60 for t in h.tokens[:-1])


def test_one_beam_is_greedy_and_a_wide_beam_is_exhaustive(model, prompts):
    tokens, mask = prompts
    for row in range(3):
        prompt = tokens[row][mask[row]].tolist()
        greedy = []
        for _ in range(4):
            greedy.append(
                int(model(input_ids=torch.tensor([[*prompt, *greedy]])).logits[0, -1].argmax())
            )
            if greedy[-1] == 2:
                break
        assert (
            list(
                beam_search(model, tokens[row : row + 1], mask[row : row + 1], 1, 4, [2])[0][
                    0
                ].tokens
            )
            == greedy
        )
    # two tokens: 320 beams hold every first token, so the best pair of all is found
    prompt = tokens[0][mask[0]].tolist()
    first = model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    pairs = torch.tensor([[*prompt, i] for i in range(320)])
    both = first[:, None] + model(input_ids=pairs).logits[:, -1].log_softmax(-1)
    both[2] = first[2] + torch.tensor([0.0] + [-torch.inf] * 319)  # a stop token ends it
    wide = beam_search(model, tokens[:1], mask[:1], 320, 2, [2], length_penalty=0.0)[0][0]
    assert wide.logprob == pytest.approx(float(both.detach().max()), abs=1e-3)


def test_beams_are_those_of_transformers(model, prompts):
    tokens, mask = prompts
    found = beam_search(model, tokens, mask, 3, 6, [2])
    padded, left = left_pad(tokens, mask)
    theirs = model.generate(
        input_ids=padded,
        attention_mask=left,
        max_new_tokens=6,
        num_beams=3,
        num_return_sequences=1,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
        length_penalty=1.0,
    )[:, padded.shape[1] :]
    for row in range(3):
        best = found[row][0].tokens
        assert theirs[row, : len(best)].tolist() == list(best)


def test_best_of_n():
    assert best_of([0.0, 1.0, 1.0, 0.5], [9, 7, 3, 1]) == 2  # of the two best the shorter
    assert best_of([0.0, 0.2], [1, 1], min_reward=0.5) is None
    assert best_of([math.nan, 0.2], [1, 1]) == 1
    assert best_of([math.nan], [1]) is None
    # n = 4: log 4 - 3/4 = 1.3863 - .75
    assert best_of_kl(4) == pytest.approx(0.636294, abs=1e-6)
    assert best_of_kl(1) == 0
    with pytest.raises(ValueError, match="n .0. must be at least 1"):
        best_of_kl(0)


def test_majority():
    assert majority_vote(["4", "5", None, "5"]) == "5"
    assert majority_vote(["4", "5"]) == "4"
    assert majority_vote([None]) is None


def test_a_beam_is_needed(model, prompts):
    with pytest.raises(ValueError, match="num_beams .0. must be at least 1"):
        beam_search(model, *prompts, 0, 3, [2])
