"""Demonstrations of a robot run: opened from a dataset, or collected in the simulator."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from vla.config.robot import RobotConfig
from vla.data.collection import Environments, collect, dataset_spec
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
"""Training seeds between the demonstrations of runs with consecutive seeds."""


def load_or_collect_demonstrations(
    run: Run, config: RobotConfig, simulator: Simulator
) -> Demonstrations:
    """Open `data.path`, or collect demonstrations; a resumed run continues collecting.

    Raises:
        Interrupted: the run was stopped while collecting.
        ValueError: the dataset does not fit the simulator.
    """
    if config.data.path is None:
        folder = run.folder.path / "demonstrations"
        with propagate_errors(run.processes), suppress(Interrupted):
            if run.processes.is_main and not (folder / "meta" / "info.json").exists():
                _collect(run.for_main_process(), config, simulator, folder)
        run.check_stop()
    else:
        folder = local_dataset(config.data.path)
    demonstrations = _open(run, config, simulator, folder)
    for note in demonstrations.notes:
        run.progress.print_line(f"demonstrations: {note}")
    if not run.is_finished("demonstrations"):
        values = {
            "num_episodes": demonstrations.num_episodes,
            "num_frames": demonstrations.num_frames,
            "num_failures": demonstrations.num_failures,
            "notes": list(demonstrations.notes),
        }
        run.finish_stage("demonstrations", values)
    return demonstrations


def check_dataset(config: RobotConfig, simulator: Simulator) -> None:
    """Check the metadata of `data.path` against the simulator, before the run has a folder.

    Raises:
        ValueError: cameras, action names, control rate or state differ.
    """
    if config.data.path is not None:
        folder = local_dataset(config.data.path)
        info = read_info(folder)
        # Cameras first: the action spec of a gymnasium simulator creates an environment.
        select_cameras(folder, info, config.sim.cameras, simulator.cameras)
        check_dataset_spec(
            info,
            read_action_spec(folder),
            simulator.action_spec,
            simulator.proprio_names,
            f"the dataset {folder}",
        )


def _open(run: Run, config: RobotConfig, simulator: Simulator, folder: Path) -> Demonstrations:
    """Open the dataset, in the main process first: it decodes the images into a shared file."""
    demonstrations = None
    for is_own_turn in (run.processes.is_main, not run.processes.is_main):
        with propagate_errors(run.processes):
            if is_own_turn:
                demonstrations = open_demonstrations(
                    folder,
                    cameras=config.sim.cameras,
                    drawable=simulator.cameras,
                    action_spec=simulator.action_spec,
                    proprio_names=simulator.proprio_names,
                    image_size=config.sim.image_size,
                    failures=config.data.failures,
                    max_outside_limits=config.data.max_outside_limits,
                )
    assert demonstrations is not None
    return demonstrations


def first_demonstration_seed(config: RobotConfig) -> int:
    """First seed of the demonstrations in the training range; it depends on `train.seed`."""
    seeds = config.evaluation.train_seeds
    num_first_seeds = max(1, seeds.last - seeds.first - SEEDS_PER_RUN)
    return seeds.first + config.train.seed * SEEDS_PER_RUN % num_first_seeds


def _collect(run: Run, config: RobotConfig, simulator: Simulator, folder: Path) -> None:
    environment = simulator.environment()
    assert isinstance(environment, Environments)
    tasks = config.sim.tasks
    task = tasks[0] if len(tasks) == 1 else tasks
    source = {"task": task, "robot": config.sim.robot, "seed": config.train.seed}
    writer = LeRobotWriter(
        folder, dataset_spec(environment, config.sim.robot, config.data.image_format, source)
    )
    num_episodes = config.data.num_demonstrations
    num_finished = len(writer.finished_seeds)
    with run.progress.bar("demonstrations", num_episodes, num_finished) as bar:

        def on_episode(num_successes: int, num_failures: int) -> None:
            bar.advance_to(num_successes, failures=num_failures)
            run.check_stop()

        expert = simulator.expert(
            environment, config.train.seed, config.data.expert_perturbation_probability
        )
        collect(
            environment,
            expert,
            writer,
            num_episodes=num_episodes,
            first_seed=first_demonstration_seed(config),
            on_episode=on_episode,
        )
    writer.finish()
