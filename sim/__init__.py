"""Simulated manipulation tasks in MuJoCo, vectorised for reinforcement learning.

    env = sim.make_vector(task="pick_place", robot="panda", num_envs=64)
    observation = env.reset(seeds=range(64))
    result = env.step(actions)  # float32 [64, H, 7], a chunk of H control steps each

Imports are lazy: `import sim` loads neither MuJoCo nor a graphics library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sim.choices import CAMERAS, ROBOTS
from sim.perturbations import PERTURBATIONS
from sim.tasks import TASKS

if TYPE_CHECKING:
    from sim.gymnasium_vector import GymnasiumVector
    from sim.vector import VectorEnvironment

__all__ = ["CAMERAS", "PERTURBATIONS", "ROBOTS", "TASKS", "make_gymnasium", "make_vector"]


def make_vector(
    task: str | Sequence[str] = "pick_place",
    robot: str = "panda",
    num_envs: int = 64,
    cameras: Sequence[str] = ("front", "wrist"),
    image_size: int = 64,
    max_steps: int = 80,
    renderer: str = "auto",
    num_threads: int = 0,
    reward: Mapping[str, float] | None = None,
    randomize: Mapping[str, Any] | None = None,
    num_distractors: int = 1,
    perturbation: str = "none",
    render_every_step: bool = False,
) -> VectorEnvironment:
    """N environments of one task, or of several that take turns by seed, in this process.

    Args:
        task: one of `sim.tasks.task_names()`, or several.
        robot: one of ROBOTS.
        num_envs: environments N.
        cameras: the cameras to render, of CAMERAS; empty for none.
        image_size: height and width of the images, pixels.
        max_steps: control steps (at 20 Hz) after which an episode is truncated.
        renderer: "auto", "egl" or "warp".
        num_threads: physics and drawing threads (0: one per core).
        reward: weight per reward term; None means {"success": 1.0}, the sparse reward.
        randomize: ranges that replace those of `sim.randomize.DEFAULT_RANDOMIZATION`.
        num_distractors: blocks, and as many pads, beside the first of each.
        perturbation: one of PERTURBATIONS: a property that differs from training, for evaluation.
        render_every_step: also render after every control step.

    Raises:
        ValueError: a name is unknown (with the nearest known one) or a number is out of range.
    """
    from sim.rendering.backend import choose_backend

    backend = choose_backend(renderer)  # before MuJoCo is imported: it reads MUJOCO_GL once
    from sim.build import build_vector

    return build_vector(
        tasks=(task,) if isinstance(task, str) else tuple(task),
        robot=robot,
        num_envs=num_envs,
        cameras=tuple(cameras),
        image_size=image_size,
        max_steps=max_steps,
        backend=backend,
        num_threads=num_threads,
        reward={"success": 1.0} if reward is None else dict(reward),
        randomization={} if randomize is None else dict(randomize),
        num_distractors=num_distractors,
        perturbation=perturbation,
        render_every_step=render_every_step,
    )


def make_gymnasium(
    id: str,
    num_envs: int = 8,
    cameras: Sequence[str] = ("view",),
    image_size: int = 64,
    max_steps: int = 80,
    instruction: str = "do the task",
    success: Sequence[str] = ("is_success", "success"),
    success_return: float | None = None,
    proprio: Sequence[str] = (),
    proprio_size: int | None = None,
    reward: Mapping[str, float] | None = None,
    make: Mapping[str, Any] | None = None,
    renderer: str = "auto",
    render_every_step: bool = False,
) -> GymnasiumVector:
    """N environments of any gymnasium id, with the interface of `make_vector`'s.

    Args:
        id: an id of `gymnasium.make`: "FetchPickAndPlace-v4", "Meta-World/MT1", "module:id".
        num_envs: environments N.
        cameras: the name of its picture; empty for none.
        image_size: height and width of the pictures, pixels.
        max_steps: control steps after which an episode is truncated.
        instruction: the sentence that a policy reads.
        success: entries of `info` that mean success; the first one present counts.
        success_return: return of a success where `info` has none of them; None: no success.
        proprio: entries of a dictionary observation used as proprioception; empty: all vectors.
        proprio_size: number of their values used, from the first; None: all.
        reward: weights of "environment" (its own reward) and "success"; None means
            {"success": 1.0}.
        make: further arguments of `gymnasium.make`.
        renderer: "auto" or "egl": MuJoCo's renderer without a display.
        render_every_step: also render after every control step.

    Raises:
        ValueError: the id is unknown, its package is not installed, or its actions are no bounded
            vector.
    """
    from sim.rendering.backend import choose_backend

    choose_backend(renderer)  # before MuJoCo is imported: it reads MUJOCO_GL once
    from sim.build_gymnasium import build_gymnasium
    from sim.gymnasium_vector import GymnasiumTask

    return build_gymnasium(
        id=id,
        num_envs=num_envs,
        cameras=tuple(cameras),
        image_size=image_size,
        max_steps=max_steps,
        reward={"success": 1.0} if reward is None else dict(reward),
        make=make or {},
        task=GymnasiumTask(
            name=id,
            instruction=instruction,
            success=tuple(success),
            success_return=success_return,
            proprio=tuple(proprio),
            proprio_size=proprio_size,
        ),
        render_every_step=render_every_step,
    )
