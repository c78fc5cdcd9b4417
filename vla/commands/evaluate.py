"""Evaluate a checkpoint on held-out starts: success rates with n, interval and decoding.

    vla-eval runs/NAME                                # 500 starts, greedy and sampled
    vla-eval runs/NAME evaluation.num_starts=100 --perturb camera,light
    vla-eval runs/NAME sim.num_distractors=2          # another scene
    vla-eval --compare runs/A runs/B                  # paired comparison on the same starts
    vla-eval exported/NAME                            # or user/NAME, from the hub
    vla-eval outputs/train/act sim=pick_place         # a policy trained by lerobot-train
    vla-eval --elo runs/A runs/B                      # text models, ranked by a judge

Every perturbation of the simulator is evaluated too, unless --perturb names others. The command
writes evaluation.json, evaluation.html, starts.json, videos/, and recordings/ for vla-view.
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
        "run", nargs="*", help="the folder of a run or of a checkpoint, then key=value settings"
    )
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="RUN", help="evaluate these runs and compare"
    )
    parser.add_argument(
        "--elo",
        nargs="+",
        default=[],
        metavar="RUN",
        help="rank runs on open prompts against each other",
    )
    parser.add_argument(
        "--judge", metavar="URL", help="of --elo: an OpenAI server (default: the runs' gold reward)"
    )
    parser.add_argument("--judge-model", default="default", help="name of the model on that server")
    parser.add_argument(
        "--perturb",
        default="all",
        help="all, none, or names with commas; a wrong name lists the simulator's (default all)",
    )
    parser.add_argument("--decoding", choices=["both", "greedy", "sampled"], default="both")
    parser.add_argument(
        "--videos",
        type=int,
        default=3,
        help="films of successes, and as many of failures (default %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, help="folder to write to (default RUN/evaluations/TIME)"
    )
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser()
    options = parser.parse_intermixed_args(argv)
    words = [*options.run, *options.compare]
    options.settings = [word for word in words if "=" in word]
    options.runs = [Path(word) for word in words if "=" not in word]
    if not options.elo and len(options.runs) not in (1, 2):
        parser.error(f"give one run to evaluate, or two to compare, not {len(options.runs)}")
    return options


@command(make_parser=make_parser, takes_settings=True)
def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    from vla import runtime

    runtime.prepare(offline=not any(runtime.is_hub_name(str(run)) for run in options.runs))
    if options.elo:
        from vla.text.elo_tournament import run_tournament

        runs = [Path(run) for run in options.elo]
        output = options.output or Path("elo")
        folder = run_tournament(runs, output, options.judge, options.judge_model)
        print(f"results: {folder}")
        return 0
    print(f"results: {evaluate_from_options(options)}")
    return 0


def evaluate_from_options(options: argparse.Namespace) -> Path:
    """Evaluate one checkpoint or compare two, and return the folder of the results.

    Raises:
        ValueError: a perturbation, setting or checkpoint does not exist.
    """
    from vla.config.simulation import all_perturbations
    from vla.evaluation.checkpoint_settings import select_perturbations

    select_perturbations(options.perturb, all_perturbations())  # a misspelled name, before torch
    from vla.interop.evaluate_checkpoint import (
        EvaluationRequest,
        compare_checkpoints,
        run_evaluation,
    )
    from vla.simulator import make_simulator

    request = EvaluationRequest(
        options.settings, options.perturb, options.decoding, options.videos, options.output
    )
    if len(options.runs) == 2:
        return compare_checkpoints(options.runs[0], options.runs[1], request, make_simulator)
    return run_evaluation(options.runs[0], request, make_simulator)
