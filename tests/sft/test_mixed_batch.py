"""One step for actions, answers and texts: the model keeps its words while it learns to act."""

from __future__ import annotations

import math

import pytest
import torch

from tests.models.tiny import CAMERAS, IMAGE_SIZE, PROPRIO_SIZE
from tests.policies.kinds import task_of
from vla.data.conversations import EncodedConversation
from vla.data.questions import PackedQuestions
from vla.models.vlm import VisionLanguageModel
from vla.pipelines.robot.cotraining import AuxiliaryTask
from vla.pipelines.robot.cotraining_text import TextCoTraining
from vla.pipelines.robot.grounding.scene_pool import GroundingBatch
from vla.pipelines.robot.grounding.trainer import GroundingTrainer
from vla.pipelines.robot.imitation import ImitationBatch, cotraining_loss
from vla.sft.loop import SupervisedSettings, SupervisedTrainer
from vla.sft.losses import answer_loss
from vla.training.distributed import SINGLE_PROCESS
from vla.types import Observation, map_rows

QUESTION, DARK, BRIGHT = 50, 51, 52
"""The ids of "is it dark or bright?" and of its two answers."""


def questions(rows: int, seed: int) -> GroundingBatch:
    """Noisy pictures, half of them dark, each with the question and its true answer."""
    generator = torch.Generator().manual_seed(seed)
    bright = torch.arange(rows) % 2 == 1
    level = torch.where(bright, 176, 16)[:, None, None, None]
    shape = (rows, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = {
        c: (level + torch.randint(0, 64, shape, generator=generator)).to(torch.uint8)
        for c in CAMERAS
    }
    tokens = torch.stack([torch.full((rows,), QUESTION), torch.where(bright, BRIGHT, DARK)], dim=1)
    there, answers = (
        torch.ones_like(tokens, dtype=torch.bool),
        torch.tensor([False, True]).expand(rows, -1),
    )
    felt = torch.randn(rows, PROPRIO_SIZE, generator=generator)
    packed = PackedQuestions(tokens, there, answers, torch.zeros_like(tokens))
    return GroundingBatch(Observation(images, felt, tokens, there), packed)


class Answers(GroundingTrainer):
    """The questions' side of a mixed batch, without scenes to draw them from and without
    detection."""

    def __init__(self, model: VisionLanguageModel):
        self.model = model

    def loss(self, batch):
        asked = batch.questions
        loss, accuracy = answer_loss(self.model, batch.observation, asked.answers, asked.segments)
        return loss, {"answer_accuracy": float(accuracy)}


SAID = [EncodedConversation([30, 31, 40 + i, 33], [False, False, True, True]) for i in range(2)]
"""Two texts that begin alike; which of them it is, nobody can know."""


class Said(TextCoTraining):
    """The texts' side of a mixed batch, without files to read them from."""

    def __init__(self, model: VisionLanguageModel):
        self.model, self.row_tokens, self.processes = model, 8, SINGLE_PROCESS


def train(task, actions, num_steps: int, weight: float, text_weight: float = 0.0) -> None:
    """Actions, answers and texts in one step, by weight."""
    tasks = [
        AuxiliaryTask(
            weight, lambda step: questions(16, seed=step), Answers(task.policy.model).loss
        ),
        AuxiliaryTask(text_weight, lambda step: SAID, Said(task.policy.model).loss),
    ]
    rows = torch.arange(4).repeat(4)
    mask = torch.ones(len(rows), *actions.shape[1:2], dtype=torch.bool)
    observation = map_rows(task.observation, lambda t: t[rows])

    def batch_at(step: int) -> ImitationBatch:
        return ImitationBatch(
            observation, actions[rows], mask, tuple(each.batch(step) for each in tasks)
        )

    def loss_of(batch: ImitationBatch):
        return cotraining_loss(task.policy, batch, tasks)

    settings = SupervisedSettings(
        num_steps=num_steps,
        batch_size=1,
        optimizer="muon",
        learning_rate=0.01,
        muon_learning_rate=0.02,
        warmup_steps=round(0.1 * num_steps),
        max_grad_norm=1.0,
    )
    SupervisedTrainer(task.policy, settings).train(lambda step: [batch_at(step)], loss_of)


@torch.no_grad()
def accuracy(policy) -> float:
    """Share of right answers about held-out pictures, drawn from the whole vocabulary."""
    return Answers(policy.model).loss(questions(64, seed=10_000))[1]["answer_accuracy"]


def success(task) -> float:
    return float(
        task.reward(task.policy.act(task.observation, greedy=True), torch.arange(4)).mean()
    )


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


def test_texts_are_learned_in_the_steps_that_teach_actions_and_answers():
    task, actions = task_of("token_parallel")
    torch.manual_seed(0)
    said = Said(task.policy.model)
    before = said.loss(SAID)[1]["text_loss"]
    train(task, actions, 120, weight=1.0, text_weight=1.0)
    assert before > 3
    assert said.loss(SAID)[1]["text_loss"] == pytest.approx(
        math.log(2) / 2, abs=0.05
    )  # a coin's toss, then a certain token
    assert accuracy(task.policy) > 0.9
    assert success(task) > 0.8


def test_the_loss_of_a_step_is_the_weighted_sum_of_its_parts():
    task, actions = task_of("token_parallel")
    model, asked, mask = (
        task.policy.model,
        questions(4, seed=0),
        torch.ones(4, actions.shape[1], dtype=torch.bool),
    )
    tasks = [
        AuxiliaryTask(0.25, lambda step: asked, Answers(model).loss),
        AuxiliaryTask(3.0, lambda step: SAID, Said(model).loss),
    ]
    batch = ImitationBatch(task.observation, actions[:4], mask, (asked, SAID))
    with torch.no_grad():
        acted, _ = cotraining_loss(
            task.policy, ImitationBatch(task.observation, actions[:4], mask), []
        )
        whole, metrics = cotraining_loss(task.policy, batch, tasks)
        parts = acted + 0.25 * Answers(model).loss(asked)[0] + 3.0 * Said(model).loss(SAID)[0]
    torch.testing.assert_close(whole, parts)
    assert {"action_loss", "answer_accuracy", "text_loss"} <= set(metrics)


def the_same_for_all(actions: torch.Tensor) -> torch.Tensor:
    """Actions that say nothing: the first one for every instruction."""
    return actions[:1].expand_as(actions)
