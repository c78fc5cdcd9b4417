"""A `GymnasiumVector` from an id, with the package to install where the id is unknown."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium

from sim.choices import check_choice
from sim.gymnasium_vector import GymnasiumTask, GymnasiumVector
from sim.mujoco_compat import accept_integers, fit_metaworld

PACKAGES = {
    "Fetch": "gymnasium_robotics",
    "Hand": "gymnasium_robotics",
    "Adroit": "gymnasium_robotics",
    "FrankaKitchen": "gymnasium_robotics",
    "PointMaze": "gymnasium_robotics",
    "AntMaze": "gymnasium_robotics",
    "Meta-World": "metaworld",
}
"""Packages that register environments, by the beginning of the ids. Others are written
`module:id`."""
REMEDIES = {
    "gymnasium_robotics": "pip install 'vla[gym]'",
    "metaworld": "pip install --no-deps metaworld (it names an older MuJoCo, and runs on this one)",
}


def build_gymnasium(
    *,
    id: str,
    num_envs: int,
    cameras: tuple[str, ...],
    image_size: int,
    max_steps: int,
    reward: Mapping[str, float],
    make: Mapping[str, Any],
    task: GymnasiumTask,
    render_every_step: bool,
) -> GymnasiumVector:
    """N environments of `id`, made with the arguments `make`; see `sim.make_gymnasium`."""
    for setting, value in (
        ("num_envs", num_envs),
        ("max_steps", max_steps),
        ("image_size", image_size),
    ):
        if value < 1:
            raise ValueError(f"sim.{setting} ({value}) must be at least 1")
    for name in reward:
        check_choice("sim.reward", name, GymnasiumVector.reward_names)
    import_package(id)
    arguments = {**make, **({"render_mode": "rgb_array"} if cameras else {})}
    small = {"width": image_size, "height": image_size} if cameras else {}
    try:
        return GymnasiumVector(
            make=environment_factory(id, arguments, small),
            task=task,
            num_envs=num_envs,
            cameras=cameras,
            image_size=image_size,
            max_steps=max_steps,
            reward=reward,
            render_every_step=render_every_step,
        )
    except (gymnasium.error.Error, TypeError) as error:
        raise ValueError(
            f"sim.id ({id}) cannot be made with sim.make ({dict(make)}): {error}"
        ) from error


def environment_factory(
    id: str, arguments: Mapping[str, Any], small: Mapping[str, int]
) -> Callable[[], gymnasium.Env[Any, Any]]:
    """A factory of environments that render at the size `small`, where they take such arguments.

    Rendering 480 by 480 pixels to keep 64 by 64 takes three times as long. A size among `arguments`
    wins.
    """
    factory = partial(gymnasium.make, id, disable_env_checker=True)
    try:
        factory(**{**small, **arguments}).close()
    except TypeError:
        return partial(factory, **arguments)
    return partial(factory, **{**small, **arguments})


def import_package(id: str) -> None:
    """Import the package that registers `id`.

    Raises a ValueError with the package to install where it is missing, or the nearest known id.
    """
    accept_integers()
    package = next((name for start, name in PACKAGES.items() if id.startswith(start)), None)
    if package is not None:
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"sim.id ({id}) needs {package}: {REMEDIES[package]}")
        importlib.import_module(package)
        if package == "metaworld":
            fit_metaworld()
    elif ":" not in id:
        check_choice("sim.id", id, tuple(gymnasium.registry))
