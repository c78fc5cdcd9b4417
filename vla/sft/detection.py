"""Detection beside question answering: every image token says which objects lie in its cell, and
where they are.

Question answering alone has to find the way from a word to a patch before any gradient says what a
patch should hold; measured on the tiny model, 300 steps of 64 scenes did not leave the plateau of
guessing places. A linear head on the image tokens gives each of them its own target (as dense
detectors do: Redmon et al. 2016, YOLO); it is thrown away after grounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vla.collectives import ReduceSum, single_process

PLACE_SCALE = 0.1
"""Places are predicted in units of 10 cm."""


DetectedObject = tuple[float, float, int, tuple[float, float, float], tuple[float, float]]
"""How far right and down in the picture (fractions), kind, place (metres), heading."""


@dataclass(frozen=True)
class CellTargets:
    """For every image token: the kind, place (metres) and heading (cosine, sine) of an object whose
    centre lies in its cell, where it is `occupied`.
    """

    kinds: Int[Tensor, "B p"]
    places: Float[Tensor, "B p 3"]
    headings: Float[Tensor, "B p 2"]
    occupied: Bool[Tensor, "B p"]


class DetectionHead(nn.Module):
    """Image tokens [B, p, d] to kinds (logits [B, p, K + 1], the last one: nothing), places [B, p,
    3] in units of 10 cm, and headings [B, p, 2].

    A token names a kind by its likeness to the sum of the words' embeddings, so image tokens come
    to look like the words for what they show (as in CLIP, Radford et al. 2021).
    """

    def __init__(self, width: int, words: Sequence[Sequence[int]]):
        super().__init__()
        self.words = [torch.tensor(list(ids)) for ids in words]
        self.place = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 5))
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.nothing = nn.Parameter(torch.tensor(0.0))

    def forward(
        self, tokens: Float[Tensor, "B p d"], embeddings: Float[Tensor, "V d"]
    ) -> tuple[Float[Tensor, "B p k"], Float[Tensor, "B p 3"], Float[Tensor, "B p 2"]]:
        names = torch.stack([embeddings[ids].sum(0) for ids in self.words])
        likeness = (
            self.scale
            * functional.normalize(tokens, dim=-1)
            @ functional.normalize(names, dim=-1).T
        )
        kinds = torch.cat([likeness, self.nothing.expand(*tokens.shape[:2], 1)], dim=-1)
        return kinds, *self.place(tokens).split((3, 2), dim=-1)


def grounded_phrase_loss(
    head: nn.Module,
    states: Float[Tensor, "B T d"],
    positions: Int[Tensor, "B m"],
    places: Float[Tensor, "B m 3"],
    headings: Float[Tensor, "B m 2"],
) -> Float[Tensor, ""]:
    """Absolute error, in units of 10 cm, of where the objects are that the words at `positions`
    name, and of how they are turned.

    `states` enter one of the later layers: what a name has looked up there, queries behind it can
    read.
    """
    rows = torch.arange(len(positions))[:, None]
    place, heading = head(states[rows, positions]).split((3, 2), dim=-1)
    return (place - places / PLACE_SCALE).abs().mean() + (heading - headings).abs().mean()


def build_cell_targets(
    seen: Sequence[Mapping[str, Sequence[DetectedObject]]],
    cameras: Sequence[str],
    grid: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Targets of scenes as arrays (kinds, places, headings, occupied) over `len(cameras) * grid *
    grid` cells, cameras first.
    """
    cells = grid * grid
    kinds = np.zeros((len(seen), len(cameras) * cells), dtype=np.int64)
    places = np.zeros((*kinds.shape, 3), dtype=np.float32)
    headings = np.zeros((*kinds.shape, 2), dtype=np.float32)
    occupied = np.zeros(kinds.shape, dtype=bool)
    for row, by_camera in enumerate(seen):
        for number, camera in enumerate(cameras):
            for right, down, kind, place, heading in by_camera[camera]:
                cell = (
                    number * cells
                    + min(int(down * grid), grid - 1) * grid
                    + min(int(right * grid), grid - 1)
                )
                kinds[row, cell], places[row, cell], headings[row, cell] = kind, place, heading
                occupied[row, cell] = True
    return kinds, places, headings, occupied


def detection_loss(
    head: DetectionHead,
    tokens: Float[Tensor, "B p d"],
    embeddings: Float[Tensor, "V d"],
    targets: CellTargets,
    reduce_sum: ReduceSum = single_process,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Cross-entropy of kinds over all cells plus absolute errors of places and headings in occupied
    ones, per occupied cell.
    """
    logits, places, headings = head(tokens, embeddings)
    count = reduce_sum(targets.occupied.sum()).clamp(min=1)
    wanted = torch.where(targets.occupied, targets.kinds, logits.shape[-1] - 1)
    kind = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum") / count
    wrong = (places - targets.places / PLACE_SCALE).abs().mean(-1)
    place = (wrong * targets.occupied).sum() / count
    turned = (headings - targets.headings).abs().mean(-1)
    heading = (turned * targets.occupied).sum() / count
    with torch.no_grad():
        hit = logits[..., :-1].argmax(-1) == targets.kinds
        metrics = {
            "detection_accuracy": float(hit[targets.occupied].float().sum() / count),
            "detection_error": float(place) * PLACE_SCALE,
            "heading_error": float(heading),
        }
    return kind + place + heading, metrics
