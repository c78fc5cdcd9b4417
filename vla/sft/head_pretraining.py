"""The head first: what a frozen model has seen is computed once, and the head learns from that.

A head of random weights sends the gradients of a beginner through a model that already knows how to
see; probing before fine-tuning avoids it (Kumar et al. 2022, "Fine-tuning can distort pretrained
features"). It is also cheap: on a CPU a step on stored features takes a fiftieth of one through the
vision-language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla.policies.vla_policy import VlaPolicy
from vla.sft.loop import Metrics, SupervisedSettings, SupervisedTrainer
from vla.sft.losses import global_fraction
from vla.training.distributed import SINGLE_PROCESS, Processes
from vla.types import Observation, concatenate_rows, map_rows


@dataclass(frozen=True)
class CachedFeatures:
    """What a frozen model has seen of N frames, with the actions after each."""

    hidden: Float[Tensor, "N q d"]
    observation: Observation
    actions: Float[Tensor, "N H A"]
    action_mask: Bool[Tensor, "N H"]

    def __len__(self) -> int:
        return len(self.hidden)

    def batch(self, rows: Tensor) -> tuple[Tensor, Observation, Tensor, Tensor]:
        seen = self.observation
        assert seen.proprio is not None
        part = map_rows(seen, lambda tensor: tensor[rows])
        hidden = self.hidden[rows]
        hidden = hidden.float() if hidden.dtype == torch.float16 else hidden
        return hidden, part, self.actions[rows], self.action_mask[rows]


@torch.no_grad()
def extract_features(
    policy: VlaPolicy, batches: Iterator[tuple[Observation, Tensor, Tensor]]
) -> CachedFeatures:
    """Run the model once over all batches of (observation, actions, mask); the pictures are not
    kept."""
    kept = [
        (compress_features(policy.perceive(seen)), replace(seen, images={}), actions, mask)
        for seen, actions, mask in batches
    ]
    hidden, seen, actions, mask = zip(*kept, strict=True)
    return CachedFeatures(
        torch.cat(hidden), concatenate_rows(list(seen)), torch.cat(actions), torch.cat(mask)
    )


MOST_IN_FULL = 8192
"""Numbers of a frame up to which they are kept in float32: keys and values of all layers are more,
and take half."""


def compress_features(hidden: Float[Tensor, "B q d"]) -> Float[Tensor, "B q d"]:
    """What is kept of a batch: as it is, or in float16 where it is much."""
    much = hidden.dtype == torch.float32 and hidden[0].numel() > MOST_IN_FULL
    return hidden.half() if much else hidden


def train_head(
    policy: VlaPolicy,
    features: CachedFeatures,
    settings: SupervisedSettings,
    on_step: Callable[[int, Metrics], bool | None],
    processes: Processes = SINGLE_PROCESS,
) -> None:
    """Train the head of `policy` in place, on random batches of the features. Of many
    processes each has the features of its share of the frames, and handles the rows of a batch that
    are among them.
    """
    num_frames = int(processes.reduce_sum(torch.tensor(len(features))))

    def loss_of(rows: Tensor) -> tuple[Tensor, Metrics]:
        hidden, seen, actions, mask = features.batch(
            rows if len(rows) else torch.zeros(1, dtype=torch.long)
        )
        terms, counts = policy.imitation_terms(seen, actions, mask & bool(len(rows)), hidden)
        return (terms * counts).sum() / counts.sum().clamp(min=1) * global_fraction(
            counts.sum(), processes.reduce_sum
        ), {}

    def batches(step: int) -> list[Tensor]:
        rows = torch.randint(num_frames, (min(settings.batch_size, num_frames),))
        return [rows[rows % processes.num_processes == processes.rank] // processes.num_processes]

    with train_head_only(policy):
        SupervisedTrainer(policy, settings, processes=processes).train(batches, loss_of, on_step)


@contextmanager
def train_head_only(policy: VlaPolicy) -> Iterator[None]:
    """Within the block nothing but the head is trained."""
    frozen = [p for p in policy.model_parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
