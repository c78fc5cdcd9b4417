"""The run folder: settings, environment, results, checkpoints, and paths of all other outputs.

runs/20261121-130455-pick_place-token-grpo/
  config.yaml  run.json  starts.json  metrics.jsonl  results.json
  checkpoints/ tensorboard/ videos/ plots/
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from vla.cli import to_yaml
from vla.config import Config
from vla.files.reading import KEYS, read_optional_json
from vla.files.secrets import mask_secrets
from vla.files.writing import remove_unfinished, write_atomically, write_json
from vla.training.distributed import SINGLE_PROCESS, Processes
from vla.training.metrics import json_value
from vla.training.run_lock import lock_run_folder
from vla.training.synchronization import broadcast_from_main, propagate_errors

LIBRARIES = ("torch", "transformers", "timm", "mujoco", "mujoco-warp", "lerobot", "numpy")


class StoredResults(TypedDict):
    """Required keys of results.json: values by stage, and seconds by timer."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    stages: NotRequired[dict[str, dict[str, Any]]]
    seconds: NotRequired[dict[str, float]]


@dataclass(frozen=True)
class RunFolder:
    """Paths in a run folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def starts(self) -> Path:
        return self.path / "starts.json"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    def write_results(self, values: Mapping[str, object]) -> None:
        """Replace results.json. Values may nest dataclasses, objects with `to_dict`, arrays and
        numbers."""
        write_json(self.results, to_plain(values))

    def read_results(self) -> dict[str, Any]:
        """Contents of results.json; empty before the first result."""
        return read_optional_json(
            self.results, {}, StoredResults, "restore it, or delete it and evaluate the run again"
        )


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """The sessions of a run from run.json, oldest first; empty without that file."""
    remedy = "delete it: only the record of earlier sessions is lost"
    return read_optional_json(path / "run.json", [], list[dict[str, Any]], remedy)


def open_run(config: Config, processes: Processes = SINGLE_PROCESS) -> RunFolder:
    """Make the run folder of a configuration, or open the folder it resumes, and write the
    settings.

    The main process writes; every process gets the folder.

    Raises:
        ValueError: where `run_dir` holds another run, or another process is writing to it.
    """
    path = Path()
    with propagate_errors(processes):
        if processes.is_main:
            path = _open(config)
    return RunFolder(broadcast_from_main(path, processes))


def _open(config: Config) -> Path:
    path = Path(config.resume) if config.resume else make_run_folder(config)
    lock_run_folder(path)
    if not config.resume:
        check_unused(path)  # another run may have started since the first check
    for folder in (path, path / "recordings", path / "videos"):
        remove_unfinished(folder)
    write_atomically(path / "config.yaml", to_yaml(config))
    write_json(path / "run.json", [*read_sessions(path), describe_environment()])
    return path


def check_unused(path: Path) -> None:
    """Check that a folder holds no run.

    Raises:
        ValueError: where it does.
    """
    if (path / "config.yaml").exists():
        raise ValueError(
            f"run_dir ({path}) holds a run: resume={path} continues it, or choose another folder"
        )


def make_run_folder(config: Config) -> Path:
    """Make `run_dir`, or runs/<time>-<name> with a number appended where that name is taken."""
    if config.run_dir is not None:
        path = Path(config.run_dir)
        check_unused(path)
        path.mkdir(parents=True, exist_ok=True)
        return path
    parent = Path("runs")
    parent.mkdir(exist_ok=True)
    return make_numbered_folder(parent, f"{datetime.now():%Y%m%d-%H%M%S}-{config.name}")


def make_numbered_folder(parent: Path, name: str) -> Path:
    """Make a folder `name`, with a number appended where it exists.

    Raises:
        ValueError: where 999 such folders exist.
    """
    for path in (parent / name, *(parent / f"{name}-{i}" for i in range(2, 1000))):
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise ValueError(f"{parent / name} and 998 folders after it are taken: choose another run_dir")


def describe_environment() -> dict[str, object]:
    """Command, commit, machine and library versions of this session."""
    return {
        "command": mask_secrets(" ".join([Path(sys.executable).name, *sys.argv])),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": git_output("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git_output("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "machine": (
            f"{platform.system()} {platform.machine()}, "
            f"{processor_name()}, {format_cores(available_cores())}"
        ),
        "libraries": {name: text for name in LIBRARIES if (text := installed_version(name))},
    }


def format_cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"


def git_output(*arguments: str) -> str | None:
    """Output of a git command in the source tree; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parents[2]), *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def processor_name() -> str:
    """Model name of the processor from /proc/cpuinfo, or "unknown processor"."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        "unknown processor",
    )


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def to_plain(value: Any) -> Any:
    """Convert a value to types of JSON: dataclasses and objects with `to_dict` to dicts, arrays to
    lists, NaN to null."""
    if hasattr(value, "to_dict"):
        return to_plain(value.to_dict())
    if hasattr(value, "__dataclass_fields__"):
        return to_plain(vars(value))
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [to_plain(item) for item in value]
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) > 0:
        return to_plain(value.tolist())
    return str(value) if isinstance(value, Path) else json_value(value)
