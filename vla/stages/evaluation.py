"""Running a policy on named starts, and recording what it looks like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from vla.rl.protocols import Observe, Policy, VectorEnvironment
from vla.rl.rollout import collect_rollout
from vla.train.agreement import failing_together
from vla.train.distributed import ALONE, Processes, in_order, own_share
from vla.train.pieces import Pieces
from vla.types import Rollout


@dataclass(frozen=True)
class Episodes:
    """What happened on `n` starts: one entry a start, in the order of the seeds. `measures` are the
    environment's own ("control_steps", the best value of every reward term), [n] each.
    """

    seeds: Int[np.ndarray, "n"]
    success: Bool[np.ndarray, "n"]
    returns: Float[np.ndarray, "n"]
    num_decisions: Int[np.ndarray, "n"]
    greedy: bool
    measures: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Recording:
    """One episode as pictures: uint8 [T, h, w, 3] by camera, with what was asked and whether it was
    done."""

    seed: int
    instruction: str
    success: bool
    frames: dict[str, np.ndarray]


def evaluate_policy(
    policy: Policy,
    environment: VectorEnvironment,
    seeds: Sequence[int],
    observe: Observe,
    *,
    greedy: bool,
    on_decision: Callable[[int], None] | None = None,
    processes: Processes = ALONE,
    pieces: Pieces | None = None,
) -> Episodes:
    """One episode from every seed; each process lives its share of them, and all know what
    happened. They are kept among `pieces`.
    """

    def lived() -> Episodes:
        share, step = own_share(seeds, processes), on_decision
        rollout = collect_rollout(
            policy, environment, share, 1, observe, greedy=greedy, on_decision=step, keeper=pieces
        )
        return episodes_of(rollout, greedy)

    with failing_together(processes), processes.own_draws("evaluation"):
        own = (
            lived()
            if pieces is None
            else pieces.take(lived, lambda made: dict(vars(made)), lambda s: Episodes(**s))
        )
    return joined(processes.gather(own))


def episodes_of(rollout: Rollout, greedy: bool) -> Episodes:
    """What happened in a rollout, a trajectory an entry."""
    assert rollout.success is not None
    counts = torch.bincount(rollout.trajectory, minlength=rollout.num_trajectories).numpy()
    measures = {name: values.numpy() for name, values in rollout.episodes.items()}
    seeds = measures.pop("seed")
    return Episodes(
        seeds, rollout.success.numpy() > 0.5, rollout.returns.numpy(), counts, greedy, measures
    )


def joined(shares: list[Episodes]) -> Episodes:
    """What happened in all processes, in the order of the seeds."""
    if len(shares) == 1:
        return shares[0]

    def whole(parts: list[np.ndarray]) -> np.ndarray:
        return np.array(in_order(parts), dtype=parts[0].dtype)

    names = [name for name in shares[0].measures if all(name in share.measures for share in shares)]
    return Episodes(
        *(
            whole([getattr(share, name) for share in shares])
            for name in ("seeds", "success", "returns", "num_decisions")
        ),
        shares[0].greedy,
        {name: whole([share.measures[name] for share in shares]) for name in names},
    )


@torch.no_grad()
def record(
    policy: Policy, recorder: Any, seeds: Sequence[int], observe: Observe
) -> list[Recording]:
    """Greedy episodes from `seeds` with a picture after every control step; `recorder` renders each
    of them."""
    if not seeds:
        return []
    ids = np.arange(len(seeds))
    seen = recorder.reset(seeds, ids)
    instructions = list(seen.instruction)
    frames = [{camera: [images[i]] for camera, images in seen.images.items()} for i in ids]
    success = np.zeros(len(seeds), dtype=bool)
    running = ids
    while len(running):
        action = policy.act(observe(seen), greedy=True).action.float().cpu().numpy()
        result = recorder.step(action, running)
        for row, env in enumerate(running):
            for camera, pictures in result.frames.items():
                frames[env][camera].extend(pictures[row, : result.num_steps[row]])
        success[running] = result.success
        going = ~(result.terminated | result.truncated)
        running = running[going]
        seen = recorder.observe(running) if len(running) else seen
    return [
        Recording(
            int(seed),
            instructions[i],
            bool(success[i]),
            {c: np.stack(f) for c, f in frames[i].items()},
        )
        for i, seed in enumerate(seeds)
    ]
