"""Collect demonstrations in the simulator: a LeRobotDataset v3 of successful expert episodes.

    vla-collect --num 100 --image-size 96 --output datasets/generated/pick_place

After an interruption (Ctrl-C, a full disk) the same command continues where it stopped.
"""

import argparse
from pathlib import Path

from vla.cli import command
from vla.command_names import with_command_names


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=with_command_names(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the dataset; must not exist yet"
    )
    parser.add_argument(
        "--num", type=int, default=100, help="successful episodes (default %(default)s)"
    )
    parser.add_argument(
        "--task", nargs="+", default=["pick_place"], help="one task, or several in turn"
    )
    parser.add_argument("--robot", default="panda", help="panda or gantry (default %(default)s)")
    parser.add_argument("--cameras", nargs="+", default=["front", "wrist"])
    parser.add_argument("--image-size", type=int, default=96, help="pixels (default %(default)s)")
    parser.add_argument(
        "--format", choices=["video", "images"], default="video", help="lossless H.264, or PNG"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="first seed to try (default %(default)s)"
    )
    parser.add_argument(
        "--max-steps", type=int, default=80, help="control steps an episode (default %(default)s)"
    )
    parser.add_argument(
        "--expert-perturbation-probability",
        type=float,
        default=0.02,
        help="of a short disturbance of the expert, per control step (default %(default)s)",
    )
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--renderer", choices=["auto", "egl", "warp"], default="auto")
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    options = make_parser().parse_args(argv)
    options.task = options.task[0] if len(options.task) == 1 else options.task
    return options


@command(
    "; every finished episode is kept: run the same command again to continue",
    make_parser=make_parser,
)
def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    from typing import Any

    from rich import progress as rich

    from vla.config.compose import compose_with_hydra
    from vla.config.simulation import read_section
    from vla.data.collection import collect, dataset_spec
    from vla.data.lerobot_writer import LeRobotWriter
    from vla.simulator import make_simulator

    source = {
        name: getattr(options, name)
        for name in ("task", "robot", "seed", "max_steps", "expert_perturbation_probability")
    }
    chosen = {
        name: getattr(options, name)
        for name in (
            "task",
            "robot",
            "num_envs",
            "cameras",
            "image_size",
            "max_steps",
            "renderer",
        )
    }
    simulator = make_simulator(read_section({**compose_with_hydra({})["sim"], **chosen}))
    environments: Any = simulator.environment()
    expert = simulator.expert(environments, options.seed, options.expert_perturbation_probability)
    writer = LeRobotWriter(
        options.output, dataset_spec(environments, options.robot, options.format, source)
    )
    columns = [rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn()]
    with rich.Progress(*columns, rich.TimeElapsedColumn(), rich.TimeRemainingColumn()) as progress:
        bar = progress.add_task("demonstrations", total=options.num)

        def show(successes: int, failures: int) -> None:
            progress.update(
                bar, completed=successes, description=f"demonstrations ({failures} starts failed)"
            )

        done = collect(
            environments,
            expert,
            writer,
            num_episodes=options.num,
            first_seed=options.seed,
            on_episode=show,
        )
    writer.finish()
    environments.close()
    print(
        f"{options.output}: {done.num_episodes} episodes, {done.num_frames} frames, "
        f"{done.num_failures} failed starts"
    )
    return 0
