"""Recorded episodes: seeds, actions and what the policy thought, a few kilobytes each. Pictures are made anew when
someone looks, by giving the same actions to the same start.

recordings/
  rl-000010.safetensors    episodes of one iteration; the settings of their simulation in the file's metadata
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.types import Rollout

FORMAT = "1"


@dataclass(frozen=True)
class Recording:
    """`N` episodes of `D` decisions, an episode's decisions in the order of time.

    `episode` [D] numbers 0..N-1. `values`, `advantages` and `logprobs_after` (under the weights after the update) are
    None where there are none. `chain` are states of the denoising of flow and diffusion policies, as actions.
    `measures` holds the environment's own number for each episode.
    """

    stage: str
    iteration: int
    sim: Mapping[str, Any]
    decoding: str
    seed: Int[Tensor, "N"]
    group: Int[Tensor, "N"]
    success: Bool[Tensor, "N"]
    measures: Mapping[str, Tensor]
    episode: Int[Tensor, "D"]
    action: Float[Tensor, "D H A"]
    reward: Float[Tensor, "D"]
    logprobs: Float[Tensor, "D L"]
    mask: Bool[Tensor, "D L"]
    values: Float[Tensor, "D"] | Float[Tensor, "D L"] | None = None
    advantages: Float[Tensor, "D _"] | None = None
    logprobs_after: Float[Tensor, "D L"] | None = None
    chain: Float[Tensor, "D K H A"] | None = None

    @property
    def name(self) -> str:
        """The stem of its file."""
        return f"{self.stage}-{self.iteration:06d}"


def rows_of(rollout: Rollout, trajectories: Int[Tensor, "N"]) -> Int[Tensor, "D"]:
    """The rows of some trajectories, one after another in their order, each trajectory's in the order of time."""
    return torch.cat([(rollout.trajectory == int(i)).nonzero().squeeze(1) for i in trajectories])


def record(
    rollout: Rollout,
    trajectories: Int[Tensor, "N"],
    stage: str,
    iteration: int,
    sim: Mapping[str, Any],
    decoding: str,
    *,
    advantages: Tensor | None = None,
    logprobs_after: Tensor | None = None,
    chain: Tensor | None = None,
) -> Recording:
    """Some trajectories of a rollout of a robot policy; what is given by name is of their rows (`rows_of`) already."""
    assert rollout.action is not None
    assert rollout.success is not None
    rows = rows_of(rollout, trajectories)
    number = torch.full((rollout.num_trajectories,), -1)
    number[trajectories] = torch.arange(len(trajectories))
    measures = {name: values[trajectories].float() for name, values in rollout.episodes.items() if name != "seed"}
    return Recording(
        stage, iteration, sim, decoding,
        seed=rollout.episodes["seed"][trajectories],
        group=rollout.group[trajectories],
        success=rollout.success[trajectories] > 0.5,
        measures=measures,
        episode=number[rollout.trajectory[rows]],
        action=rollout.action[rows].float(),
        reward=rollout.rewards[rows],
        logprobs=rollout.logprobs[rows].float(),
        mask=rollout.mask[rows],
        values=None if rollout.values is None else rollout.values[rows].float(),
        advantages=advantages,
        logprobs_after=logprobs_after,
        chain=chain,
    )  # fmt: skip


def choose(rollout: Rollout, count: int) -> Int[Tensor, "N"]:
    """About `count` trajectories worth looking at: whole groups, those first in which some succeed and some fail; of
    trajectories without siblings half wins and half failures, as far as there are.
    """
    success = torch.zeros(rollout.num_trajectories) if rollout.success is None else rollout.success
    groups = torch.unique(rollout.group)
    if len(groups) == rollout.num_trajectories:
        wins, failures = (success > 0.5).nonzero().squeeze(1), (success <= 0.5).nonzero().squeeze(1)
        num_wins = min(len(wins), max(count // 2, count - len(failures)))
        return torch.cat([wins[:num_wins], failures[: count - num_wins]])
    spread = {int(g): float(rollout.returns[rollout.group == g].nan_to_num().std(correction=0)) for g in groups}
    chosen: list[Tensor] = []
    for group in sorted(spread, key=lambda g: -spread[g]):
        members = (rollout.group == group).nonzero().squeeze(1)
        if chosen and sum(map(len, chosen)) + len(members) > count:
            break
        chosen.append(members)
    return torch.cat(chosen)


TENSORS = ("seed", "group", "success", "episode", "action", "reward", "logprobs", "mask")
OPTIONAL = ("values", "advantages", "logprobs_after", "chain")


def save_recording(folder: Path, recording: Recording) -> Path:
    """Write `folder/NAME.safetensors`; the file appears when it is complete."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(recording, name) for name in TENSORS}
    tensors |= {name: getattr(recording, name) for name in OPTIONAL if getattr(recording, name) is not None}
    tensors |= {f"measure/{name}": values for name, values in recording.measures.items()}
    about = {
        "format": FORMAT,
        "stage": recording.stage,
        "iteration": str(recording.iteration),
        "decoding": recording.decoding,
        "sim": json.dumps(dict(recording.sim)),
    }
    path = folder / f"{recording.name}.safetensors"
    unfinished = path.with_name(f".unfinished-{path.name}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, about)
    unfinished.replace(path)
    return path


def load_recording(path: Path) -> Recording:
    """Read it back; ValueError when it was written by another version."""
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        about, found = opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} is a recording of format {about.get('format')}, this version reads {FORMAT}")
    measures = {name.removeprefix("measure/"): v for name, v in found.items() if name.startswith("measure/")}
    tensors = {name: found[name] for name in TENSORS} | {name: found.get(name) for name in OPTIONAL}
    return Recording(
        about["stage"],
        int(about["iteration"]),
        json.loads(about["sim"]),
        about["decoding"],
        measures=measures,
        **tensors,
    )


def list_recordings(run: Path) -> list[Path]:
    """The recordings of a run and of the evaluations under it, those of training first, oldest first."""
    return [*sorted(run.glob("recordings/*.safetensors")), *sorted(run.glob("evaluations/*/recordings/*.safetensors"))]
