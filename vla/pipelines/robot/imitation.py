"""Supervised fine-tuning: a policy imitates demonstrations, and keeps its words while it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla.collectives import ReduceSum, single_process
from vla.data.augment import random_light, random_shift
from vla.data.demonstrations import DemonstrationBatch, Demonstrations
from vla.data.observations import Observer
from vla.pipelines.robot.cotraining import AuxiliaryTask
from vla.policies.vla_policy import VlaPolicy
from vla.sft.losses import imitation_loss
from vla.training.distributed import SINGLE_PROCESS, Processes, shard_rows
from vla.types import Observation


@dataclass(frozen=True)
class ImitationBatch:
    """Frames with the actions after them, and what is learned beside them: pictures with questions,
    texts."""

    observation: Observation
    actions: Tensor
    action_mask: Tensor
    beside: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Augmentation:
    """Largest shift in pixels, and largest change of light as a share."""

    shift_pixels: int
    light: float

    def apply(self, observation: Observation) -> Observation:
        images = {
            n: random_light(random_shift(i, self.shift_pixels), self.light)
            for n, i in observation.images.items()
        }
        return replace(observation, images=images)


@dataclass(frozen=True)
class ImitationBatches:
    """Batches by number: every epoch is all frames in a new order, with what is learned `beside`
    them. Of many processes each has its share of the rows.
    """

    demonstrations: Demonstrations
    observer: Observer
    chunk: int
    batch_size: int
    augmentation: Augmentation
    seed: int
    beside: Sequence[AuxiliaryTask]
    processes: Processes = SINGLE_PROCESS

    def frames(self, step: int) -> np.ndarray:
        """Which frames the batch of this step holds."""
        count = self.demonstrations.num_frames
        at = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        orders = {
            epoch: np.random.default_rng([self.seed, epoch]).permutation(count)
            for epoch in set(at // count)
        }
        return np.array([orders[i // count][i % count] for i in at])

    def __call__(self, step: int) -> ImitationBatch:
        batch = self.demonstrations.batch(shard_rows(self.frames(step), self.processes), self.chunk)
        beside = tuple(each.batch(step) for each in self.beside)
        with self.processes.process_rng("augmentation", step):
            seen = self.augmentation.apply(self.observer(batch))
        return ImitationBatch(seen, *action_tensors(batch), beside)


def action_tensors(batch: DemonstrationBatch) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(batch.actions), torch.from_numpy(batch.action_mask)


def cotraining_loss(
    policy: VlaPolicy,
    batch: ImitationBatch,
    beside: Sequence[AuxiliaryTask],
    reduce_sum: ReduceSum = single_process,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of actions plus that of everything beside them, by its weight, in one step."""
    action = imitation_loss(policy, batch.observation, batch.actions, batch.action_mask, reduce_sum)
    loss, metrics = action, {"action_loss": float(action.detach())}
    for each, part in zip(beside, batch.beside, strict=True):
        other, other_metrics = each.loss(part)
        loss, metrics = loss + each.weight * other, metrics | other_metrics
    return loss, metrics


@torch.no_grad()
def held_out_loss(
    policy: VlaPolicy,
    demonstrations: Demonstrations,
    observer: Observer,
    rows_at_once: int,
    max_rows: int = 1024,
    processes: Processes = SINGLE_PROCESS,
) -> float:
    """Mean action loss on evenly spaced frames of demonstrations that were not trained on.

    What a policy draws for its loss (noise, times) is the same at every call, and leaves the run's
    own draws alone.
    """
    count = min(max_rows, demonstrations.num_frames)
    frames = np.linspace(0, demonstrations.num_frames - 1, count).astype(np.int64)
    total = counted = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for at in shard_rows(range(0, count, rows_at_once), processes):
            batch = demonstrations.batch(frames[at : at + rows_at_once], policy.chunk)
            terms, mask = policy.imitation_terms(observer(batch), *action_tensors(batch))
            total += float((terms * mask).sum())
            counted += float(mask.sum())
    total, counted = processes.reduce_sum(
        torch.tensor([total, counted], dtype=torch.float64)
    ).tolist()
    return total / max(counted, 1.0)
