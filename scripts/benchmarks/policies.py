"""Every kind of policy on the same demonstrations and budget: success after SFT and after RL,
seconds, queries/s.

Each policy is trained by the main command, once for every algorithm; the second algorithm starts
from the first one's SFT. What is written as key=value is a setting of scripts/train_vla.py for all:
`sim=pick_place rl.max_seconds=600`; behind a policy's name it is one for that policy alone:
`flow:policy.noise_level=0.3`. The table and a curve for each policy are written anew after every
run. A finished run is read and not repeated; an unfinished one goes on: start the same command
again.
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
"""What a setting of the same name replaces."""


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
            asked = [
                *BUDGET,
                f"policy={policy}",
                f"algorithm={algorithm}",
                *policy_settings(policy, settings),
            ]
            if not train(folder, next(iter(folders.values())), asked):
                print(
                    f"{folder} stopped; {folder.with_suffix('.log')} says why. The same command goes on.",
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
    """The settings for all policies, and those for this one."""
    own = [
        setting.removeprefix(f"{policy}:")
        for setting in settings
        if setting.startswith(f"{policy}:")
    ]
    return [setting for setting in settings if setting.split(":")[0] not in POLICIES] + own


def train(folder: Path, first: Path, settings: list[str]) -> bool:
    """Run the main command in `folder`, and whether it came to its end; `first` is the run whose
    SFT it shares."""
    if "comparison" in read_results(folder):
        return True
    asked = [f"resume={folder}"]
    if not (folder / "config.yaml").exists():
        found = sorted(folder.parent.glob("*/demonstrations/meta/info.json"))
        named = any(setting.startswith("data.path=") for setting in settings)
        asked = [f"run_dir={folder}", *settings] + [
            f"data.path={p.parents[1]}" for p in found[:1] if not named
        ]
        if folder != first:
            copy_sft_stage(first, folder)
    script = str(Path(__file__).resolve().parents[1] / "train_vla.py")
    with folder.with_suffix(".log").open("a") as log:
        done = subprocess.run([sys.executable, script, *asked], check=False, stdout=log, stderr=log)
    return done.returncode == 0 and "comparison" in read_results(folder)


def copy_sft_stage(source: Path, target: Path) -> None:
    """Begin a run with what another one did before RL."""
    import json

    for part in ("checkpoints/sft", "tokenizer"):
        shutil.copytree(source / part, target / part, dirs_exist_ok=True)
    shutil.copy(source / "policy.json", target)
    stages = {
        name: values for name, values in read_results(source)["stages"].items() if name in SHARED
    }
    (target / "results.json").write_text(json.dumps({"stages": stages, "seconds": {}}))
