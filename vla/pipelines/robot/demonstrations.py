"""Demonstrations for a run: opened where the settings name a dataset, made in the simulator where
they do not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from vla.config.robot import RobotConfig
from vla.data.collection import collect, dataset_spec
from vla.data.dataset_checks import check_dataset_spec, select_cameras
from vla.data.demonstrations import Demonstrations, open_demonstrations
from vla.data.hub_datasets import local_dataset
from vla.data.lerobot_reader import read_action_spec, read_info
from vla.data.lerobot_writer import LeRobotWriter
from vla.interrupt import Interrupted
from vla.simulator import Simulator
from vla.training.run import Run
from vla.training.synchronization import propagate_errors

SEEDS_PER_RUN = 10_000


def load_or_collect_demonstrations(
    run: Run, config: RobotConfig, world: Simulator
) -> Demonstrations:
    """The demonstrations of the run; collecting goes on where an interrupted run stopped."""
    if config.data.path is None:
        folder = run.folder.path / "demonstrations"
        with propagate_errors(run.processes), suppress(Interrupted):
            if run.processes.is_main and not (folder / "meta" / "info.json").exists():
                _collect(run.for_main_process(), config, world, folder)
        run.check_stop()
    else:
        folder = local_dataset(config.data.path)
    found = _opened(run, config, world, folder)
    for note in found.notes:
        run.progress.print_line(f"demonstrations: {note}")
    if not run.is_finished("demonstrations"):
        counts = {"num_episodes": found.num_episodes, "num_frames": found.num_frames}
        run.finish_stage(
            "demonstrations",
            {**counts, "num_failures": found.num_failures, "notes": list(found.notes)},
        )
    return found


def check_dataset(config: RobotConfig, world: Simulator) -> None:
    """Refuse a dataset by what it says of itself (cameras, names, rate, state) before a run has a
    folder.

    The world is asked what its actions mean only after the cameras: an environment of gymnasium
    must be made for that.
    """
    if config.data.path is not None:
        folder = local_dataset(config.data.path)
        info = read_info(folder)
        select_cameras(folder, info, config.sim.cameras, world.cameras)
        check_dataset_spec(
            info,
            read_action_spec(folder),
            world.action_spec,
            world.proprio_names,
            f"the dataset {folder}",
        )


def _opened(run: Run, config: RobotConfig, world: Simulator, folder: Path) -> Demonstrations:
    """The dataset, opened by the main process first, which decodes its pictures into a file that
    all read."""
    found = None
    for mine in (run.processes.is_main, not run.processes.is_main):
        with propagate_errors(run.processes):
            if mine:
                found = open_demonstrations(
                    folder,
                    cameras=config.sim.cameras,
                    drawable=world.cameras,
                    action_spec=world.action_spec,
                    proprio_names=world.proprio_names,
                    image_size=config.sim.image_size,
                    failures=config.data.failures,
                    max_outside_limits=config.data.max_outside_limits,
                )
    assert found is not None
    return found


def first_demonstration_seed(config: RobotConfig) -> int:
    """Where demonstrations' starts begin in the training range; runs of different seeds get
    different ones."""
    seeds = config.evaluation.train_seeds
    return seeds.first + config.train.seed * SEEDS_PER_RUN % max(
        1, seeds.last - seeds.first - SEEDS_PER_RUN
    )


def _collect(run: Run, config: RobotConfig, world: Simulator, folder: Path) -> None:
    environment = world.environment()
    tasks = config.sim.tasks
    task = tasks[0] if len(tasks) == 1 else tasks
    source = {"task": task, "robot": config.sim.robot, "seed": config.train.seed}
    writer = LeRobotWriter(
        folder, dataset_spec(environment, config.sim.robot, config.data.image_format, source)
    )
    wanted, known = config.data.num_demonstrations, len(writer.finished_seeds)
    with run.progress.bar("demonstrations", wanted, known) as bar:

        def show(successes: int, failures: int) -> None:
            bar.advance_to(successes, failures=failures)
            run.check_stop()

        expert = world.expert(
            environment, config.train.seed, config.data.expert_perturbation_probability
        )
        collect(
            environment,
            expert,
            writer,
            num_episodes=wanted,
            first_seed=first_demonstration_seed(config),
            on_episode=show,
        )
    writer.finish()
