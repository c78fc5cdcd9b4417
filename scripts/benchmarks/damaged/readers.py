"""Readers of the files of a run or an export; none needs a simulator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Reader = Callable[[Path], None]
"""Reads a folder. Raises ValueError or OSError where it cannot."""


def load_settings(folder: Path) -> None:
    from vla.config import load

    load([f"resume={folder}"])


def load_policy(folder: Path) -> None:
    from vla.evaluation.checkpoint_settings import checkpoint_settings
    from vla.pipelines.robot import policy as robot_policy
    from vla.policy_spec import simulator_from_spec

    config = checkpoint_settings(folder)
    weights = robot_policy.find_weights(folder)
    if weights is None:
        raise ValueError(f"{folder} holds no policy")
    simulator = simulator_from_spec(folder, weights)
    robot_policy.load_policy(folder, config, simulator, weights)  # type: ignore[arg-type]


def write_report(folder: Path) -> None:
    from vla.report.robot_report import write_report

    write_report(folder)


def write_card(folder: Path) -> None:
    from vla.interop.hub.card import model_card

    model_card(folder, 1)


def list_episodes(folder: Path) -> None:
    from vla.policy_spec import ReplaySpec, read_policy_spec
    from vla.viewer.library import EpisodeLibrary

    EpisodeLibrary(
        folder, lambda *_: [], read_policy_spec(folder, ReplaySpec)["action_spec"]
    ).summaries()


def open_data(folder: Path) -> None:
    from vla.data.demonstrations import open_demonstrations

    open_demonstrations(folder / "demonstrations")


def load_text(folder: Path) -> None:
    from vla.text.language_model import load_from_folder

    load_from_folder(str(folder / "model"), None)


def read_run_files(folder: Path) -> None:
    from vla.training.metrics import read_metrics
    from vla.training.run_folder import RunFolder, read_sessions

    RunFolder(folder).read_results()
    read_sessions(folder)
    read_metrics(folder)


READERS: dict[str, tuple[Reader, ...]] = {
    "config.yaml": (load_settings, load_policy, write_report, write_card),
    "policy.json": (load_policy, write_card, list_episodes),
    "starts.json": (write_report, write_card),
    "results.json": (read_run_files, write_report, write_card),
    "run.json": (read_run_files, write_report, write_card),
    "metrics.jsonl": (read_run_files, write_report),
    "manifest.json": (load_policy,),
    "model.safetensors": (load_policy,),
    "tokenizer": (load_policy,),
    "checkpoints": (load_policy,),
    "recordings": (list_episodes,),
    "demonstrations": (open_data, write_report),
    "model": (load_text,),
}
"""Readers by the first part of a file's path. Films and plots have none."""
