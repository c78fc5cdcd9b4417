"""Names to objects: one `match` per choice, and the errors that a wrong name deserves."""

from __future__ import annotations

from typing import Any

from sim import CAMERAS, ROBOTS, TASKS
from sim.perturbations import PERTURBATIONS
from sim.physics import Physics
from sim.randomize import (
    DEFAULT_RANDOMIZATION,
    Randomization,
    check_choice,
    check_variety,
    with_overrides,
)
from sim.render import Backend
from sim.robots.gantry import Gantry
from sim.robots.panda import Panda
from sim.robots.robot import Robot
from sim.scenes.tabletop import build
from sim.task import Task
from sim.tasks.lift import Lift
from sim.tasks.pick_place import PickPlace
from sim.tasks.push import Push
from sim.tasks.reach import Reach
from sim.tasks.stack import Stack
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


def build_task(name: str, ranges: Randomization) -> Task:
    """The task called `name`; raises ValueError with the nearest known name."""
    match name:
        case "reach":
            return Reach(ranges)
        case "push":
            return Push(ranges)
        case "lift":
            return Lift(ranges)
        case "pick_place":
            return PickPlace(ranges)
        case "stack":
            return Stack(ranges)
    check_choice("sim.task", name, TASKS)
    raise AssertionError(name)


def build_tasks(
    names: tuple[str, ...], ranges: Randomization, num_distractors: int
) -> tuple[Task, ...]:
    """The tasks that take turns; raises ValueError where there are none or the scene has too few
    blocks for one."""
    if not names:
        raise ValueError(f"sim.task is empty; name one or more of {', '.join(TASKS)}")
    if "stack" in names and num_distractors < 1:
        raise ValueError("sim.task=stack needs two blocks; set sim.num_distractors to 1 or 2")
    return tuple(build_task(name, ranges) for name in names)


def build_vector(
    tasks: tuple[str, ...],
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
    perturbation: str,
    render_every_step: bool,
) -> VectorEnvironment:
    """Compile the scene once and put N simulations of it behind a `VectorEnvironment`; see
    `sim.make_vector`."""
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
    check_choice("sim.perturbation", perturbation, tuple(PERTURBATIONS))
    perturbed = PERTURBATIONS[perturbation]
    ranges = with_overrides(
        with_overrides(DEFAULT_RANDOMIZATION, randomize), dict(perturbed.ranges)
    )
    check_variety(ranges, 1 + num_distractors, 1 + num_distractors)
    built = build_tasks(tasks, ranges, num_distractors)
    for name in reward:
        check_choice("sim.reward", name, REWARDS)
    tabletop = build(build_robot(robot), 1 + num_distractors, 1 + num_distractors)
    physics = Physics(tabletop, num_envs, num_threads, ranges.varied_fields)
    return VectorEnvironment(
        physics,
        built,
        ranges,
        perturbed.paraphrased,
        cameras,
        image_size,
        max_steps,
        reward,
        backend,
        num_threads,
        render_every_step,
    )


MAX_DISTRACTORS = 2
REWARDS = tuple(
    dict.fromkeys(
        name for task in (Reach, Push, Lift, PickPlace, Stack) for name in task.reward_names
    )
)
"""Terms of any task: weights may name terms that the running tasks do not have, so that tasks can
share settings."""
