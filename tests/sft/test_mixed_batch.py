"""One step for actions and answers: the model keeps answering questions about pictures while it learns to act."""

from __future__ import annotations

import torch

from tests.models.tiny import CAMERAS, IMAGE_SIZE, PROPRIO_SIZE
from tests.policies.kinds import task_of
from vla.data.questions import PackedQuestions
from vla.models.vlm import VisionLanguageModel
from vla.sft.loop import SupervisedSettings, SupervisedState, fit
from vla.sft.losses import answer_loss
from vla.stages.grounding import Grounding, GroundingBatch
from vla.stages.imitation import ImitationBatch, mixed_loss
from vla.train.optim import make_optimizer
from vla.types import Observation, map_rows

QUESTION, DARK, BRIGHT = 50, 51, 52
"""The ids of "is it dark or bright?" and of its two answers."""


def questions(rows: int, seed: int) -> GroundingBatch:
    """Noisy pictures, half of them dark, each with the question and its true answer."""
    generator = torch.Generator().manual_seed(seed)
    bright = torch.arange(rows) % 2 == 1
    level = torch.where(bright, 176, 16)[:, None, None, None]
    shape = (rows, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = {c: (level + torch.randint(0, 64, shape, generator=generator)).to(torch.uint8) for c in CAMERAS}
    tokens = torch.stack([torch.full((rows,), QUESTION), torch.where(bright, BRIGHT, DARK)], dim=1)
    there, answers = torch.ones_like(tokens, dtype=torch.bool), torch.tensor([False, True]).expand(rows, -1)
    felt = torch.randn(rows, PROPRIO_SIZE, generator=generator)
    packed = PackedQuestions(tokens, there, answers, torch.zeros_like(tokens))
    return GroundingBatch(Observation(images, felt, tokens, there), packed)


class Answers(Grounding):
    """The questions' side of a mixed batch, without scenes to draw them from and without detection."""

    def __init__(self, model: VisionLanguageModel):
        self.model = model

    def loss(self, batch):
        asked = batch.questions
        loss, accuracy = answer_loss(self.model, batch.observation, asked.answers, asked.segments)
        return loss, {"answer_accuracy": float(accuracy)}


def train(task, actions, num_steps: int, weight: float) -> None:
    """Actions and answers in one step; `weight` is that of the answers."""
    rows = torch.arange(4).repeat(4)
    mask = torch.ones(len(rows), *actions.shape[1:2], dtype=torch.bool)
    observation = map_rows(task.observation, lambda t: t[rows])

    def batch_at(step: int) -> ImitationBatch:
        return ImitationBatch(observation, actions[rows], mask, questions(16, seed=step))

    def loss_of(batch: ImitationBatch):
        return mixed_loss(task.policy, batch, Answers(task.policy.model), weight)

    optimizer = make_optimizer(task.policy, "muon", 0.01, 0.0, muon_learning_rate=0.02)
    settings = SupervisedSettings(num_steps, None, 0.1, "cosine", 1.0)
    fit(task.policy, loss_of, batch_at, optimizer, settings, SupervisedState(), None, lambda step, metrics: None)


@torch.no_grad()
def accuracy(policy) -> float:
    """Share of right answers about held-out pictures, drawn from the whole vocabulary."""
    return Answers(policy.model).loss(questions(64, seed=10_000))[1]["answer_accuracy"]


def success(task) -> float:
    return float(task.reward(task.policy.act(task.observation, greedy=True), torch.arange(4)).mean())


def test_answers_stay_right_while_success_rises():
    task, actions = task_of("token_parallel")
    torch.manual_seed(0)
    answers_only = the_same_for_all(actions)
    train(task, answers_only, 40, weight=5.0)
    answered, acted = accuracy(task.policy), success(task)
    assert answered > 0.9
    train(task, actions, 120, weight=1.0)
    assert accuracy(task.policy) >= answered - 0.02
    assert success(task) > max(0.8, acted + 0.2)


def the_same_for_all(actions: torch.Tensor) -> torch.Tensor:
    """Actions that say nothing: the first one for every instruction."""
    return actions[:1].expand_as(actions)
