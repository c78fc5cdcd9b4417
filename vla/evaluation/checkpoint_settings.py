"""Settings for evaluating a checkpoint: those of its run, with overrides; checks of its starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla.config import ConfigError, RobotConfig, freeze
from vla.config.compose import (
    apply_overrides,
    check_groups,
    compose_with_hydra,
    fill_new_settings,
    read_settings,
    split_overrides,
)
from vla.config.renamed import with_new_names
from vla.evaluation.starts import StartManifest
from vla.spelling import nearest_name, suggestion

NO_PERTURBATION = "none"
"""Name of the condition without a perturbation."""
POLICY_SETTINGS = ("cameras", "image_size", "num_envs", "renderer", "num_threads")
"""Settings that `sim=NAME` does not change: the policy's images, and how they are rendered."""


def checkpoint_settings(run: Path, overrides: Sequence[str] = ()) -> RobotConfig:
    """The run's settings with `key=value` overrides; `sim=NAME` keeps the run's cameras.

    Raises:
        ConfigError: the folder is not a run of a robot policy, or an override is not valid.
    """
    changes = split_overrides(overrides)
    check_groups(changes)
    task = changes.pop("sim", None)
    values = fill_new_settings(saved_settings(run))
    if task is not None:
        simulation = compose_with_hydra({"sim": task})["sim"]
        values["sim"] = simulation | {
            name: values["sim"][name]
            for name in POLICY_SETTINGS
            if name in simulation and name in values["sim"]
        }
    config = freeze(apply_overrides(values, changes))
    assert isinstance(config, RobotConfig)
    return config


def saved_settings(run: Path) -> dict[str, Any]:
    """Read config.yaml of a run of a robot policy, of an earlier version too.

    Raises:
        ConfigError: the folder is not a run, or not one of a robot policy.
    """
    if not (run / "config.yaml").exists():
        raise ConfigError(f"{run} is no run: there is no config.yaml in it{suggest_runs(run)}")
    values = with_new_names(read_settings(run))
    if values["mode"] != "robot":
        raise ConfigError(
            f"{run} is a run of mode={values['mode']}: only robot policies are evaluated in a "
            "simulator"
        )
    return values


def suggest_runs(wrong: Path) -> str:
    """A hint for errors: the run beside `wrong` with the nearest name, else the newest run."""
    runs = sorted(other.parent for other in wrong.parent.glob("*/config.yaml"))
    near = nearest_name(wrong.name, [run.name for run in runs])
    if near is not None:
        return f"; did you mean {wrong.parent / near}?"
    return (
        f"; the newest run there is {max(runs, key=lambda run: run.stat().st_mtime)}"
        if runs
        else ""
    )


def check_held_out(starts: StartManifest, run: Path, config: RobotConfig) -> StartManifest:
    """Check evaluation starts against the run's training, validation and demonstration starts.

    Returns the manifest with the run's own training and validation ranges.

    Raises:
        ValueError: evaluation starts are not held out.
    """
    if (run / "starts.json").exists():
        trained = StartManifest.load(run / "starts.json")
        starts = replace(starts, train=trained.train, validation=trained.validation)
    check_demonstrations(starts, find_demonstrations(run, config))
    return starts


def find_demonstrations(run: Path, config: RobotConfig) -> Path | None:
    """Folder of a run's demonstrations; None where it no longer exists."""
    folder = run / "demonstrations" if config.data.path is None else Path(config.data.path)
    return folder if (folder / "meta" / "info.json").exists() else None


def check_demonstrations(manifest: StartManifest, folder: Path | None) -> None:
    """Check that no evaluation start has a demonstration in `folder`.

    Raises:
        ValueError: a start has one.
    """
    if folder is None:
        return
    import numpy as np

    from vla.files.arrays import column_names, read_table

    evaluation_seeds = manifest.evaluation_seeds
    for file in sorted((folder / "data").rglob("*.parquet")):
        if "seed" not in column_names(file):
            return
        demonstrated = np.unique(read_table(file, ["seed"])["seed"].to_numpy())
        both = np.intersect1d(demonstrated, evaluation_seeds)
        if len(both):
            raise ValueError(
                f"evaluation.eval_seeds holds start {int(both[0])}, of which {folder} has a "
                "demonstration: choose seeds without demonstrations"
            )


def select_perturbations(
    requested: str, known: Sequence[str], simulator: str | None = None
) -> list[str]:
    """Parse `--perturb`: `all`, `none`, or names with commas; the nominal condition comes first.

    Raises:
        ConfigError: the simulator has no such perturbation.
    """
    names = (
        [name for name in known if name != NO_PERTURBATION]
        if requested == "all"
        else requested.split(",")
    )
    owner = "" if simulator is None else f" of sim.simulator={simulator}"
    for name in names:
        if name not in (*known, NO_PERTURBATION):
            raise ConfigError(
                f"--perturb {name}: no such perturbation{owner}{suggestion(name, sorted(known))}"
            )
    return [NO_PERTURBATION, *(name for name in names if name != NO_PERTURBATION)]
