"""Every kind of policy on the same demonstrations and budget: success after SFT and after RL, seconds, queries/s.

Each policy is trained by the main command, once for every algorithm; the second algorithm starts from the first one's
SFT. What is written as key=value is a setting of scripts/train_vla.py for all: `sim=pick_place sft.max_seconds=600`.
A finished run is read and not repeated; an unfinished one goes on.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

POLICIES = ("token", "fast", "flow", "diffusion", "regression")
SHARED = ("demonstrations", "sft", "evaluation_before", "videos_before")


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py policies", description=__doc__)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--algorithms", nargs="+", default=["grpo", "ppo"])
    parser.add_argument("--out", type=Path, default=Path("runs/policies"), help="folder of the runs and the table")
    options, settings = parser.parse_known_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [f"{'policy':<11}{'SFT, greedy':<28}" + "".join(f"{'after ' + a:<28}" for a in options.algorithms)]
    print(lines[0], flush=True)
    for policy in options.policies:
        folders = [options.out / f"{policy}-{algorithm}" for algorithm in options.algorithms]
        for folder, algorithm in zip(folders, options.algorithms):
            train(folder, folders[0], [f"policy={policy}", f"algorithm={algorithm}", *settings])
        lines.append(described(policy, [results(folder) for folder in folders]))
        print(lines[-1], flush=True)
        (options.out / "table.txt").write_text("\n".join(lines) + "\n")
    return 0


def train(folder: Path, first: Path, settings: list[str]) -> None:
    """Run the main command in `folder` to its end; `first` is the run whose SFT it shares."""
    if "comparison" in results(folder):
        return
    asked = [f"resume={folder}"]
    if not (folder / "config.yaml").exists():
        found = sorted(folder.parent.glob("*/demonstrations/meta/info.json"))
        asked = [f"run_dir={folder}", *settings] + [f"data.path={path.parents[1]}" for path in found[:1]]
        if folder != first:
            take_over(first, folder)
    script = str(Path(__file__).resolve().parents[1] / "train_vla.py")
    with folder.with_suffix(".log").open("a") as log:
        subprocess.run([sys.executable, script, *asked], check=True, stdout=log, stderr=log)


def take_over(source: Path, target: Path) -> None:
    """Begin a run with what another one did before RL."""
    for part in ("checkpoints/sft", "tokenizer"):
        shutil.copytree(source / part, target / part)
    shutil.copy(source / "policy.json", target)
    stages = {name: values for name, values in results(source)["stages"].items() if name in SHARED}
    (target / "results.json").write_text(json.dumps({"stages": stages}))


def results(folder: Path) -> dict:
    path = folder / "results.json"
    return json.loads(path.read_text()) if path.exists() else {}


def described(policy: str, found: list[dict]) -> str:
    """A row of the table: rates with n and their 95 % Wilson intervals, and how long it took."""
    before, seconds = found[0]["stages"]["evaluation_before"]["greedy"], found[0]["seconds"]
    rates = [before, *(each["stages"]["evaluation_after"]["greedy"] for each in found)]
    cells = [f"{100 * r['rate']:.1f} % [{100 * r['wilson_95'][0]:.1f}, {100 * r['wilson_95'][1]:.1f}]" for r in rates]
    queries = before["mean_decisions"] * before["num_starts"] / seconds["evaluation_before/greedy"]
    times = "/".join(f"{each['seconds']['rl']:.0f}" for each in found)
    row = "".join(f"{cell:<28}" for cell in cells)
    return (
        f"{policy:<11}{row}n={before['num_starts']}, SFT {seconds['sft']:.0f} s, RL {times} s, {queries:.0f} queries/s"
    )
