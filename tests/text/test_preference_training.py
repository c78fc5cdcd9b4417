import copy
from dataclasses import replace

import pytest
import torch

from vla.data.chat import ChatFormat
from vla.data.preferences import BinaryFeedback, Ranking
from vla.generation.sampling import Sampling
from vla.policies.text import TextPolicy
from vla.preference.kto import mismatched_prompts
from vla.preference.objective import (
    DPO,
    IPO,
    KTO,
    ORPO,
    PlackettLuce,
    SimPO,
    comparison_terms,
    make_objective,
)
from vla.sft.examples import ShuffledBatches, train_on_examples
from vla.sft.loop import SupervisedSettings
from vla.text.control_codes import LabelledCompletion, fit_control_codes
from vla.text.preference_training import (
    BinaryExample,
    Comparison,
    comparison_logprobs,
    encode_feedback,
    encode_ranking,
    fit_comparisons,
    fit_kto,
    preference_accuracy,
    to_binary_feedback,
)
from vla.text.sft_losses import Example, fit_examples, mean_loss, sequence_logprobs
from vla.text.tiny_language_model import tiny_language_model


def settings_for(num_steps, learning_rate=1e-2, micro_batch_size=8):
    return SupervisedSettings(
        num_steps=num_steps,
        batch_size=8,
        micro_batch_size=micro_batch_size,
        learning_rate=learning_rate,
        warmup_steps=num_steps // 10,
        max_grad_norm=1.0,
    )


FIT = settings_for(40)


@pytest.fixture(scope="module")
def parts():
    return tiny_language_model(["hello world"], vocab_size=280, hidden_size=32, num_layers=1)


def policy_of(parts):
    return TextPolicy(copy.deepcopy(parts[0]), Sampling(), 4, [2], 0)


