"""From an id to environments: where gymnasium looks for it, and what to install when it is not
there."""

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
"""Packages that bring environments, by how their ids begin. Any other goes by `module:id`, as
gymnasium has it."""
REMEDIES = {
    "gymnasium_robotics": "pip install 'vla[gym]'",
    "metaworld": "pip install --no-deps metaworld (it names an older MuJoCo, and runs on this one)",
}


def build_gymnasium(
    id: str,
    num_envs: int,
    cameras: tuple[str, ...],
    image_size: int,
    max_steps: int,
    reward: dict[str, float],
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
    find(id)
    arguments = {**make, **({"render_mode": "rgb_array"} if cameras else {})}
    small = {"width": image_size, "height": image_size} if cameras else {}
    try:
        one = made_small(id, arguments, small)
        return GymnasiumVector(
            one, task, num_envs, cameras, image_size, max_steps, reward, render_every_step
        )
    except (gymnasium.error.Error, TypeError) as error:
        raise ValueError(
            f"sim.id ({id}) cannot be made with sim.make ({dict(make)}): {error}"
        ) from error


def made_small(
    id: str, arguments: Mapping[str, Any], small: Mapping[str, int]
) -> Callable[[], gymnasium.Env[Any, Any]]:
    """A maker whose pictures are drawn in the size that is wanted, where the environment can be
    told: drawing 480 by 480 pixels to keep 64 by 64 takes three times as long. What `arguments` say
    about the size stands.
    """
    one = partial(gymnasium.make, id, disable_env_checker=True)
    try:
        one(**{**small, **arguments}).close()
    except TypeError:
        return partial(one, **arguments)
    return partial(one, **{**small, **arguments})


def find(id: str) -> None:
    """Have the package that registers `id` imported; raises ValueError with what to install where
    it is missing."""
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
