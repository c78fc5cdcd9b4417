"""Classifier-free guidance by the label behind an instruction: what it changes, and what it leaves
alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.policies.kinds import task_of
from vla.data.advantage_tokens import with_advantage_token
from vla.types import Observation

GUIDED = ("token_parallel", "regression", "flow_all_steps", "diffusion")


def with_label(observation: Observation) -> Observation:
    pad = torch.nn.functional.pad
    wider = replace(
        observation,
        tokens=pad(observation.tokens, (0, 2)),
        token_mask=pad(observation.token_mask, (0, 2)),
    )
    return with_advantage_token(
        wider, [[60, 61]], torch.zeros(len(observation.tokens), dtype=torch.long)
    )


@pytest.fixture(params=GUIDED)
def taught(request):
    """A policy whose head tells labels apart, what it sees, and actions."""
    task, actions = task_of(request.param)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in task.policy.named_parameters():
            if not name.startswith("model."):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return task.policy, with_label(task.observation), actions


def said(policy, observation, guidance):
    policy.guidance = guidance
    torch.manual_seed(1)
    return policy.act(observation)


def test_a_guided_decision_is_scored_as_it_was_drawn(taught):
    policy, observation, _ = taught
    decision = said(policy, observation, 3.0)
    with torch.no_grad():
        again = policy.score(observation, decision.trace).logprobs
    assert (again - decision.logprobs)[decision.mask].abs().max() < 1e-4
    policy.guidance = 1.0
    with torch.no_grad():
        other = policy.score(observation, decision.trace).logprobs
    assert (other - decision.logprobs)[decision.mask].abs().max() > 1e-3


def test_without_a_label_there_is_nothing_to_be_guided_by(taught):
    policy, observation, _ = taught
    plain = replace(observation, token_mask=observation.instruction_mask, label_mask=None)
    torch.testing.assert_close(said(policy, plain, 3.0).logprobs, said(policy, plain, 1.0).logprobs)


def test_what_is_imitated_is_what_was_said_with_the_label_and_no_more(taught):
    policy, observation, actions = taught
    mask, terms = torch.ones(len(actions), actions.shape[1], dtype=torch.bool), []
    for policy.guidance in (1.0, 3.0):
        torch.manual_seed(2)
        with torch.no_grad():
            terms.append(policy.imitation_terms(observation, actions, mask)[0])
    torch.testing.assert_close(*terms)