def comparisons(count, size=2, seed=0):
    """Completions are random but for their second token: 7 is best, then 8, then 9."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        prompt = torch.randint(20, 280, (5,), generator=generator).tolist()
        rows = torch.randint(20, 280, (size, 4), generator=generator).tolist()
        made.append(
            Comparison(prompt, tuple([row[0], 7 + k, *row[2:], 2] for k, row in enumerate(rows)))
        )
    return made


def test_log_probabilities_of_comparisons_are_those_of_the_model(parts):
    policy = policy_of(parts)
    several = [*comparisons(2, 3), *comparisons(1, 2, seed=5)]
    logprobs, lengths, present = comparison_logprobs(policy, several)
    assert present.tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    assert lengths[2].tolist() == [5, 5, 0]
    for b, comparison in enumerate(several):
        for k, completion in enumerate(comparison.completions):
            ids = torch.tensor([comparison.prompt + completion])
            every = policy.model(input_ids=ids).logits[0].log_softmax(-1)
            first = len(comparison.prompt)
            expected = sum(every[first + i - 1, token] for i, token in enumerate(completion))
            torch.testing.assert_close(logprobs[b, k], expected, rtol=1e-4, atol=1e-4)


OBJECTIVES = [
    DPO(0.1, 0.0),
    DPO(0.1, 0.1),
    IPO(0.5, True),
    IPO(0.1, False),
    SimPO(2.0, 1.0),
    ORPO(1.0),
    PlackettLuce(0.1),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_objective_learns_what_is_preferred(parts, objective):
    size = 3 if isinstance(objective, PlackettLuce) else 2
    policy, unseen = policy_of(parts), comparisons(40, size, seed=9)
    before = comparison_logprobs(policy, unseen)[0].detach()
    fit_comparisons(policy, comparisons(160, size), objective, FIT, seed=0)
    assert preference_accuracy(policy, unseen, before, 16) > 0.9


def test_thumbs_teach_too(parts):
    policy, unseen = policy_of(parts), comparisons(40, seed=9)
    before = comparison_logprobs(policy, unseen)[0].detach()
    settings = settings_for(60)
    fit_comparisons(policy, comparisons(40), KTO(0.3, True), settings, seed=0)
    assert preference_accuracy(policy, unseen, before, 16) > 0.9


@pytest.mark.parametrize("objective", [DPO(0.1, 0.0), PlackettLuce(0.1), KTO(0.1, True)], ids=str)
def test_micro_batches_change_nothing(parts, objective):
    weights = []
    for micro in (8, 3):
        policy = policy_of(parts)
        fit_comparisons(policy, comparisons(12, 3), objective, settings_for(3, 1e-3, micro), seed=0)
        weights.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=2e-5)


def test_pairs_take_the_best_and_the_worst_that_is_there():
    logprobs = torch.tensor([[-1.0, -5.0, -3.0], [-1.0, -2.0, 9.0]])
    present = torch.tensor([[True, True, True], [True, True, False]])
    terms = comparison_terms(
        DPO(1.0, 0.0), logprobs, present.long() * 4, torch.zeros(2, 3), present
    )
    # log(1 + e^-2) and log(1 + e^-1)
    torch.testing.assert_close(terms, torch.tensor([0.1269280, 0.3132617]))


def test_the_baseline_pairs_another_prompt():
    assert mismatched_prompts([1, 1, 2, 3, 3]) == [2, 2, 3, 0, 0]
    assert mismatched_prompts([1, 2, 1, 1]) == [1, 2, 1, 1]
    prompts = torch.randint(3, (5000,), generator=torch.Generator().manual_seed(0)).tolist()
    assert all(prompts[i] != prompts[j] for i, j in enumerate(mismatched_prompts(prompts)))
    with pytest.raises(
        ValueError, match="all 3 examples have the same prompt, and the baseline of kto"
    ):
        mismatched_prompts([1, 1, 1])


def test_files_become_ids_that_end_with_the_stop_token(parts):
    chat = ChatFormat(parts[1])
    user = {"role": "user", "content": "hi"}
    comparison = encode_ranking(chat, Ranking((user,), ("hello", "no"), 1.5, ""))
    assert comparison.prompt == chat.prompt([user])
    assert [parts[1].decode(ids) for ids in comparison.completions] == [
        "hello<|im_end|>",
        "no<|im_end|>",
    ]
    assert comparison.margin == 1.5
    assert (
        encode_feedback(chat, BinaryFeedback((user,), "no", False, "")).completion
        == comparison.completions[1]
    )
    assert [example.liked for example in to_binary_feedback([comparison])] == [True, False]


def test_supervised_fine_tuning_lowers_the_loss_on_completions(parts):
    policy = policy_of(parts)
    examples = [Example([20 + i, 30], [40 + i % 4, 50, 2]) for i in range(16)]
    before = mean_loss(policy, examples, 8)
    expected = -float(sequence_logprobs(policy, examples).detach().sum()) / 48
    assert before == pytest.approx(expected, rel=1e-5)
    fit_examples(policy, examples, FIT, seed=0)
    assert mean_loss(policy, examples, 8) < 0.5 * before


def test_batches_show_every_example_once_an_epoch():
    batches = ShuffledBatches(10, 4, seed=0)
    seen = [i for step in range(5) for i in batches(step)]
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert len(ShuffledBatches(2, 5, seed=0)(1)) == 5
    resumed = ShuffledBatches(10, 4, seed=0)
    assert resumed(3) == seen[12:16]


def test_averaged_weights_and_the_clock_are_for_examples_too(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr("vla.sft.loop.time.monotonic", lambda: float(next(now)))
    layer, seen = torch.nn.Linear(2, 1, bias=False), []

    def loss_of(rows):
        seen.append(layer.weight.detach().clone())
        return layer.weight.sum() * len(rows)

    settings = replace(FIT, max_seconds=3.0, ema_decay=0.5, warmup_steps=0)
    train_on_examples(layer, 4, loss_of, settings, seed=0)
    assert len(seen) == 3  # every step takes one second
    # d = min(.5, (1 + n) / (10 + n)): 2/11, 3/12, 4/13 of the average stays
    lowest = seen[2]
    assert (layer.weight < lowest).all()


def test_a_loss_that_is_not_finite_stops_with_the_weights_as_they_were():
    layer = torch.nn.Linear(2, 1)
    before = layer.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="step 1: loss nan"):
        train_on_examples(layer, 4, lambda rows: layer.weight.sum() * float("nan"), FIT, seed=0)
    assert torch.equal(layer.weight, before)
    with pytest.raises(ValueError, match="no examples"):
        train_on_examples(layer, 0, lambda rows: layer.weight.sum(), FIT, seed=0)


def test_thumbs_of_one_kind_are_refused(parts):
    with pytest.raises(ValueError, match="2 liked and 0 disliked"):
        fit_kto(
            policy_of(parts), [BinaryExample([3], [4, 2], True)] * 2, KTO(0.1, True), FIT, seed=0
        )
    assert make_objective("dpo", beta=0.2, label_smoothing=0.0) == DPO(0.2, 0.0)


def told_apart(parts, discrimination, steps=30):
    """How much likelier samples of the training kind are behind their own code than behind the
    other: prompts end with code 30 or 31, and of four random tokens only the second, 7 or 8, has to
    do with it.
    """
    policy, generator = policy_of(parts), torch.Generator().manual_seed(1)
    made = []
    for i in range(64):
        question = torch.randint(40, 280, (4,), generator=generator).tolist()
        row = torch.randint(40, 280, (4,), generator=generator).tolist()
        made.append(
            LabelledCompletion(
                [[*question, 30], [*question, 31]], [row[0], 7 + i % 2, *row[2:], 2], i % 2
            )
        )
    fit_control_codes(policy, made[:48], discrimination, 0.1, settings_for(steps, 3e-3), 0)
    with torch.no_grad():
        held = made[48:]
        rows = [Example(prompt, sample.completion) for sample in held for prompt in sample.prompts]
        logprobs = sequence_logprobs(policy, rows).view(-1, 2)
    own = torch.tensor([sample.code for sample in held])
    return float((logprobs.gather(1, own[:, None]) - logprobs.gather(1, 1 - own[:, None])).mean())


def test_telling_codes_apart_steers_more_than_learning_behind_them(parts):
    alone, beside = told_apart(parts, 0.0), told_apart(parts, 1.0)
    assert beside > alone + 0.2
