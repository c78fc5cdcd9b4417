"""Comparison of all kinds of policies on the same demonstrations and budget: success, seconds,
queries/s.

The main command trains each policy once for every algorithm; the second algorithm starts from the
SFT of the first. Arguments key=value are settings of scripts/train_vla.py for all policies:
`sim=pick_place rl.max_seconds=600`. With a policy's name in front they hold for that policy alone:
`flow:policy.noise_level=0.3`. The table and the curves are updated after every run. The same
command again continues: finished runs are read, an unfinished one is resumed.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.kinds.curves import draw_curves
from benchmarks.kinds.table import policy_row, read_results, write_table

POLICIES = ("token", "fast", "flow", "diffusion", "regression")
SHARED = ("demonstrations", "sft", "evaluation_before", "videos_before")
BUDGET = (
    "rl.max_seconds=600",
    "evaluation.num_starts=256",
    "evaluation.num_videos=0",
    "rl.evaluate_every=1000",
)
"""Default budget; a setting of the same name replaces it."""


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py policies", description=__doc__)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--algorithms", nargs="+", default=["grpo", "ppo"])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/policies"), help="folder of the runs and the table"
    )
    options, settings = parser.parse_known_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    runs = {p: {a: options.out / f"{p}-{a}" for a in options.algorithms} for p in options.policies}
    for policy, folders in runs.items():
        for algorithm, folder in folders.items():
            run_settings = [
                *BUDGET,
                f"policy={policy}",
                f"algorithm={algorithm}",
                *policy_settings(policy, settings),
            ]
            if not train(folder, next(iter(folders.values())), run_settings):
                print(
                    f"{folder} stopped: see {folder.with_suffix('.log')}. "
                    "The same command resumes it.",
                    flush=True,
                )
                return 1
            text = write_table(
                options.out, [policy_row(p, runs[p]) for p in runs], options.algorithms
            )
            draw_curves(options.out, runs, options.algorithms)
            print(text, flush=True)
    return 0


def policy_settings(policy: str, settings: list[str]) -> list[str]:
    """The settings for all policies and for this one."""
    own = [
        setting.removeprefix(f"{policy}:")
        for setting in settings
        if setting.startswith(f"{policy}:")
    ]
    return [setting for setting in settings if setting.split(":")[0] not in POLICIES] + own


def train(folder: Path, first: Path, settings: list[str]) -> bool:
    """Run the main command in `folder`; `first` is the run whose SFT it shares.

    Returns:
        True where the run finished.
    """
    if "comparison" in read_results(folder):
        return True
    arguments = [f"resume={folder}"]
    if not (folder / "config.yaml").exists():
        datasets = sorted(folder.parent.glob("*/demonstrations/meta/info.json"))
        arguments = [f"run_dir={folder}", *settings]
        if datasets and not any(setting.startswith("data.path=") for setting in settings):
            arguments.append(f"data.path={datasets[0].parents[1]}")
        if folder != first:
            copy_sft_stage(first, folder)
    script = str(Path(__file__).resolve().parents[1] / "train_vla.py")
    with folder.with_suffix(".log").open("a") as log:
        done = subprocess.run(
            [sys.executable, script, *arguments], check=False, stdout=log, stderr=log
        )
    return done.returncode == 0 and "comparison" in read_results(folder)


def copy_sft_stage(source: Path, target: Path) -> None:
    """Begin a run with the SFT stages of another one."""
    import json

    for part in ("checkpoints/sft", "tokenizer"):
        shutil.copytree(source / part, target / part, dirs_exist_ok=True)
    shutil.copy(source / "policy.json", target)
    stages = {
        name: values for name, values in read_results(source)["stages"].items() if name in SHARED
    }
    (target / "results.json").write_text(json.dumps({"stages": stages, "seconds": {}}))
