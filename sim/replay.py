"""Replay: an episode simulated again from its seed and its actions, with poses and pictures.

Physics is deterministic: the same start and actions give the same motion. Training therefore
renders nothing for the viewer, and a replay renders only the episodes that someone opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np

from sim.diagnosis import REACHED, EpisodeTrace, Reason
from sim.task import Task
from sim.vector import VectorEnvironment

SHAPE_NAMES = {
    mujoco.mjtGeom.mjGEOM_PLANE: "plane",
    mujoco.mjtGeom.mjGEOM_BOX: "box",
    mujoco.mjtGeom.mjGEOM_SPHERE: "sphere",
    mujoco.mjtGeom.mjGEOM_CAPSULE: "capsule",
    mujoco.mjtGeom.mjGEOM_CYLINDER: "cylinder",
    mujoco.mjtGeom.mjGEOM_ELLIPSOID: "ellipsoid",
}
SMALLEST = 0.0012
"""Metres: a smaller geom is one that hides inside another."""


@dataclass(frozen=True)
class Shape:
    """A primitive fixed to a body: MuJoCo's kind and sizes, colour, and pose in the body's
    frame."""

    kind: str
    size: tuple[float, ...]
    rgba: tuple[float, ...]
    body: int
    position: tuple[float, ...]
    quaternion: tuple[float, ...]


@dataclass
class Replay:
    """An episode of T control steps; entries [T + 1] begin with the start.

    Attributes:
        instruction: the sentence of the episode.
        shapes: the visible primitives.
        poses: position and quaternion (w x y z) of every body, [T + 1][bodies, 7].
        frames: uint8 pictures by camera [T + 1][h, w, 3].
        hand: measured tcp position [T + 1][3], metres.
        commanded: commanded tcp pose [T + 1][6].
        opening: metres between the fingers [T + 1].
        targets: position of every object that the instruction names, by name [T + 1][3].
        others: position of every other block, by name [T + 1][3].
        held: name of the object in the hand, or None [T + 1].
        terms: best value so far of every reward term [T + 1].
        reward: of every control step [T].
        decision: index of the decision that each control step belongs to [T].
        success: whether the task was done at the end.
        reason: why it failed, by the task's own diagnosis; None for a success.
    """

    instruction: str
    shapes: list[Shape]
    poses: list[np.ndarray] = field(default_factory=list)
    frames: dict[str, list[np.ndarray]] = field(default_factory=dict)
    hand: list[np.ndarray] = field(default_factory=list)
    commanded: list[np.ndarray] = field(default_factory=list)
    opening: list[float] = field(default_factory=list)
    targets: dict[str, list[np.ndarray]] = field(default_factory=dict)
    others: dict[str, list[np.ndarray]] = field(default_factory=dict)
    held: list[str | None] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    reward: list[float] = field(default_factory=list)
    decision: list[int] = field(default_factory=list)
    success: bool = False
    reason: Reason | None = None


def replay(
    env: VectorEnvironment, seeds: Sequence[int], actions: Sequence[np.ndarray], look: bool = True
) -> list[Replay]:
    """The episodes of `seeds` again: `actions[i]` is float32 [decisions, H, A].

    `env.num_envs` of them run at once. Without `look` nothing is rendered. Raises the ValueErrors
    of `sim.vector.VectorEnvironment.step`.
    """
    replays: list[Replay] = []
    for at in range(0, len(seeds), env.num_envs):
        replays += _replay_batch(
            env, seeds[at : at + env.num_envs], actions[at : at + env.num_envs], look
        )
    return replays


def _replay_batch(
    env: VectorEnvironment, seeds: Sequence[int], actions: Sequence[np.ndarray], look: bool
) -> list[Replay]:
    ids = np.arange(len(seeds))
    # Bound before anything is computed: what is bound is filled by the next computation.
    bodies = env.physics.batch.bind("xpos"), env.physics.batch.bind("xquat")
    env.reset(seeds, ids, render=False)
    replays = [
        Replay(text, visible_shapes(env, i))
        for i, text in enumerate(env.instructions[: len(seeds)])
    ]
    _record(env, bodies, replays, ids, look)
    steps = [np.concatenate(list(a)) for a in actions]
    horizons = [a.shape[1] for a in actions]
    running: np.ndarray = ids
    for t in range(max(map(len, steps), default=0)):
        running = np.array([i for i in running if t < len(steps[i])], dtype=np.int64)
        if not len(running):
            break
        result = env.step(np.stack([steps[i][t] for i in running])[:, None], running, render=False)
        for row, i in enumerate(running):
            one = replays[i]
            one.reward.append(float(result.reward[row]))
            one.decision.append(t // horizons[i])
            one.success = bool(result.success[row])
            for name, values in result.metrics.items():
                if not np.isnan(values[row]):  # a term of another task
                    one.terms.setdefault(name, [0.0]).append(float(values[row]))
        _record(env, bodies, replays, running, look)
        running = running[~(result.terminated | result.truncated)]
    for task, rows in env.by_task(ids):
        for i in rows:
            replays[i].reason = failure_reason(replays[i], task)
    return replays


def failure_reason(episode: Replay, task: Task) -> Reason | None:
    """Why an episode failed, by its task's diagnosis; None for a success or an empty
    instruction."""
    if episode.success or not episode.targets:
        return None
    reached = {
        # Where several tasks run, a term is called "task/term".
        name.rpartition("/")[2]: int(np.argmax(np.array(values) > REACHED))
        for name, values in episode.terms.items()
        if max(values) > REACHED
    }
    trace = EpisodeTrace(
        hand=np.array(episode.hand),
        opening=np.array(episode.opening),
        held=list(episode.held),
        named={name: np.array(positions) for name, positions in episode.targets.items()},
        others={name: np.array(positions) for name, positions in episode.others.items()},
        reached=reached,
    )
    return task.diagnose(trace)


def _record(
    env: VectorEnvironment,
    bodies: tuple[np.ndarray, np.ndarray],
    replays: list[Replay],
    ids: np.ndarray,
    look: bool,
) -> None:
    """Append the present state of the environments `ids` to their replays."""
    images = env.observe(ids).images if look else {}
    physics = env.physics
    hand = physics.hand_position(ids)
    opening = physics.gripper_opening(ids)
    for row, (i, facts) in enumerate(zip(ids, env.facts(ids), strict=True)):
        one = replays[i]
        one.poses.append(np.concatenate([bodies[0][i], bodies[1][i]], axis=1).astype(np.float32))
        for camera, pictures in images.items():
            one.frames.setdefault(camera, []).append(pictures[row])
        one.hand.append(hand[row].copy())
        one.commanded.append(physics.commanded[i].copy())
        one.opening.append(float(opening[row]))
        one.held.append(None if facts.grasped is None else facts.objects[facts.grasped].name)
        for thing in facts.objects:
            if thing.role == "target" or thing.kind == "block":
                places = one.targets if thing.role == "target" else one.others
                places.setdefault(thing.name, []).append(np.array(thing.position))


def visible_shapes(env: VectorEnvironment, i: int) -> list[Shape]:
    """The visible primitives of environment `i`, in its own colours and sizes."""
    model = env.physics.model
    fields = env.physics.fields
    sizes = fields["geom_size"][i]
    colours = fields["geom_rgba"][i]
    shapes = []
    for geom in range(model.ngeom):
        kind = SHAPE_NAMES.get(mujoco.mjtGeom(int(model.geom_type[geom])))
        if (
            kind is None
            or colours[geom][3] == 0
            or (kind != "plane" and sizes[geom].max() < SMALLEST)
        ):
            continue
        numbers: list[Any] = [
            sizes[geom],
            colours[geom],
            model.geom_pos[geom],
            model.geom_quat[geom],
        ]
        size, rgba, position, quaternion = (
            tuple(round(float(v), 5) for v in values) for values in numbers
        )
        shapes.append(Shape(kind, size, rgba, int(model.geom_bodyid[geom]), position, quaternion))
    return shapes
