import pytest
import torch

from vla.generation.generate import common_length, generate, group_rows, left_pad
from vla.generation.hf_decoder import check_model, disable_dropout, make_cache, uses_full_attention
from vla.generation.sampling import Sampling
from vla.text.tiny_language_model import tiny_language_model

STOP = [2]


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(["what is two plus three"], weight_scale=0.3)[0]


@pytest.fixture(scope="module")
def prompts():
    torch.manual_seed(3)
    lengths = torch.tensor([4, 9, 4, 1, 9])
    tokens = torch.randint(3, 320, (5, 9))
    tokens[2], tokens[4] = tokens[0], tokens[1]  # two prompts come twice
    mask = torch.arange(9) < lengths[:, None]
    return tokens.masked_fill(~mask, 0), mask


def test_group_rows_numbers_prompts_in_order_of_appearance(prompts):
    first, prompt = group_rows(*prompts)
    assert first.tolist() == [0, 1, 3]
    assert prompt.tolist() == [0, 1, 0, 2, 1]
    # what stands under the padding does not matter
    tokens = prompts[0].clone()
    tokens[2, 8] = 77
    assert group_rows(tokens, prompts[1])[1].tolist() == [0, 1, 0, 2, 1]


def test_left_pad():
    tokens, mask = left_pad(
        torch.tensor([[5, 6, 0, 0], [7, 8, 9, 0]]),
        torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool(),
    )
    assert mask.tolist() == [[False, True, True], [True, True, True]]
    assert tokens[0, 1:].tolist() == [5, 6]
    assert tokens[1].tolist() == [7, 8, 9]


def naive_greedy(model, prompt, max_new_tokens):
    tokens = prompt[None]
    for _ in range(max_new_tokens):
        tokens = torch.cat(
            [tokens, model(input_ids=tokens).logits[:, -1].argmax(-1, keepdim=True)], 1
        )
        if tokens[0, -1] in STOP:
            break
    return tokens[0, len(prompt) :].tolist()


def test_greedy_is_the_naive_loop_without_a_cache(model, prompts):
    tokens, mask = prompts
    made = generate(model, tokens, mask, Sampling(), 12, STOP, pad_id=0, greedy=True)
    for row in range(5):
        expected = naive_greedy(model, tokens[row][mask[row]], 12)
        assert made.tokens[row][made.mask[row]].tolist() == expected


def test_greedy_is_that_of_transformers(model, prompts):
    tokens, mask = prompts
    made = generate(model, tokens, mask, Sampling(), 12, STOP, pad_id=0, greedy=True)
    padded, left = left_pad(tokens, mask)
    theirs = model.generate(
        input_ids=padded,
        attention_mask=left,
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=STOP,
        pad_token_id=0,
    )[:, padded.shape[1] :]
    assert torch.equal(made.tokens[:, : theirs.shape[1]], theirs)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.7), Sampling(1.4, top_k=9), Sampling(1.0, 0, 0.7)]
)
def test_a_row_says_the_same_whoever_shares_the_batch(model, prompts, sampling):
    """Finished rows leave the batch; the others must not notice. Stops are frequent here: 60 of 320
    ids."""
    tokens, mask = prompts
    stops = list(range(2, 62))
    torch.manual_seed(5)
    together = generate(model, tokens, mask, sampling, 20, stops, pad_id=0)
    assert len(set(together.mask.sum(1).tolist())) > 1
    torch.manual_seed(5)
    uniform = torch.rand(5, 20)
    for row in range(5):
        alone = naive_sample(model, tokens[row][mask[row]], sampling, uniform[row], stops)
        assert together.tokens[row][together.mask[row]].tolist() == alone


def naive_sample(model, prompt, sampling, uniform, stops):
    from vla.generation.sampling import draw_by_inverse_cdf, shape_logits

    tokens = prompt[None]
    for u in uniform:
        probabilities = shape_logits(model(input_ids=tokens).logits[:, -1], sampling).softmax(-1)
        drawn = draw_by_inverse_cdf(probabilities.detach(), u[None])
        tokens = torch.cat([tokens, drawn[None]], 1)
        if drawn.item() in stops:
            break
    return tokens[0, len(prompt) :].tolist()


