import copy

import pytest
import torch

from vla.preference.listwise import bradley_terry_terms
from vla.rewards.reward_model import RewardModel
from vla.text.tiny_language_model import tiny_language_model


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(["x"], weight_scale=0.3)[0]


def with_a_head(model):
    """A reward model whose head has learned something."""
    rewarder = RewardModel(copy.deepcopy(model), 0)
    torch.nn.init.normal_(rewarder.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return rewarder


def batch():
    torch.manual_seed(0)
    prompts = torch.randint(3, 320, (2, 5)).repeat_interleave(2, 0)
    prompt_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool().repeat_interleave(2, 0)
    completions = torch.randint(3, 320, (4, 6))
    mask = torch.arange(6) < torch.tensor([6, 2, 1, 4])[:, None]
    return prompts, prompt_mask, completions, mask


def test_the_reward_is_read_from_the_last_token_of_prompt_and_completion(model):
    rewarder = with_a_head(model)
    prompts, prompt_mask, completions, mask = batch()
    rewards = rewarder(prompts, prompt_mask, completions, mask)
    for row in range(4):
        ids = torch.cat([prompts[row][prompt_mask[row]], completions[row][mask[row]]])
        hidden = model.model(input_ids=ids[None]).last_hidden_state[0, -1]
        torch.testing.assert_close(
            rewards[row], rewarder.head(hidden).squeeze(-1), rtol=1e-4, atol=1e-4
        )


def test_sharing_prompts_changes_nothing(model):
    rewarder = with_a_head(model)
    shared = rewarder(*batch())
    rewarder.branches = False
    torch.testing.assert_close(rewarder(*batch()), shared, rtol=1e-4, atol=1e-4)
    rewarder.share_prompts = False
    torch.testing.assert_close(rewarder(*batch()), shared, rtol=1e-4, atol=1e-4)


def test_a_new_head_finds_all_completions_equal(model):
    assert RewardModel(copy.deepcopy(model), 0)(*batch()).tolist() == [0.0] * 4


def test_normalized_rewards(model):
    rewarder = with_a_head(model)
    with torch.no_grad():
        for _ in range(2):  # a second time changes nothing
            rewarder.normalize(rewarder(*batch()))
            rewards = rewarder(*batch())
            torch.testing.assert_close(rewards.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
            torch.testing.assert_close(rewards.std(), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert "offset" in rewarder.state_dict()


def test_it_learns_which_token_is_liked():
    """Completions with token 7 are preferred to those with token 8; unseen prompts and lengths are
    ranked right."""
    rewarder = RewardModel(tiny_language_model(["x"])[0], 0)
    optimizer = torch.optim.Adam(rewarder.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)

    def pairs(count):
        prompts = torch.randint(20, 320, (count, 4), generator=generator).repeat_interleave(2, 0)
        completions = torch.randint(20, 320, (2 * count, 3), generator=generator)
        completions[0::2, 1], completions[1::2, 1] = 7, 8
        return (
            prompts,
            torch.ones_like(prompts, dtype=torch.bool),
            completions,
            torch.ones_like(completions, dtype=torch.bool),
        )

    for _ in range(80):
        rewards = rewarder(*pairs(16))
        loss = bradley_terry_terms(
            rewards[0::2], rewards[1::2], reward_centering_weight=0.01
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        rewards = rewarder(*pairs(100))
    assert (rewards[0::2] > rewards[1::2]).float().mean() > 0.95
