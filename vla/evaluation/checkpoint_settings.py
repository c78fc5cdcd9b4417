"""The settings a checkpoint is judged with: those of its run, another task or other starts if they
are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla.config import ConfigError, RobotConfig, freeze
from vla.config.compose import (
    apply_overrides,
    check_groups,
    compose_with_hydra,
    read_settings,
    split_overrides,
)
from vla.evaluation.starts import StartManifest
from vla.spelling import nearest_name, suggestion

NO_PERTURBATION = "none"
"""The perturbation that changes nothing."""
POLICY_SETTINGS = ("cameras", "image_size", "num_envs", "renderer", "num_threads")
"""What `sim=NAME` leaves as the run has it: what the policy sees, and how this machine draws it."""


def checkpoint_settings(run: Path, overrides: Sequence[str] = ()) -> RobotConfig:
    """The run's own settings with `key=value` strings; `sim=NAME` takes another simulation under
    the same cameras.

    Raises ConfigError (a ValueError) when the folder is no run of a robot policy, or a setting
    cannot be.
    """
    given = split_overrides(overrides)
    check_groups(given)
    task = given.pop("sim", None)
    values = fill_new_settings(saved_settings(run))
    if task is not None:
        asked = compose_with_hydra({"sim": task})["sim"]
        values["sim"] = asked | {
            name: values["sim"][name]
            for name in POLICY_SETTINGS
            if name in asked and name in values["sim"]
        }
    config = freeze(apply_overrides(values, given))
    assert isinstance(config, RobotConfig)
    return config


def saved_settings(run: Path) -> dict[str, Any]:
    """What stands in the config.yaml of a run of a robot policy."""
    if not (run / "config.yaml").exists():
        raise ConfigError(f"{run} is no run: there is no config.yaml in it{suggest_runs(run)}")
    values = read_settings(run)
    if values["mode"] != "robot":
        raise ConfigError(
            f"{run} is a run of mode={values['mode']}: only robot policies are judged in a simulator"
        )
    return values


def suggest_runs(wrong: Path) -> str:
    """The runs that stand where `wrong` was looked for: the one of the nearest name, else the
    newest."""
    runs = sorted(other.parent for other in wrong.parent.glob("*/config.yaml"))
    near = nearest_name(wrong.name, [run.name for run in runs])
    if near is not None:
        return f"; did you mean {wrong.parent / near}?"
    return (
        f"; the newest run there is {max(runs, key=lambda run: run.stat().st_mtime)}"
        if runs
        else ""
    )


def fill_new_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that came after the run was made get today's default."""
    today = compose_with_hydra({"mode": values["mode"]})
    sections = [
        "data",
        "sft",
        "recap",
        "rl",
        "evaluation",
        "train",
        *(["sim"] if is_default_simulator(values["sim"], today["sim"]) else []),
    ]
    return {**values, **{name: {**today[name], **values.get(name, {})} for name in sections}}


def is_default_simulator(sim: Mapping[str, Any], today: Mapping[str, Any]) -> bool:
    """Whether saved settings are of the simulator that is the default."""
    return "task" in sim and sim.get("simulator", today["simulator"]) == today["simulator"]


def check_held_out(starts: StartManifest, run: Path, config: RobotConfig) -> StartManifest:
    """The starts, held against the ranges that the run itself trained on and chose by, and against
    its demonstrations.

    Raises ValueError when they overlap.
    """
    if (run / "starts.json").exists():
        trained = StartManifest.load(run / "starts.json")
        starts = replace(starts, train=trained.train, validation=trained.validation)
    check_demonstrations(starts, find_demonstrations(run, config))
    return starts


def find_demonstrations(run: Path, config: RobotConfig) -> Path | None:
    """Where the demonstrations of a run stand, if they still do."""
    folder = run / "demonstrations" if config.data.path is None else Path(config.data.path)
    return folder if (folder / "meta" / "info.json").exists() else None


def check_demonstrations(manifest: StartManifest, folder: Path | None) -> None:
    """Refuse starts of which the policy has seen a demonstration."""
    if folder is None:
        return
    import numpy as np

    from vla.files.arrays import column_names, read_table

    judged = manifest.evaluation_seeds
    for file in sorted((folder / "data").rglob("*.parquet")):
        if "seed" not in column_names(file):
            return
        seen = np.unique(read_table(file, ["seed"])["seed"].to_numpy())
        both = np.intersect1d(seen, judged)
        if len(both):
            raise ValueError(
                f"evaluation.eval_seeds holds start {int(both[0])}, of which {folder} has a demonstration: "
                "choose seeds that the policy has not seen"
            )


def select_perturbations(
    wanted: str, known: Sequence[str], simulator: str | None = None
) -> list[str]:
    """Names among the simulator's perturbations: `all`, `none`, or names with commas; nothing
    changed always first."""
    names = (
        [name for name in known if name != NO_PERTURBATION]
        if wanted == "all"
        else wanted.split(",")
    )
    owner = "" if simulator is None else f" of sim.simulator={simulator}"
    for name in names:
        if name not in (*known, NO_PERTURBATION):
            raise ConfigError(
                f"--perturb {name}: no such perturbation{owner}{suggestion(name, sorted(known))}"
            )
    return [NO_PERTURBATION, *(name for name in names if name != NO_PERTURBATION)]
