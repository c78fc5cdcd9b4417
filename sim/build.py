"""A `VectorEnvironment` from names: robot, scene, tasks and renderer put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.choices import ROBOTS, check_choice
from sim.perturbations import PERTURBATIONS
from sim.physics import Physics
from sim.rendering.backend import Backend
from sim.robots.gantry import Gantry
from sim.robots.panda import Panda
from sim.robots.robot import Robot
from sim.scenes.tabletop import build
from sim.settings import check_settings, combined_ranges
from sim.tasks import load_task
from sim.vector import VectorEnvironment


def build_robot(name: str) -> Robot:
    """The robot called `name`; raises ValueError with the nearest known name."""
    match name:
        case "panda":
            return Panda()
        case "gantry":
            return Gantry()
    check_choice("sim.robot", name, ROBOTS)
    raise AssertionError(name)


def build_vector(
    *,
    tasks: tuple[str, ...],
    robot: str,
    num_envs: int,
    cameras: tuple[str, ...],
    image_size: int,
    max_steps: int,
    backend: Backend,
    num_threads: int,
    reward: Mapping[str, float],
    randomization: Mapping[str, Any],
    num_distractors: int,
    perturbation: str,
    render_every_step: bool,
) -> VectorEnvironment:
    """Compile the scene once and make N simulations of it; see `sim.make_vector`."""
    for setting, value, least in (
        ("num_envs", num_envs, 1),
        ("max_steps", max_steps, 1),
        ("num_threads", num_threads, 0),
    ):
        if value < least:
            raise ValueError(f"sim.{setting} ({value}) must be at least {least}")
    check_settings(
        task=tasks,
        robot=robot,
        cameras=cameras,
        reward=reward,
        randomization=randomization,
        num_distractors=num_distractors,
        perturbation=perturbation,
    )
    ranges = combined_ranges(randomization, perturbation, num_distractors)
    tabletop = build(build_robot(robot), 1 + num_distractors, 1 + num_distractors)
    return VectorEnvironment(
        physics=Physics(tabletop, num_envs, num_threads, ranges.varied_fields),
        tasks=tuple(load_task(name)(ranges) for name in tasks),
        ranges=ranges,
        paraphrased=PERTURBATIONS[perturbation].paraphrased,
        cameras=cameras,
        image_size=image_size,
        max_steps=max_steps,
        reward=reward,
        backend=backend,
        num_threads=num_threads,
        render_every_step=render_every_step,
    )
