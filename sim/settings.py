"""Checks of the simulator's settings before MuJoCo loads: names and ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sim.choices import CAMERAS, ROBOTS, check_choice
from sim.perturbations import PERTURBATIONS
from sim.randomize import DEFAULT_RANDOMIZATION, Randomization, check_variety, with_overrides
from sim.tasks import TASKS, load_task, task_names

MAX_DISTRACTORS = 2
NUMBER_WORDS = {2: "two", 3: "three"}


def check_settings(
    *,
    task: str | Sequence[str],
    robot: str,
    cameras: Iterable[str],
    reward: Mapping[str, float],
    randomization: Mapping[str, Any],
    num_distractors: int,
    perturbation: str,
) -> None:
    """Check every name and range among the arguments of `sim.make_vector`; MuJoCo stays unloaded.

    Raises:
        ValueError: a task, robot, camera, reward term, range or perturbation is unknown (with the
            nearest known name), a range is impossible, or the scene has too few objects.
    """
    tasks = (task,) if isinstance(task, str) else tuple(task)
    if not 0 <= num_distractors <= MAX_DISTRACTORS:
        raise ValueError(
            f"sim.num_distractors ({num_distractors}) must be from 0 to {MAX_DISTRACTORS}: "
            "the table is small"
        )
    check_tasks(tasks, num_distractors)
    check_choice("sim.robot", robot, ROBOTS)
    for camera in cameras:
        check_choice("sim.cameras", camera, CAMERAS)
    for name in reward:
        check_choice("sim.reward", name, reward_names(tasks))
    combined_ranges(randomization, perturbation, num_distractors)


def check_tasks(tasks: Sequence[str], num_distractors: int) -> None:
    """Raise a ValueError where a task is unknown or names more objects than the scene has."""
    if not tasks:
        raise ValueError(f"sim.task is empty; name one or more of {', '.join(task_names())}")
    for name in tasks:
        kinds = load_task(name).template.kinds
        for kind in ("block", "pad"):
            needed = kinds.count(kind)
            if needed > 1 + num_distractors:
                enough = " or ".join(map(str, range(needed - 1, MAX_DISTRACTORS + 1)))
                raise ValueError(
                    f"sim.task={name} needs {NUMBER_WORDS[needed]} {kind}s; "
                    f"set sim.num_distractors to {enough}"
                )


def reward_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """The reward terms that weights may name: those of our tasks and of the running `tasks`.

    Weights may name terms that no running task has, so that tasks can share settings.
    """
    chosen = dict.fromkeys([*TASKS, *tasks])
    return tuple(dict.fromkeys(name for task in chosen for name in load_task(task).reward_names))


def combined_ranges(
    randomization: Mapping[str, Any], perturbation: str, num_distractors: int
) -> Randomization:
    """The ranges of starts: the defaults, then `randomization`, then the perturbation's.

    Raises a ValueError for an unknown name, an impossible range, or too few different looks.
    """
    check_choice("sim.perturbation", perturbation, PERTURBATIONS)
    chosen = with_overrides(DEFAULT_RANDOMIZATION, randomization)
    ranges = with_overrides(chosen, PERTURBATIONS[perturbation].ranges)
    check_variety(ranges, num_blocks=1 + num_distractors, num_pads=1 + num_distractors)
    return ranges
