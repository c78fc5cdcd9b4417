"""A GRPO step on a language model against TRL's GRPOTrainer: seconds, tokens a second and peak
memory, in one run.

Both sides do the same work: the same model, prompts, group size, completion length, temperature 1
and AdamW in float32 (`--precision bfloat16`: products in bfloat16, for processors with units for
it), with a reward that differs between completions, so that no group is skipped. Each side runs in
a process of its own, with the same allocator settings; TRL gets the micro-batch it is fastest with,
our side has one. The first step of each warms up and is left out. TRL is not among our
dependencies: `pip install --no-deps trl` in an environment of its own.
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
    found = {}
    for side in ("trl", "ours"):
        done = subprocess.run([*script, "--side", side], capture_output=True, text=True)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return 1
        found[side] = json.loads(done.stdout.splitlines()[-1])
        step = found[side]
        print(
            f"{side:<4}  {step['wall']:7.2f} s a step  {step['cpu']:7.2f} CPU s a step"
            f"  {step['tokens'] / step['wall']:6.0f} tokens/s  peak {step['bytes'] / 2**30:.2f} GiB"
        )
    ours, trl = found["ours"], found["trl"]
    print(
        f"TRL / ours: {trl['wall'] / ours['wall']:.2f} of the time, {trl['cpu'] / ours['cpu']:.2f} of the CPU time,"
        f" {trl['bytes'] / ours['bytes']:.2f} of the memory"
    )
    return 0


def measure(options) -> dict[str, float]:
    """Median seconds of a step of one side, the tokens it drew, and the peak of its memory."""
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
