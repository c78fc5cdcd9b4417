"""A critic with weights of its own: who moves whom, what is shared in memory, and that it
learns."""

import copy

import pytest
import torch
from torch import nn

from tests.rl.contract import Task, check_policy
from tests.rl.toys import SETTINGS, Descent, text_observation
from vla.models.heads import ValueHead
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.critic import copy_trained, with_critic
from vla.rl.loop import LoopSettings, LoopState, train_rl
from vla.rl.reference import FrozenCopy
from vla.rl.rollout import collect_responses
from vla.rl.update import UpdateSettings, update
from vla.types import ActionScores, Decision

PROMPT = torch.tensor([[0, 1], [2, 3], [1, 2], [3, 0]])
OBSERVATION = text_observation(PROMPT)
PPO = {**SETTINGS["ppo"], "gamma": 1.0, "gae_lambda": 0.95}
UPDATE = UpdateSettings(epochs=2, num_minibatches=1, micro_batch_rows=64, max_grad_norm=10.0)


class OneBody(nn.Module):
    """Logits and values from one body, as a language model has it: a frozen part, a trained one,
    two heads."""

    def __init__(self, detach: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Embedding(4, 8).requires_grad_(False)
        self.body, self.logits, self.value_head = (
            nn.Linear(8, 8),
            nn.Linear(8, 4),
            ValueHead(8, detach),
        )

    def hidden(self, observation):
        return self.body(self.frozen(observation.tokens)).tanh()

    @torch.no_grad()
    def act(self, observation, *, greedy=False):
        categorical = torch.distributions.Categorical(logits=self.logits(self.hidden(observation)))
        draw = categorical.logits.argmax(-1) if greedy else categorical.sample()
        values = self.value_head(self.hidden(observation))
        return Decision(
            draw, {"draw": draw}, categorical.log_prob(draw), observation.token_mask, values
        )

    def score(self, observation, trace):
        hidden = self.hidden(observation)
        categorical = torch.distributions.Categorical(logits=self.logits(hidden))
        return ActionScores(
            categorical.log_prob(trace["draw"]), categorical.entropy(), self.value_head(hidden)
        )

    @torch.no_grad()
    def value(self, observation):
        return self.value_head(self.hidden(observation))[:, -1]

    def critic_parameters(self):
        return self.value_head.parameters()


def reward(decision, rows):
    return (decision.action == PROMPT[rows]).float().mean(1)


def one_update(learner, **settings):
    """Which parameters an update moved."""
    torch.manual_seed(1)
    rollout = collect_responses(learner, OBSERVATION, 4, reward)
    before = copy.deepcopy(learner.state_dict())
    algorithm = make_algorithm("ppo", **PPO)
    update(
        learner,
        algorithm,
        rollout,
        Descent(learner.parameters()),
        UPDATE,
        generator=torch.Generator(),
        **settings,
    )
    return {
        name for name, value in learner.state_dict().items() if not torch.equal(value, before[name])
    }


def test_a_shared_critic_is_the_policy_itself():
    policy = OneBody()
    assert with_critic(policy, "shared") is policy


def test_a_separate_critic_keeps_the_contract():
    check_policy(
        Task(with_critic(OneBody(), "separate"), OBSERVATION, reward, solved=1.0, learning_rate=0.0)
    )


def test_the_critic_trains_a_body_of_its_own_and_not_the_actors():
    """The shared value head kept its gradient to itself (`detach`); the separate one is there to
    train its body."""
    learner = with_critic(OneBody(detach=True), "separate")
    moved = one_update(learner)
    assert {"actor.body.weight", "actor.logits.weight", "critic.body.weight"} <= moved
    assert not any(
        name.startswith(("actor.value_head", "critic.logits", "actor.frozen")) for name in moved
    )
    warm = with_critic(OneBody(detach=True), "separate")
    warmed = one_update(warm, critic_warmup=True)
    assert warmed
    assert all(name.startswith(("critic.body", "critic.value_head")) for name in warmed)


def test_values_say_nothing_to_the_actor_and_draws_nothing_to_the_critic():
    learner = with_critic(OneBody(), "separate")
    scores = learner.score(OBSERVATION, learner.act(OBSERVATION).trace)
    for part, others in ((scores.values, learner.actor), (scores.logprobs, learner.critic)):
        trained = [p for p in others.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(part.sum(), trained, allow_unused=True, retain_graph=True)
        assert all(gradient is None for gradient in gradients)


def test_what_is_frozen_is_in_memory_once():
    policy = OneBody()
    learner, reference = with_critic(policy, "separate"), FrozenCopy(policy, 8)
    for other in (learner.critic, reference.frozen, copy_trained(policy)):
        assert other.frozen.weight is policy.frozen.weight
        assert other.body.weight is not policy.body.weight
    assert id(policy.frozen.weight) not in {id(p) for p in learner.critic_parameters()}
    assert "frozen.weight" not in reference.state_dict()["weights"]
    assert policy.body.weight.requires_grad
    assert not reference.frozen.body.weight.requires_grad


def test_a_reference_beside_frozen_weights_stays_and_comes_back():
    policy = OneBody()
    rollout = collect_responses(policy, OBSERVATION, 2, reward)
    reference = FrozenCopy(policy, 8)
    before = reference.logprobs(rollout)
    one_update(policy)
    assert torch.equal(reference.logprobs(rollout), before)
    saved = copy.deepcopy(reference.state_dict())
    reference.refresh()
    assert not torch.equal(reference.logprobs(rollout), before)
    reference.load_state_dict(saved)
    assert torch.equal(reference.logprobs(rollout), before)


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_ppo_learns_the_identity_with_either_critic(kind):
    learner, metrics = with_critic(OneBody(detach=False), kind), []
    torch.manual_seed(0)
    train_rl(
        learner,
        make_algorithm("ppo", **PPO),
        lambda iteration: collect_responses(learner, OBSERVATION, 16, reward, version=iteration),
        torch.optim.Adam(learner.parameters(), lr=0.03),
        UPDATE,
        LoopSettings(num_iterations=20),
        LoopState(),
        on_iteration=lambda done, rollout, numbers: metrics.append(numbers) and None,
    )
    assert metrics[0]["return_mean"] < 0.5
    assert metrics[-1]["return_mean"] > 0.9
    assert abs(metrics[0]["explained_variance"]) < 1e-6  # a value head of zeros explains nothing
