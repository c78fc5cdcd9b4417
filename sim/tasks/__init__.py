"""Table of tasks; each file has instruction, success, rewards, controller and failure reasons.

A task is one class, in one file with its instruction, success, reward terms, controller and
diagnosis (`sim.task.Task`). A package adds one by an entry point of the group `vla.tasks`:

    [project.entry-points."vla.tasks"]
    hold_over = "my_package.hold_over:HoldOver"
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from sim.choices import check_choice

if TYPE_CHECKING:
    from sim.task import Task

TASKS = {
    "reach": "sim.tasks.reach:Reach",
    "push": "sim.tasks.push:Push",
    "lift": "sim.tasks.lift:Lift",
    "pick_place": "sim.tasks.pick_place:PickPlace",
    "stack": "sim.tasks.stack:Stack",
}
"""Module and class of every task of ours."""
ENTRY_POINT_GROUP = "vla.tasks"


def installed_tasks() -> dict[str, EntryPoint]:
    """The tasks of installed packages by name; raises ValueError where a name is taken twice."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name in TASKS or found.get(entry.name, entry).value != entry.value:
            raise ValueError(
                f"the task {entry.name!r} of {entry.value} has the name of another task; "
                f"rename it in the entry points {ENTRY_POINT_GROUP} of its package"
            )
        found[entry.name] = entry
    return found


def task_names() -> tuple[str, ...]:
    """The names of all tasks, ours first."""
    return (*TASKS, *installed_tasks())


def load_task(name: str) -> type[Task]:
    """The class of the task `name`; MuJoCo stays unloaded.

    Raises:
        ValueError: no task has the name (with the nearest one), or its module cannot be imported.
    """
    if name in TASKS:
        module, _, attribute = TASKS[name].partition(":")
        return getattr(import_module(module), attribute)
    installed = installed_tasks()
    check_choice("sim.task", name, (*TASKS, *installed))
    try:
        return installed[name].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"sim.task={name} is registered as {installed[name].value}, which does not import: "
            f"{error}"
        ) from error
