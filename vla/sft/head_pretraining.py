"""Head pretraining: the policy head is trained on cached features of the frozen model (LP-FT).

Gradients of a randomly initialised head distort pretrained features; training the head first avoids
this (Kumar et al. 2022, "Fine-tuning can distort pretrained features"). It is also cheap: on a CPU
a step on cached features takes a fiftieth of a step through the vision-language model.
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
    """Features `hidden` of N frames from the frozen model, with the action chunk after each."""

    hidden: Float[Tensor, "N q d"]
    observation: Observation
    actions: Float[Tensor, "N H A"]
    action_mask: Bool[Tensor, "N H"]

    def __len__(self) -> int:
        return len(self.hidden)

    def batch(self, rows: Tensor) -> tuple[Tensor, Observation, Tensor, Tensor]:
        """Features in float32, observation, actions and mask of some rows."""
        assert self.observation.proprio is not None
        part = map_rows(self.observation, lambda tensor: tensor[rows])
        hidden = self.hidden[rows]
        hidden = hidden.float() if hidden.dtype == torch.float16 else hidden
        return hidden, part, self.actions[rows], self.action_mask[rows]


@torch.no_grad()
def extract_features(
    policy: VlaPolicy, batches: Iterator[tuple[Observation, Tensor, Tensor]]
) -> CachedFeatures:
    """Run the model once over batches of (observation, actions, mask); images are not cached."""
    parts = [
        CachedFeatures(
            compress_features(policy.perceive(observation)),
            replace(observation, images={}),
            actions,
            mask,
        )
        for observation, actions, mask in batches
    ]
    return CachedFeatures(
        torch.cat([part.hidden for part in parts]),
        concatenate_rows([part.observation for part in parts]),
        torch.cat([part.actions for part in parts]),
        torch.cat([part.action_mask for part in parts]),
    )


MAX_FLOAT32_VALUES = 8192
"""Most values of a frame that are cached in float32. Keys and values of all layers are more, and
are cached in float16."""


def compress_features(hidden: Float[Tensor, "B q d"]) -> Float[Tensor, "B q d"]:
    """Features as they are cached: in float16 above `MAX_FLOAT32_VALUES` values of a frame."""
    is_large = hidden.dtype == torch.float32 and hidden[0].numel() > MAX_FLOAT32_VALUES
    return hidden.half() if is_large else hidden


def train_head(
    policy: VlaPolicy,
    features: CachedFeatures,
    settings: SupervisedSettings,
    on_step: Callable[[int, Metrics], bool | None],
    processes: Processes = SINGLE_PROCESS,
) -> None:
    """Train the head of `policy` in place on random batches of cached features.

    Each of several processes caches its share of the frames, and computes the rows of a batch that
    are in its cache.
    """
    num_frames = int(processes.reduce_sum(torch.tensor(len(features))))

    def compute_loss(rows: Tensor) -> tuple[Tensor, Metrics]:
        # A process without a row of the batch computes one masked row: its loss is 0, and it still
        # takes part in the sums over processes.
        has_rows = len(rows) > 0
        hidden, observation, actions, mask = features.batch(
            rows if has_rows else torch.zeros(1, dtype=torch.long)
        )
        terms, counts = policy.imitation_terms(observation, actions, mask & has_rows, hidden)
        own_mean = (terms * counts).sum() / counts.sum().clamp(min=1)
        return own_mean * global_fraction(counts.sum(), processes.reduce_sum), {}

    def batches(step: int) -> list[Tensor]:
        # All processes draw the same rows: row r is in the cache of process r % num_processes.
        rows = torch.randint(num_frames, (min(settings.batch_size, num_frames),))
        return [rows[rows % processes.num_processes == processes.rank] // processes.num_processes]

    with train_head_only(policy):
        SupervisedTrainer(policy, settings, processes=processes).train(
            batches, compute_loss, on_step
        )


@contextmanager
def train_head_only(policy: VlaPolicy) -> Iterator[None]:
    """Freeze all parameters but the head's within the block."""
    frozen = [p for p in policy.model_parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
