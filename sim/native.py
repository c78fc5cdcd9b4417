"""MuJoCo's own viewer with a policy acting live. Instructions are typed into the terminal while it
runs."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import mujoco
import numpy as np

from sim.task import SimObservation
from sim.vector import VectorEnvironment

Act = Callable[[SimObservation], np.ndarray]
"""Decides: a chunk of actions [1, H, A]."""
FIRST_START = 2_000_000
PER_ENVIRONMENT = ("geom_rgba", "geom_size", "light_diffuse", "cam_pos", "cam_quat")


def watch(
    env: VectorEnvironment, act: Act, launch: Any = None, typed: Iterator[str] | None = None
) -> int:
    """Show episode after episode until the window is closed; how many ended. `launch` opens the
    window.

    A line typed into the terminal replaces the instruction of the running episode; an empty line
    begins another start. Raises ValueError where there is no display.
    """
    if launch is None:
        if sys.platform.startswith("linux") and not (
            os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        ):
            raise ValueError(
                "--native needs a display, and there is none: the page works without (leave --native out)"
            )
        from mujoco import viewer

        launch = partial(
            viewer.launch_passive, show_left_ui=False, show_right_ui=False
        )  # Tab brings them back
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=read_lines, args=(lines, typed or iter(sys.stdin)), daemon=True).start()
    data = mujoco.MjData(env.physics.model)
    num_ended = 0
    with launch(env.physics.model, data) as window:
        while window.is_running():
            show_episode(env, act, window, data, lines, FIRST_START + num_ended)
            num_ended += 1
    return num_ended


def read_lines(lines: SimpleQueue[str], typed: Iterator[str]) -> None:
    for line in typed:
        lines.put(line.strip())


def show_episode(
    env: VectorEnvironment,
    act: Act,
    window: Any,
    data: mujoco.MjData,
    lines: SimpleQueue[str],
    seed: int,
) -> None:
    """One start to its end, at the pace of a robot."""
    seen = env.reset([seed], np.array([0]))
    dress(env)
    told = seen.instruction[0]
    print(
        f"start {seed}: {told}   (type another instruction, or nothing for another start)",
        flush=True,
    )
    ended = False
    while window.is_running() and not ended:
        for action in act(replace(seen, instruction=[told]))[0]:
            begin = time.perf_counter()
            result = env.step(action[None, None], np.array([0]), render=False)
            show(env, window, data)
            ended = bool(result.terminated[0] or result.truncated[0])
            if ended or not window.is_running():
                break
            time.sleep(max(0.0, 1 / env.action_spec.control_hz - (time.perf_counter() - begin)))
        seen = env.observe(np.array([0]))
        try:
            told = lines.get_nowait()
        except Empty:
            continue
        if not told:
            return
        print(f"  told: {told}", flush=True)


def dress(env: VectorEnvironment) -> None:
    """Give the window's model the colours and sizes of this start."""
    model = env.physics.model
    for name in PER_ENVIRONMENT:
        if name in env.physics.fields:
            getattr(model, name)[:] = env.physics.fields[name][0]


def show(env: VectorEnvironment, window: Any, data: mujoco.MjData) -> None:
    """Copy the simulation into the window."""
    physics = env.physics
    data.qpos[:] = physics.qpos[0]
    data.qvel[:] = physics.qvel[0]
    data.mocap_pos[:] = physics.mocap_pos[0]
    data.mocap_quat[:] = physics.mocap_quat[0]
    mujoco.mj_forward(physics.model, data)
    window.sync()
