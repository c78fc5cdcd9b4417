"""Recorded episodes of a run, replayed for a page, a file, or the simulator's own viewer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla.config.simulation import DEFAULT_SIMULATOR, Simulation, read_section
from vla.data.observations import RawObservation
from vla.evaluation.checkpoint_settings import checkpoint_settings, suggest_runs
from vla.files.reading import JsonMapping
from vla.policy_spec import ReplaySpec, read_policy_spec
from vla.simulator import EpisodeViewer, make_simulator
from vla.viewer.library import EpisodeLibrary
from vla.viewer.page import viewer_page
from vla.viewer.payload import ReplayedEpisode


class Replayer:
    """A replayer of recorded episodes, with one environment for each of their simulations."""

    def __init__(self) -> None:
        self.simulators: dict[str, EpisodeViewer] = {}

    def __call__(
        self,
        settings: JsonMapping,
        seeds: Sequence[int],
        actions: Sequence[np.ndarray],
        render: bool = True,
    ) -> Sequence[ReplayedEpisode]:
        key = repr(sorted(settings.items()))
        if key not in self.simulators:
            self.simulators[key] = episode_viewer(single_environment(settings))
        return self.simulators[key].replay(seeds, actions, render)


def single_environment(settings: JsonMapping) -> Simulation:
    """Recorded settings of a simulator, with one environment and one thread."""
    ones = {name: 1 for name in ("num_envs", "num_threads") if name in settings}
    return read_section({"simulator": DEFAULT_SIMULATOR, **settings, **ones})


def episode_viewer(settings: Simulation) -> EpisodeViewer:
    """The simulator of the settings.

    Raises ValueError where it cannot show episodes.
    """
    simulator = make_simulator(settings)
    if not isinstance(simulator, EpisodeViewer):
        raise ValueError(f"sim.simulator={settings.simulator} cannot show episodes")
    return simulator


def open_library(run: Path, wait: bool = False) -> EpisodeLibrary:
    """The recorded episodes of a run.

    `wait` waits for a run that has just begun to write its policy.json. Raises ValueError where the
    folder is no robot run.
    """
    path = run / "policy.json"
    if wait and not path.exists():
        print(f"waiting for {run} to write its policy.json (Ctrl-C ends)", flush=True)
        while not path.exists():
            time.sleep(1)
    if not path.exists():
        raise ValueError(
            f"{run} is no run of a robot policy: there is no policy.json in it{suggest_runs(run)}"
        )
    return EpisodeLibrary(run, Replayer(), read_policy_spec(run, ReplaySpec)["action_spec"])


def write_html(library: EpisodeLibrary, path: Path, limit: int) -> None:
    """Write a standalone page with the newest `limit` episodes."""
    data = library.page_data(limit)
    path.write_text(viewer_page(library.run.name, data))
    print(f"{path}: {len(data['list'])} episodes, {path.stat().st_size / 1e6:.1f} MB")


def write_rrd(library: EpisodeLibrary, path: Path, limit: int) -> None:
    """Write the newest `limit` episodes as a recording for Rerun's viewer."""
    from vla.viewer.rerun_file import write_rerun

    episodes = [library.episode(line["id"]) for line in library.summaries()[:limit]]
    write_rerun(path, library.run.name, episodes)
    print(f"{path}: {len(episodes)} episodes, {path.stat().st_size / 1e6:.1f} MB")


def watch_native(run: Path) -> None:
    """Run MuJoCo's viewer with the policy acting live.

    Instructions come from a page with a text box, or the terminal. Raises ValueError where the
    simulator has no viewer.
    """
    from vla.pipelines.robot.policy import load_policy
    from vla.viewer.instruction_box import InstructionBox

    config = checkpoint_settings(run, ["sim.num_envs=1"])
    simulator = make_simulator(config.sim)
    policy, observe = load_policy(run, config, simulator)
    box = InstructionBox()
    box.open()
    if not isinstance(simulator, EpisodeViewer):
        raise ValueError(f"sim.simulator={config.sim.simulator} has no viewer of its own")

    def act(raw: RawObservation) -> np.ndarray:
        return policy.act(observe(raw), greedy=True).action.float().cpu().numpy()

    simulator.watch(act, iter(box))
