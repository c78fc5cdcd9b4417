"""Demonstrations for a run: opened where the settings name a dataset, made in the simulator where they do not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from vla.config.robot import RobotConfig
from vla.data.collect import collect, dataset_spec
from vla.data.demonstrations import Demonstrations, open_demonstrations
from vla.data.lerobot_writer import LeRobotWriter
from vla.hub.datasets import local_dataset
from vla.interrupt import Interrupted
from vla.stages.run import Run
from vla.stages.world import World
from vla.train.agreement import failing_together

SEEDS_PER_RUN = 10_000


def demonstrations(run: Run, config: RobotConfig, world: World) -> Demonstrations:
    """The demonstrations of the run; collecting goes on where an interrupted run stopped."""
    if config.data.path is None:
        folder = run.folder.path / "demonstrations"
        with failing_together(run.processes), suppress(Interrupted):
            if run.processes.is_main and not (folder / "meta" / "info.json").exists():
                _collect(run.alone(), config, world, folder)
        run.check_stop()
    else:
        folder = local_dataset(config.data.path)
    found = _opened(run, config, world, folder)
    if not run.done("demonstrations"):
        run.finish("demonstrations", {"num_episodes": found.num_episodes, "num_frames": found.num_frames})
    return found


def _opened(run: Run, config: RobotConfig, world: World, folder: Path) -> Demonstrations:
    """The dataset, opened by the main process first, which decodes its pictures into a file that all read."""
    found = None
    for mine in (run.processes.is_main, not run.processes.is_main):
        with failing_together(run.processes):
            if mine:
                found = open_demonstrations(
                    folder, cameras=config.sim.cameras, action_spec=world.action_spec, image_size=config.sim.image_size
                )
    assert found is not None
    return found


def first_seed(config: RobotConfig) -> int:
    """Where demonstrations' starts begin in the training range; runs of different seeds get different ones."""
    seeds = config.evaluation.train_seeds
    return seeds.first + config.train.seed * SEEDS_PER_RUN % max(1, seeds.last - seeds.first - SEEDS_PER_RUN)


def _collect(run: Run, config: RobotConfig, world: World, folder: Path) -> None:
    environment = world.environment()
    source = {"task": config.sim.task, "robot": config.sim.robot, "seed": config.train.seed}
    writer = LeRobotWriter(folder, dataset_spec(environment, config.sim.robot, config.data.image_format, source))
    wanted, known = config.data.num_demonstrations, len(writer.finished_seeds)
    with run.progress.stage("demonstrations", wanted, known) as bar:

        def show(successes: int, failures: int) -> None:
            nonlocal known
            if successes > known:
                bar.advance(successes - known, failures=failures)
                known = successes
            run.check_stop()

        expert = world.expert(environment, config.train.seed, config.data.burst_probability)
        collect(
            environment,
            expert,
            writer,
            num_episodes=wanted,
            first_seed=first_seed(config),
            on_episode=show,
        )
    writer.finish()