def test_histories_that_are_alike_share_a_cache_row_and_nothing_changes(model):
    """Six samples each of two prompts with a common beginning: every row is what it would say
    alone, and what is fed are the distinct tokens of the tree that the rows make, the last of each
    row left out.
    """
    torch.manual_seed(4)
    prompts = torch.tensor([[5, 6, 7, 8, 9, 0], [5, 6, 7, 8, 10, 11]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]).bool()
    rows = torch.arange(2).repeat_interleave(6)
    stops, fed = list(range(2, 62)), []
    count = model.model.register_forward_pre_hook(
        lambda module, args, given: fed.append(given["input_ids"].numel()), with_kwargs=True
    )
    made = generate(model, prompts[rows], mask[rows], Sampling(0.3), 8, stops, pad_id=0)
    count.remove()
    torch.manual_seed(4)
    uniform = torch.rand(12, 8)
    said = [made.tokens[row][made.mask[row]].tolist() for row in range(12)]
    for row in range(12):
        prompt = prompts[rows[row]][mask[rows[row]]]
        assert said[row] == naive_sample(model, prompt, Sampling(0.3), uniform[row], stops)
    # the common beginning [5 6 7 8] once, then [9] and [10 11] (padded to two), then at most the
    # distinct beginnings
    assert fed[:2] == [4, 2 * 2]
    beginnings = {
        (int(rows[i]), *said[i][: t + 1]) for i in range(12) for t in range(len(said[i]) - 1)
    }
    assert len(beginnings) < sum(len(s) - 1 for s in said)  # some were said twice
    assert len(beginnings) <= sum(fed[2:]) <= len(beginnings) / 0.9 + 1


def test_the_common_beginning_leaves_every_prompt_a_token_of_its_own():
    tokens = torch.tensor([[5, 6, 7, 0], [5, 6, 7, 8], [5, 6, 7, 9]])
    mask = tokens != 0
    assert common_length(tokens, mask) == 2  # the first prompt has three tokens
    assert common_length(tokens[1:], mask[1:]) == 3
    assert common_length(torch.tensor([[1, 2], [3, 2]]), torch.ones(2, 2).bool()) == 0


def test_the_mask_ends_with_the_stop_token_or_the_limit(model, prompts):
    made = generate(model, *prompts, Sampling(2.0), 15, list(range(2, 40)), pad_id=0)
    lengths = made.mask.sum(1)
    for row, length in enumerate(lengths.tolist()):
        assert made.mask[row, :length].all()
        stopped = [2 <= t < 40 for t in made.tokens[row, :length].tolist()]
        assert not any(stopped[:-1])
        assert stopped[-1] or length == 15
    assert (made.tokens[~made.mask] == 0).all()
    assert (made.logprobs[~made.mask] == 0).all()


def test_models_whose_layers_differ_use_the_librarys_cache(prompts):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=8,
        num_key_value_heads=2,
        sliding_window=6,
        initializer_range=0.3,
        layer_types=["sliding_attention", "full_attention"],
    )
    torch.manual_seed(0)
    sliding = Gemma3ForCausalLM(config).eval()
    assert not uses_full_attention(sliding)
    assert type(make_cache(sliding, 30)).__name__ == "DynamicCache"
    tokens, mask = prompts
    made = generate(sliding, tokens, mask, Sampling(), 12, STOP, pad_id=0, greedy=True)
    for row in range(5):
        assert made.tokens[row][made.mask[row]].tolist() == naive_greedy(
            sliding, tokens[row][mask[row]], 12
        )


def test_a_model_that_changes_its_logits_is_refused(model):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    check_model(model)
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_dim=16,
        num_key_value_heads=1,
        final_logit_softcapping=0.1,
        initializer_range=0.5,
    )
    with pytest.raises(
        ValueError, match="Gemma2ForCausalLM. changes its logits after the output head"
    ):
        check_model(Gemma2ForCausalLM(config).eval())


def test_dropout_is_switched_off():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.5,
    )
    model = torch.nn.Sequential(LlamaForCausalLM(config), torch.nn.Dropout(0.3)).train()
    disable_dropout(model)
    tokens = torch.arange(8)[None]
    assert torch.equal(model[0](input_ids=tokens).logits, model[0](input_ids=tokens).logits)
    assert model[1].p == 0
