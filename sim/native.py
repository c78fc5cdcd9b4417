"""MuJoCo's own viewer with a policy acting live; instructions are typed while it runs."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

import mujoco
import numpy as np

from sim.task import SimObservation
from sim.vector import VectorEnvironment

Act = Callable[[SimObservation], np.ndarray]
"""A policy: from an observation to a chunk of actions [1, H, A]."""
FIRST_START = 2_000_000
"""Seed of the first start: outside those of training and evaluation."""
APPEARANCE_FIELDS = ("geom_rgba", "geom_size", "light_diffuse", "cam_pos", "cam_quat")


class Window(Protocol):
    """A window of MuJoCo's viewer."""

    def is_running(self) -> bool: ...

    def sync(self) -> None: ...


def watch(
    env: VectorEnvironment,
    act: Act,
    launch: Callable[..., AbstractContextManager[Window]] | None = None,
    typed: Iterator[str] | None = None,
) -> int:
    """Run episodes in a window until it is closed; returns the number that ended.

    `launch` opens the window. A typed line replaces the instruction of the running episode; an
    empty line begins another start. Raises a ValueError where there is no display.
    """
    if launch is None:
        if sys.platform.startswith("linux") and not (
            os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        ):
            raise ValueError(
                "--native needs a display, and there is none: the page works without (leave "
                "--native out)"
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
    """Put every typed line into the queue."""
    for line in typed:
        lines.put(line.strip())


def show_episode(
    env: VectorEnvironment,
    act: Act,
    window: Window,
    data: mujoco.MjData,
    lines: SimpleQueue[str],
    seed: int,
) -> None:
    """One episode from the start of `seed`, in real time."""
    observation = env.reset([seed], np.array([0]))
    copy_appearance(env)
    instruction = observation.instruction[0]
    print(
        f"start {seed}: {instruction}   (type another instruction, or nothing for another start)",
        flush=True,
    )
    ended = False
    while window.is_running() and not ended:
        for action in act(replace(observation, instruction=[instruction]))[0]:
            begin = time.perf_counter()
            result = env.step(action[None, None], np.array([0]), render=False)
            copy_state(env, window, data)
            ended = bool(result.terminated[0] or result.truncated[0])
            if ended or not window.is_running():
                break
            time.sleep(max(0.0, 1 / env.action_spec.control_hz - (time.perf_counter() - begin)))
        observation = env.observe(np.array([0]))
        try:
            instruction = lines.get_nowait()
        except Empty:
            continue
        if not instruction:
            return
        print(f"  instruction: {instruction}", flush=True)


def copy_appearance(env: VectorEnvironment) -> None:
    """Write the colours and sizes of environment 0 into the window's model."""
    model = env.physics.model
    for name in APPEARANCE_FIELDS:
        if name in env.physics.fields:
            getattr(model, name)[:] = env.physics.fields[name][0]


def copy_state(env: VectorEnvironment, window: Window, data: mujoco.MjData) -> None:
    """Write the state of environment 0 into the window."""
    physics = env.physics
    data.qpos[:] = physics.qpos[0]
    data.qvel[:] = physics.qvel[0]
    data.mocap_pos[:] = physics.mocap_pos[0]
    data.mocap_quat[:] = physics.mocap_quat[0]
    mujoco.mj_forward(physics.model, data)
    window.sync()
