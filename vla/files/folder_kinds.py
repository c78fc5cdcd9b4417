"""What a folder holds, and the setting that takes it: for messages about a wrong folder."""

from __future__ import annotations

from pathlib import Path

from vla.files.policy_folders import find_policy
from vla.files.reading import DamagedFile, read_json, read_yaml

ADAPTER = "adapter_config.json"
"""File of an adapter of peft."""
TEXT_MODEL = "model"
"""Folder of a text run with its trained model."""


def describe_folder(folder: Path) -> tuple[str, str]:
    """(what `folder` is, as text; what to do with it).

    Kinds: a file, an empty folder, a run, an export, a checkpoint of LeRobot or of a run, a data
    set, an evaluation, a model or adapter of transformers. Anything else is a folder without any.
    """
    if folder.is_file():
        return "a file", f"give the folder that it is in ({folder.parent})"
    if not any(folder.iterdir()):
        return "an empty folder", "give the folder of a run or a model"
    policy = find_policy(folder)
    if policy is not None and policy[0] != "run":
        what = {"lerobot": "a checkpoint of LeRobot", "export": "an exported robot policy"}
        return what[policy[0]], f"policy.path={folder} starts a robot run from it"
    if is_checkpoint(folder):
        run = folder.parent.parent.parent
        return f"a checkpoint of the run {run}", f"give {run}"
    if (folder / "config.yaml").is_file():
        return describe_run(folder)
    if (folder / "meta" / "info.json").is_file():
        return "a dataset of LeRobot", f"data.path={folder} trains a robot policy on it"
    if (folder / "evaluation.json").is_file():
        return "an evaluation", "give the folder of the run that was evaluated"
    if (folder / ADAPTER).is_file():
        return "an adapter of a model", f"mode=text language_model.path={folder} starts from it"
    if (folder / "config.json").is_file():
        return describe_model(folder)
    return "a folder without a run or a model", "give the folder of a run or a model"


def is_checkpoint(folder: Path) -> bool:
    """True for a checkpoint of a run, which holds a copy of the settings."""
    return (folder / "state.json").is_file()


def describe_run(folder: Path) -> tuple[str, str]:
    """(what the run in `folder` is, what to do with it)."""
    try:
        mode = read_yaml(folder / "config.yaml").get("mode")
    except DamagedFile as error:
        return f"a run with a damaged config.yaml ({error.fault})", "restore it"
    if mode == "text":
        return "a run of mode=text", f"mode=text language_model.path={folder} starts from its model"
    if mode == "robot":
        return "a run of mode=robot", f"policy.path={folder} starts from its policy"
    return f"a folder with settings of mode={mode}", "give the folder of a run"


def describe_model(folder: Path) -> tuple[str, str]:
    """(what the model of transformers in `folder` is, what to do with it)."""
    try:
        kind = read_json(folder / "config.json", finite=False).get("model_type")
    except DamagedFile as error:
        return f"a model with a damaged config.json ({error.fault})", "restore it"
    return (
        f"a model of transformers ({kind})",
        f"mode=text language_model.path={folder} trains it, model=vlm or model=hub with "
        f"model.backbone.repository={folder} makes a robot policy of it",
    )
