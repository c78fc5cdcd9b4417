"""A GRPO step on a language model by our core and by TRL: seconds, tokens a second, peak memory.

Both sides have the same model, prompts, group size, completion length, temperature 1 and AdamW in
float32 (`--precision bfloat16`: matrix products in bfloat16, for processors with units for it). The
reward differs between completions, so that no group is skipped. Each side runs in a process of its
own, with the same allocator settings. TRL gets its fastest micro-batch, our side has one. The first
step of each warms up and does not count. TRL is not a dependency: `pip install --no-deps trl` in an
environment of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py text_grpo", description=__doc__)
    parser.add_argument("--model", choices=["smollm2", "tiny"], default="smollm2")
    parser.add_argument("--prompts", type=int, default=8, help="a step")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=24, help="longest completion")
    parser.add_argument(
        "--micro-batch",
        type=int,
        default=16,
        help="completions of TRL's forward pass with gradient",
    )
    parser.add_argument("--steps", type=int, default=2, help="measured, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision", choices=["float32", "bfloat16"], default="float32", help="of matrix products"
    )
    parser.add_argument("--side", choices=["ours", "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.side:
        print(json.dumps(measure(options)))
        return 0
    script = [sys.executable, str(Path(__file__).parents[1] / "benchmark.py"), "text_grpo", *argv]
    results = {}
    for side in ("trl", "ours"):
        done = subprocess.run([*script, "--side", side], capture_output=True, text=True)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return 1
        results[side] = json.loads(done.stdout.splitlines()[-1])
        step = results[side]
        print(
            f"{side:<4}  {step['wall']:7.2f} s a step  {step['cpu']:7.2f} CPU s a step"
            f"  {step['tokens'] / step['wall']:6.0f} tokens/s  peak {step['bytes'] / 2**30:.2f} GiB"
        )
    ours = results["ours"]
    trl = results["trl"]
    print(
        f"TRL / ours: {trl['wall'] / ours['wall']:.2f} of the time, "
        f"{trl['cpu'] / ours['cpu']:.2f} of the CPU time, "
        f"{trl['bytes'] / ours['bytes']:.2f} of the memory"
    )
    return 0


def measure(options: argparse.Namespace) -> dict[str, float]:
    """The step of median time of one side: seconds, tokens, and the peak memory of the process."""
    from vla import runtime

    runtime.prepare(options.threads)
    import importlib

    from benchmarks.text.questions import model_folder

    steps = importlib.import_module(f"benchmarks.text.{options.side}_side").measure_steps(
        options, model_folder(options.model)
    )
    measured = sorted(steps[1:], key=lambda step: step["wall"])
    from vla.training.timing import peak_memory_bytes

    return {**measured[len(measured) // 2], "bytes": peak_memory_bytes()}
