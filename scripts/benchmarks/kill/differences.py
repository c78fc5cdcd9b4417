"""The differences between two run folders, without times, memory, plots and records of sessions."""

import json
from collections.abc import Iterator
from pathlib import Path

IGNORED = {".process", "config.yaml", "run.json", "manifest.json", "report.html", "evaluation.html"}
FOLDERS = {"plots", "tensorboard", ".frames"}
COSTS = ("seconds", "memory")


def differences(one: Path, other: Path) -> list[str]:
    """A line for every file that only one folder has, or whose values differ."""
    left = list_files(one)
    right = list_files(other)
    missing = [
        f"{name} is in {'one' if name in left else 'the other'} alone"
        for name in sorted(left.keys() ^ right.keys())
    ]
    return missing + [
        f"{name} differs"
        for name in sorted(left.keys() & right.keys())
        if read_values(left[name]) != read_values(right[name])
    ]


def list_files(run: Path) -> dict[str, Path]:
    """The files of a run by relative path; the last checkpoint of every stage has a fixed name."""
    from vla.training.checkpoint import last_checkpoint

    files: dict[str, Path] = {}
    stages = sorted((run / "checkpoints").glob("*/"))
    for stage in stages:
        last = last_checkpoint(stage)
        paths = [] if last is None else [p for p in last.iterdir() if p.name not in IGNORED]
        files |= {f"checkpoints/{stage.name}/last/{path.name}": path for path in paths}
    for path in run.rglob("*"):
        name = path.relative_to(run)
        if (
            path.is_file()
            and name.parts[0] != "checkpoints"
            and path.name not in IGNORED
            and not FOLDERS & {*name.parts}
        ):
            files[str(name)] = path
    return files


def read_values(path: Path) -> object:
    """Read the comparable values of a file: the bytes of every array of safetensors, the values of
    JSON, or all bytes."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return {name: (str(v.dtype), v.shape, v.tobytes()) for name, v in load_file(path).items()}
    if path.suffix == ".json":
        return list(comparable_values(json.loads(path.read_text())))
    if path.suffix == ".jsonl":
        return [list(comparable_values(json.loads(line))) for line in path.read_text().splitlines()]
    return path.read_bytes()


def comparable_values(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield every plain value with its path, without times and memory."""
    if any(cost in name for cost in COSTS):
        return
    if not isinstance(value, dict | list):
        yield name, repr(value)
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from comparable_values(item, f"{name}/{key}")
