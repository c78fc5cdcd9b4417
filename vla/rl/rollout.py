"""Rollout collection: a policy in several environments at once, with every environment busy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla.devices import to_host
from vla.rl.protocols import Critic, Observe, Policy, RolloutSaver, StepResult, VectorEnvironment
from vla.rl.rollout_state import RolloutBuffer, restore_rollout, rollout_state
from vla.types import Decision, Observation, Rollout, concatenate_rows, map_rows


@torch.no_grad()
def collect_rollout(
    policy: Policy,
    environment: VectorEnvironment,
    seeds: Sequence[int],
    group_size: int,
    observe: Observe,
    *,
    greedy: bool = False,
    version: int = 0,
    on_decision: Callable[[int], None] | None = None,
    before_step: Callable[[Observation, Decision, np.ndarray], None] | None = None,
    saver: RolloutSaver | None = None,
) -> Rollout:
    """Run `group_size` trajectories from every seed to their end.

    Trajectory `i` starts from `seeds[i // group_size]`. The policy decides for the running
    environments only. A free environment takes the next start, so the batch stays full. Rows of
    several trajectories are interleaved; those of one trajectory are in order of time. A critic
    also estimates the final observation of truncated trajectories. Observations lie on the CPU and
    the policy moves them; its decision comes back in one copy.

    Args:
        on_decision: called with the number of ended trajectories.
        before_step: called with (observation, decision, environment ids) before each execution.
        saver: saves the rollout between two decisions, and loads one of an earlier session.

    Raises:
        ValueError: for a `group_size` below 1, or no seeds.
    """
    if group_size < 1 or not len(seeds):
        raise ValueError(
            f"group_size ({group_size}) and the number of seeds ({len(seeds)}) must be at least 1"
        )
    starts = np.repeat(np.asarray(seeds, dtype=np.int64), group_size)
    store = RolloutBuffer(torch.from_numpy(starts))
    running = torch.arange(min(environment.num_envs, len(starts)))  # trajectory of each environment
    ids = np.arange(len(running))
    pending = len(running)
    saved = None if saver is None else saver.load()
    if saved is None:
        observation = observe(environment.reset(starts[: len(ids)].tolist(), ids))
    else:
        observation = restore_rollout(saved, store, environment)
        running = saved["running"]
        ids = saved["ids"]
        pending = saved["pending"]
    while len(running):
        decision = to_host(policy.act(observation, greedy=greedy))
        if before_step is not None:
            before_step(observation, decision, ids)
        result = environment.step(np.asarray(decision.action.float(), dtype=np.float32), ids)
        following = observe(result.observation)
        ended = _record(store, policy, observation, decision, result, following, running)
        free = ids[ended.numpy()]
        going = (~ended).nonzero().squeeze(1)
        fresh = torch.arange(pending, min(pending + len(free), len(starts)))
        pending += len(fresh)
        observation = (
            following
            if len(going) == len(ended)
            else map_rows(following, partial(torch.index_select, dim=0, index=going))
        )
        ids = ids[going.numpy()]
        running = running[going]
        if len(fresh):
            places = free[: len(fresh)]
            reset = observe(environment.reset(starts[fresh.numpy()].tolist(), places))
            observation = concatenate_rows([observation, reset]) if len(going) else reset
            ids = np.concatenate([ids, places])
            running = torch.cat([running, fresh])
        if on_decision is not None:
            on_decision(int((store.terminated | store.truncated).sum()))
        if saver is not None and len(running):
            saver.save_if_due(partial(rollout_state, store, running, ids, pending, observation))
    return _assemble(store, group_size, version)


def _record(
    store: RolloutBuffer,
    policy: Policy,
    observation: Observation,
    decision: Decision,
    result: StepResult,
    following: Observation,
    running: Int[Tensor, "n"],
) -> Tensor:
    """Append the rows of one step; return the mask of ended environments."""
    store.observations.append(observation)
    store.decisions.append(decision)
    store.rewards.append(torch.as_tensor(np.asarray(result.reward), dtype=torch.float32))
    store.trajectories.append(running)
    terminated = torch.as_tensor(np.asarray(result.terminated), dtype=torch.bool)
    truncated = torch.as_tensor(np.asarray(result.truncated), dtype=torch.bool) & ~terminated
    store.control_steps[running] += torch.as_tensor(
        np.asarray(result.num_steps), dtype=torch.float32
    )
    for name, values in result.metrics.items():
        store.measured.setdefault(name, torch.zeros(store.num_trajectories))
        store.measured[name][running] = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    ended = terminated | truncated
    store.terminated[running] = terminated
    store.truncated[running] = truncated
    store.success[running[ended]] = torch.as_tensor(
        np.asarray(result.success), dtype=torch.float32
    )[ended]
    if decision.values is not None and bool(truncated.any()):
        assert isinstance(policy, Critic), "a policy whose decisions have values also has value()"
        final = map_rows(following, lambda tensor: tensor[truncated])
        store.final_values[running[truncated]] = policy.value(final).float().cpu()
    return ended


def _assemble(store: RolloutBuffer, group_size: int, version: int) -> Rollout:
    decision = concatenate_rows(store.decisions)
    trajectory = torch.cat(store.trajectories)
    return Rollout(
        observation=concatenate_rows(store.observations),
        trace=decision.trace,
        logprobs=decision.logprobs,
        mask=decision.mask,
        rewards=torch.cat(store.rewards),
        trajectory=trajectory,
        terminated=store.terminated,
        truncated=store.truncated,
        group=torch.arange(store.num_trajectories) // group_size,
        version=torch.full((len(trajectory),), version),
        success=store.success,
        values=decision.values,
        final_values=None if decision.values is None else store.final_values,
        metrics={
            "control_steps": float(store.control_steps.sum()),
            "decisions": float(len(trajectory)),
        },
        exact=decision.exact,
        action=decision.action,
        episodes={"seed": store.seeds, "control_steps": store.control_steps, **store.measured},
    )


@torch.no_grad()
def collect_responses(
    policy: Policy,
    observation: Observation,
    group_size: int,
    reward: Callable[[Decision, Int[Tensor, "N"]], Float[Tensor, "N"]],
    *,
    greedy: bool = False,
    version: int = 0,
) -> Rollout:
    """Collect trajectories of one decision: `group_size` answers to every row of `observation`.

    `reward(decision, row)` scores the answers; `row` is the number of each answer's observation.
    Every trajectory terminates.

    Raises:
        ValueError: for a `group_size` below 1.
    """
    if group_size < 1:
        raise ValueError(f"group_size ({group_size}) must be at least 1")
    num_prompts = len(observation.tokens)
    row = torch.arange(num_prompts).repeat_interleave(group_size)
    repeated = map_rows(observation, lambda tensor: tensor[row.to(tensor.device)])
    decision = to_host(policy.act(repeated, greedy=greedy))
    return Rollout(
        observation=to_host(repeated),
        trace=decision.trace,
        logprobs=decision.logprobs,
        mask=decision.mask,
        rewards=reward(decision, row).float(),
        trajectory=torch.arange(len(row)),
        terminated=torch.ones(len(row), dtype=torch.bool),
        truncated=torch.zeros(len(row), dtype=torch.bool),
        group=row,
        version=torch.full((len(row),), version),
        values=decision.values,
        final_values=None if decision.values is None else torch.zeros(len(row)),
        exact=decision.exact,
    )
