"""Simulated manipulation tasks in MuJoCo, built for reinforcement learning: many environments, few
pictures.

    env = sim.make_vector(task="pick_place", robot="panda", num_envs=64)
    observation = env.reset(seeds=range(64))
    result = env.step(actions)                  # actions float32 [64, H, 7], one chunk of H control steps each

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
    """Many environments of one task, or of several that take turns by seed, in this process.

    Args:
        task: one of `sim.tasks.task_names()`, or several.
        robot: one of ROBOTS.
        num_envs: environments N.
        cameras: which cameras to draw; empty for none.
        image_size: height and width of the images, pixels.
        max_steps: control steps (at 20 Hz) after which an episode is truncated.
        renderer: "auto", "egl" or "warp".
        num_threads: physics and drawing threads (0: one per core).
        reward: weight per reward term; None means {"success": 1.0}, the sparse reward.
        randomize: ranges that replace those of `sim.randomize.DEFAULT_RANDOMIZATION`.
        num_distractors: blocks, and as many pads, beside the ones that the instruction names.
        perturbation: one of PERTURBATIONS: what differs from training, for evaluation; see `sim.perturbations`.
        render_every_step: also give pictures after every control step.

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
    """Many environments of anything that gymnasium can make, with the interface of `make_vector`'s.

    Args:
        id: what `gymnasium.make` takes: "FetchPickAndPlace-v4", "Meta-World/MT1", "module:id".
        num_envs: environments N.
        cameras: the name that its picture goes by; empty for none.
        image_size: height and width of the pictures, pixels.
        max_steps: control steps after which an episode is truncated.
        instruction: the sentence that a policy reads.
        success: entries of `info` that mean success; the first one that is there counts.
        success_return: where there is none, the return of a success; None: nothing is one.
        proprio: entries of a dictionary observation to show as proprioception; empty: all vectors.
        proprio_size: how many of their numbers, from the first; None: all.
        reward: weights of "environment" (its own reward) and "success"; None means {"success": 1.0}.
        make: further arguments of `gymnasium.make`.
        renderer: "auto" or "egl": how MuJoCo draws without a display.
        render_every_step: also give pictures after every control step.

    Raises:
        ValueError: it does not exist, what brings it is not installed, or its actions are no bounded vector.
    """
    from sim.rendering.backend import choose_backend

    choose_backend(renderer)  # before MuJoCo is imported: it reads MUJOCO_GL once
    from sim.build_gymnasium import build_gymnasium
    from sim.gymnasium_vector import GymnasiumTask

    task = GymnasiumTask(
        id, instruction, tuple(success), success_return, tuple(proprio), proprio_size
    )
    weights = {"success": 1.0} if reward is None else dict(reward)
    return build_gymnasium(
        id,
        num_envs,
        tuple(cameras),
        image_size,
        max_steps,
        weights,
        make or {},
        task,
        render_every_step,
    )
