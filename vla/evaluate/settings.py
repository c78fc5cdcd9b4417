"""The settings a checkpoint is judged with: those of its run, another task or other starts if they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vla.config import ConfigError, RobotConfig, freeze
from vla.config.compose import check_groups, composed, option_values, resumed, split, suggestion
from vla.evaluate.starts import SeedRange, StartManifest

UNCHANGED = "none"
"""The perturbation that changes nothing."""
OF_THE_POLICY = ("cameras", "image_size", "num_envs", "renderer", "num_threads")
"""What `sim=NAME` leaves as the run has it: what the policy sees, and how this machine draws it."""


def settings_of(run: Path, overrides: Sequence[str] = ()) -> RobotConfig:
    """The run's own settings with `key=value` strings; `sim=NAME` takes another simulation under the same cameras.

    Raises ConfigError (a ValueError) when the folder is no run of a robot policy, or a setting cannot be.
    """
    given = split(overrides)
    check_groups(given)
    task = given.pop("sim", None)
    if task is not None:
        given = {**task_overrides(task), **given}
    values = resumed(str(run), given)
    if values["mode"] != "robot":
        raise ConfigError(f"{run} is a run of mode={values['mode']}: only robot policies are judged in a simulator")
    config = freeze(with_later_settings(values))
    assert isinstance(config, RobotConfig)
    return config


def task_overrides(task: str) -> dict[str, str]:
    """`sim=NAME` as single settings."""
    values = {k: v for k, v in option_values("sim", task).items() if k not in (*OF_THE_POLICY, "defaults")}
    return {
        f"sim.{k}": yaml.safe_dump(v, default_flow_style=True, width=10_000).split("\n")[0] for k, v in values.items()
    }


def with_later_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that came after the run was made get today's default."""
    today = composed({"mode": values["mode"]})
    sections = ("sim", "data", "sft", "rl", "evaluation", "train")
    return {**values, **{name: {**today[name], **values[name]} for name in sections}}


def starts_to_judge(run: Path, config: RobotConfig) -> StartManifest:
    """Held-out starts: the evaluation seeds of the settings, apart from those that the run trained on and chose by.

    Raises ValueError when they overlap, in the settings, or with the seeds of the run's demonstrations.
    """
    ranges = config.evaluation
    saved = run / "starts.json"
    trained = StartManifest.load(saved) if saved.exists() else None
    scene = config.sim.model_dump(
        mode="json", include={"task", "robot", "max_steps", "num_distractors", "randomization"}
    )
    manifest = StartManifest(
        scene,
        trained.train if trained else SeedRange(ranges.train_seeds.first, ranges.train_seeds.last),
        trained.validation if trained else SeedRange(ranges.validation_seeds.first, ranges.validation_seeds.last),
        SeedRange(ranges.eval_seeds.first, ranges.eval_seeds.last),
        num_starts=config.evaluation.num_starts,
    )
    check_demonstrations(manifest, demonstrations_of(run, config))
    return manifest


def demonstrations_of(run: Path, config: RobotConfig) -> Path | None:
    """Where the demonstrations of a run stand, if they still do."""
    folder = run / "demonstrations" if config.data.path is None else Path(config.data.path)
    return folder if (folder / "meta" / "info.json").exists() else None


def check_demonstrations(manifest: StartManifest, folder: Path | None) -> None:
    """Refuse starts of which the policy has seen a demonstration."""
    if folder is None:
        return
    import numpy as np
    import pyarrow.parquet as parquet

    judged = manifest.evaluation_seeds
    for file in sorted((folder / "data").rglob("*.parquet")):
        if "seed" not in parquet.read_schema(file).names:
            return
        seen = np.unique(parquet.read_table(file, columns=["seed"])["seed"].to_numpy())
        both = np.intersect1d(seen, judged)
        if len(both):
            raise ValueError(
                f"evaluation.eval_seeds holds start {int(both[0])}, of which {folder} has a demonstration: "
                "choose seeds that the policy has not seen"
            )


def chosen_perturbations(wanted: str, known: Sequence[str]) -> list[str]:
    """Names among the simulator's perturbations: `all`, `none`, or names with commas; nothing changed always first."""
    names = [name for name in known if name != UNCHANGED] if wanted == "all" else wanted.split(",")
    for name in names:
        if name not in (*known, UNCHANGED):
            raise ConfigError(f"--perturb {name}: no such perturbation{suggestion(name, sorted(known))}")
    return [UNCHANGED, *(name for name in names if name != UNCHANGED)]
