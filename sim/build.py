"""Names to objects: one `match` per choice, and the errors that a wrong name deserves."""

from __future__ import annotations

from typing import Any

from sim import ROBOTS, TASKS
from sim.physics import Physics
from sim.randomize import DEFAULT_RANDOMIZATION, Randomization, check_choice, check_variety, with_overrides
from sim.render import Backend
from sim.robots.gantry import Gantry
from sim.robots.panda import Panda
from sim.robots.robot import Robot
from sim.scenes.tabletop import CAMERAS, build
from sim.task import Task
from sim.tasks.pick_place import PickPlace
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


def build_task(name: str, ranges: Randomization, num_distractors: int) -> Task:
    """The task called `name`; raises ValueError with the nearest known name."""
    match name:
        case "pick_place":
            return PickPlace(ranges, num_distractors)
    check_choice("sim.task", name, TASKS)
    raise AssertionError(name)


def build_vector(
    task: str,
    robot: str,
    num_envs: int,
    cameras: tuple[str, ...],
    image_size: int,
    max_steps: int,
    backend: Backend,
    num_threads: int,
    reward: dict[str, float],
    randomize: dict[str, Any],
    num_distractors: int,
    render_every_step: bool,
) -> VectorEnvironment:
    """Compile the scene once and put N simulations of it behind a `VectorEnvironment`; see `sim.make_vector`."""
    for setting, value, least in (
        ("num_envs", num_envs, 1),
        ("max_steps", max_steps, 1),
        ("num_threads", num_threads, 0),
    ):
        if value < least:
            raise ValueError(f"sim.{setting} ({value}) must be at least {least}")
    for camera in cameras:
        check_choice("sim.cameras", camera, CAMERAS)
    if not 0 <= num_distractors <= MAX_DISTRACTORS:
        raise ValueError(
            f"sim.num_distractors ({num_distractors}) must be from 0 to {MAX_DISTRACTORS}: the table is small"
        )
    ranges = with_overrides(DEFAULT_RANDOMIZATION, randomize)
    check_variety(ranges, 1 + num_distractors, 1 + num_distractors)
    built = build_task(task, ranges, num_distractors)
    for name in reward:
        check_choice("sim.reward", name, built.reward_names)
    tabletop = build(build_robot(robot), 1 + num_distractors, 1 + num_distractors)
    physics = Physics(tabletop, num_envs, num_threads, ranges.varied_fields)
    return VectorEnvironment(
        physics, built, cameras, image_size, max_steps, reward, backend, num_threads, render_every_step
    )


MAX_DISTRACTORS = 2
