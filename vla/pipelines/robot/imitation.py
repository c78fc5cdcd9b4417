"""Imitation batches and their losses: demonstrations and auxiliary tasks in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla.collectives import ReduceSum, single_process
from vla.data.augment import random_light, random_shift
from vla.data.demonstrations import DemonstrationBatch, Demonstrations
from vla.data.observations import Observer
from vla.pipelines.robot.cotraining import AuxiliaryTask
from vla.policies.vla_policy import VlaPolicy
from vla.sft.loop import Metrics
from vla.sft.losses import imitation_loss
from vla.training.distributed import SINGLE_PROCESS, Processes, shard_rows
from vla.types import Observation, map_rows


@dataclass(frozen=True)
class ImitationBatch:
    """Frames with the action chunks that follow them, and the batches of auxiliary tasks.

    `weight` is the share of a micro-batch in the loss of the whole batch of all processes; None:
    the batch is whole. `auxiliary` is None in a micro-batch that leaves these tasks to another.
    """

    observation: Observation
    actions: Float[Tensor, "B H A"]
    action_mask: Bool[Tensor, "B H"]
    auxiliary: tuple[Any, ...] | None = ()
    weight: float | None = None


@dataclass(frozen=True)
class Augmentation:
    """Image augmentation: largest shift (pixels), largest relative change of light."""

    shift_pixels: int
    light: float

    def apply(self, observation: Observation) -> Observation:
        """The observation with augmented images."""
        images = {
            name: random_light(random_shift(image, self.shift_pixels), self.light)
            for name, image in observation.images.items()
        }
        return replace(observation, images=images)


@dataclass(frozen=True)
class ImitationBatches:
    """Batches by step: every epoch visits all frames in a new order.

    Each of several processes gets its share of the rows.
    """

    demonstrations: Demonstrations
    observer: Observer
    chunk: int
    batch_size: int
    augmentation: Augmentation
    seed: int
    tasks: Sequence[AuxiliaryTask]
    processes: Processes = SINGLE_PROCESS

    def frames(self, step: int) -> np.ndarray:
        """The frames in the batch of a step, int64 [batch_size]."""
        count = self.demonstrations.num_frames
        indices = range(step * self.batch_size, (step + 1) * self.batch_size)
        orders = {
            epoch: np.random.default_rng([self.seed, epoch]).permutation(count)
            for epoch in {index // count for index in indices}
        }
        return np.array([orders[index // count][index % count] for index in indices])

    def __call__(self, step: int) -> ImitationBatch:
        """The batch of a step."""
        frames = shard_rows(self.frames(step), self.processes)
        batch = self.demonstrations.batch(frames, self.chunk)
        auxiliary = tuple(task.batch(step) for task in self.tasks)
        with self.processes.process_rng("augmentation", step):
            observation = self.augmentation.apply(self.observer(batch))
        actions, action_mask = action_tensors(batch)
        return ImitationBatch(observation, actions, action_mask, auxiliary)


def action_tensors(
    batch: DemonstrationBatch,
) -> tuple[Float[Tensor, "B H A"], Bool[Tensor, "B H"]]:
    """Actions of a batch, and the mask of those that count."""
    return torch.from_numpy(batch.actions), torch.from_numpy(batch.action_mask)


def select_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor by number."""
    return tensor[rows]


def split_batch(
    policy: VlaPolicy,
    batch: ImitationBatch,
    num_rows: int,
    reduce_sum: ReduceSum = single_process,
) -> list[ImitationBatch]:
    """Micro-batches of at most `num_rows` frames, whose losses add up to that of the batch.

    Auxiliary tasks have batch sizes of their own: they go with the first micro-batch.
    """
    counts = policy.count_terms(batch.actions, batch.action_mask).double().cpu()
    total = float(reduce_sum(counts.sum()).clamp(min=1))
    pieces: list[ImitationBatch] = []
    for rows in torch.arange(len(counts)).split(num_rows):
        observation = map_rows(batch.observation, partial(select_rows, rows=rows))
        pieces.append(
            ImitationBatch(
                observation,
                batch.actions[rows],
                batch.action_mask[rows],
                None if pieces else batch.auxiliary,
                float(counts[rows].sum()) / total,
            )
        )
    return pieces


def cotraining_loss(
    policy: VlaPolicy,
    batch: ImitationBatch,
    tasks: Sequence[AuxiliaryTask],
    reduce_sum: ReduceSum = single_process,
) -> tuple[Tensor, Metrics]:
    """Imitation loss plus the weighted losses of the auxiliary tasks."""
    # A micro-batch knows its weight: the number of them may differ between processes, which must
    # not wait for one another here.
    chunks = (batch.observation, batch.actions, batch.action_mask)
    if batch.weight is None:
        loss = imitation_loss(policy, *chunks, reduce_sum)
    else:
        loss = imitation_loss(policy, *chunks) * batch.weight
    metrics = {"action_loss": float(loss.detach())}
    if batch.auxiliary is None:
        return loss, metrics
    for task, part in zip(tasks, batch.auxiliary, strict=True):
        task_loss, task_metrics = task.loss(part)
        loss = loss + task.weight * task_loss
        metrics |= task_metrics
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
    """Mean action loss on evenly spaced frames of held-out demonstrations.

    The random numbers in the loss (noise, times) are the same at every call, and the run's own
    random state is left as it is.
    """
    num_rows = min(max_rows, demonstrations.num_frames)
    frames = np.linspace(0, demonstrations.num_frames - 1, num_rows).astype(np.int64)
    total = 0.0
    count = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for start in shard_rows(range(0, num_rows, rows_at_once), processes):
            batch = demonstrations.batch(frames[start : start + rows_at_once], policy.chunk)
            actions, action_mask = action_tensors(batch)
            terms, mask = policy.imitation_terms(observer(batch), actions, action_mask)
            total += float((terms * mask).sum())
            count += float(mask.sum())
    sums = processes.reduce_sum(torch.tensor([total, count], dtype=torch.float64))
    total, count = sums.tolist()
    return total / max(count, 1.0)
