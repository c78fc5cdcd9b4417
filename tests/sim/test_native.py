"""MuJoCo's viewer is given what the simulation does, and a typed line becomes the instruction. No
display is needed."""

import threading

import numpy as np
import pytest

import sim
from sim.native import FIRST_START, watch


class Window:
    """Stands for MuJoCo's: closed after so many pictures."""

    def __init__(self, pictures: int):
        self.left, self.seen = pictures, []

    def __call__(self, model, data):
        self.data = data
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.left = 0

    def is_running(self) -> bool:
        return self.left > 0

    def sync(self) -> None:
        self.left -= 1
        self.seen.append(self.data.qpos.copy())


def test_what_is_typed_is_what_the_policy_is_asked(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    env = sim.make_vector(robot="gantry", num_envs=1, cameras=(), num_threads=1)
    asked, typed = [], threading.Event()

    def act(seen):
        asked.append(seen.instruction[0])
        if len(asked) == 1:
            typed.set()
        told.wait(30)
        return np.full((1, 2, 7), 0.02, np.float32)

    told = threading.Event()

    def lines():
        typed.wait(30)
        yield "put it elsewhere\n"
        told.set()
        threading.Event().wait(0.01)

    window = Window(pictures=6)
    assert watch(env, act, window, lines()) == 1
    own = env.reset([FIRST_START], np.array([0])).instruction[0]
    assert asked == [own, "put it elsewhere", "put it elsewhere"]
    moved = np.abs(np.diff(np.stack(window.seen), axis=0)).max(axis=1)
    assert (moved > 1e-4).all()
    env.close()


def test_without_a_display_the_page_is_named(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    env = sim.make_vector(robot="gantry", num_envs=1, cameras=(), num_threads=1)
    with pytest.raises(
        ValueError, match="--native needs a display, and there is none: the page works without"
    ):
        watch(env, lambda seen: None)
    env.close()
