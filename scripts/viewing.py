"""Episodes of a run from the simulator to a page, a file, or MuJoCo's own viewer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla.evaluate.settings import beside, settings_of
from vla.hub.passport import Shown, read_passport
from vla.viewer.library import Library
from vla.viewer.page import viewer_page


class Replayer:
    """Lives recorded episodes again; one environment for each simulation that they were recorded
    in."""

    def __init__(self) -> None:
        self.environments: dict[str, Any] = {}

    def __call__(
        self, settings: Any, seeds: Sequence[int], actions: Sequence[np.ndarray], look: bool = True
    ) -> list:
        from scripts.simulation import Simulation
        from sim.replay import replay
        from vla.config.robot import Sim

        key = repr(sorted(settings.items()))
        if "id" in settings:
            raise ValueError(
                f"episodes of {settings['id']} cannot be shown: only the simulator's own scenes can"
            )
        if key not in self.environments:
            alone = Sim.model_validate({**settings, "num_envs": 1, "num_threads": 1})
            self.environments[key] = Simulation(alone).environment()
        return replay(self.environments[key], seeds, actions, look)


def open_library(run: Path, wait: bool = False) -> Library:
    """The episodes of a run; ValueError when the folder is none. `wait` for one that only
    begins."""
    passport = run / "policy.json"
    if wait and not passport.exists():
        print(f"waiting for {run} to make its policy (Ctrl-C ends)", flush=True)
        while not passport.exists():
            time.sleep(1)
    if not passport.exists():
        raise ValueError(
            f"{run} is no run of a robot policy: there is no policy.json in it{beside(run)}"
        )
    return Library(run, Replayer(), read_passport(run, Shown)["action_spec"])


def write_html(library: Library, path: Path, limit: int) -> None:
    """One page that opens from disk, with the newest episodes inside."""
    data = library.everything(limit)
    path.write_text(viewer_page(library.run.name, data))
    print(f"{path}: {len(data['list'])} episodes, {path.stat().st_size / 1e6:.1f} MB")


def write_rrd(library: Library, path: Path, limit: int) -> None:
    """A recording for Rerun's viewer."""
    from vla.viewer.rerun_file import write_rerun

    episodes = [library.episode(line["id"]) for line in library.lines()[:limit]]
    write_rerun(path, library.run.name, episodes)
    print(f"{path}: {len(episodes)} episodes, {path.stat().st_size / 1e6:.1f} MB")


def watch_native(run: Path) -> None:
    """MuJoCo's viewer with the policy acting live; instructions come from a page with a text box,
    or the terminal."""
    from scripts.world import world_of
    from sim.native import watch
    from vla.stages.robot import load_policy
    from vla.viewer.box import InstructionBox

    config = settings_of(run, ["sim.num_envs=1"])
    world = world_of(config.sim)
    policy, observe = load_policy(run, config, world)
    box = InstructionBox()
    box.open()
    act = lambda seen: policy.act(observe(seen), greedy=True).action.float().cpu().numpy()  # noqa: E731
    watch(world.environment(), act, typed=iter(box))
