"""Measure speed as a ratio to a peer in the same run: `python scripts/benchmark.py NAME --help`.

    rollout   the vector environment against a bare loop of physics and rendering
    data      random access to demonstrations against LeRobot's own
    rl_update an update of the core against TRL's loss, on the same tensors
    kills     runs killed at random moments and resumed: what they end with, bit for bit
    policies  every kind of policy on the same demonstrations: success after SFT and RL, time
    serving   a policy server beside hostile clients: latency of the others, memory
    damage    files of a run damaged one at a time: an error of one line, never a traceback
    settings  spoiled settings: tracebacks, slow checks, accepted oddities
    text_grpo a GRPO step on a language model against TRL's trainer

A benchmark is a module of `scripts/benchmarks` with a docstring and `run(argv) -> int`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from vla.cli import command


def names() -> list[str]:
    """The benchmarks there are."""
    folder = Path(__file__).resolve().parent / "benchmarks"
    return sorted(path.stem for path in folder.glob("[a-z]*.py") if path.stem != "clock")


PEERS = ("trl", "stable_baselines3")


@command()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=names())
    argv = sys.argv[1:] if argv is None else argv
    chosen = parser.parse_args(argv[:1]).name
    import importlib

    try:
        return importlib.import_module(f"benchmarks.{chosen}").run(argv[1:])
    except ModuleNotFoundError as error:
        if error.name not in PEERS:
            raise
        command = f"uv run --group peers python scripts/benchmark.py {chosen}"
        print(
            f"error: {chosen} measures {error.name} beside us, which is not installed: {command}",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
