"""What differs between two run folders, but for times, memory, plots and what a session says about
itself."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IGNORED = {".process", "config.yaml", "run.json", "manifest.json", "report.html", "evaluation.html"}
FOLDERS = {"plots", "tensorboard", ".frames"}
COSTS = ("seconds", "memory")


def differences(one: Path, other: Path) -> list[str]:
    """A line for every file that only one has, or that holds other values."""
    left, right = files(one), files(other)
    found = [
        f"{name} is in {'one' if name in left else 'the other'} alone"
        for name in sorted(left.keys() ^ right.keys())
    ]
    return found + [
        f"{name} differs"
        for name in sorted(left.keys() & right.keys())
        if read(left[name]) != read(right[name])
    ]


def files(run: Path) -> dict[str, Path]:
    """The files of a run by their names in it; of every stage the last checkpoint, under one
    name."""
    from vla.training.checkpoint import last_checkpoint

    found = {}
    stages = sorted((run / "checkpoints").glob("*/"))
    for stage in stages:
        last = last_checkpoint(stage)
        kept = [] if last is None else [path for path in last.iterdir() if path.name not in IGNORED]
        found |= {f"checkpoints/{stage.name}/last/{path.name}": path for path in kept}
    for path in run.rglob("*"):
        name = path.relative_to(run)
        if (
            path.is_file()
            and name.parts[0] != "checkpoints"
            and path.name not in IGNORED
            and not FOLDERS & {*name.parts}
        ):
            found[str(name)] = path
    return found


def read(path: Path) -> Any:
    """The values of a file that can be compared: of safetensors the bytes of every array, else what
    it holds."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return {name: (str(v.dtype), v.shape, v.tobytes()) for name, v in load_file(path).items()}
    if path.suffix == ".json":
        return list(comparable_values(json.loads(path.read_text())))
    if path.suffix == ".jsonl":
        return [list(comparable_values(json.loads(line))) for line in path.read_text().splitlines()]
    return path.read_bytes()


def comparable_values(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every plain value by its path, but for what a run costs."""
    if any(cost in name for cost in COSTS):
        return
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if inner is None:
        yield name, repr(value)
        return
    for key, item in inner:
        yield from comparable_values(item, f"{name}/{key}")
