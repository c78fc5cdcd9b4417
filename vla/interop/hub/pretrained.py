"""A policy as a folder that goes to the hub and comes back: safetensors and JSON, a model card, and
the policy spec that is held against the environment whenever the policy is loaded.

    README.md  config.json  config.yaml  policy.json  starts.json  model.safetensors  tokenizer/
    manifest.json  policy_preprocessor.json  policy_postprocessor.json

The last two and config.json are what LeRobot reads: the folder is one of its checkpoints too
(`vla.interop.lerobot`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from vla.config.robot import RobotConfig
from vla.evaluation.checkpoint_settings import checkpoint_settings, saved_settings, suggest_runs
from vla.files.policy_folders import FILES, LAST_TRAINED, hub_folder
from vla.files.policy_manifest import WEIGHTS, write_checksums
from vla.files.secrets import mask_nested
from vla.files.writing import atomic_file
from vla.interop.hub.card import model_card
from vla.interop.hub.lerobot_files import lerobot_files
from vla.policy_spec import PROPRIO, read_policy_spec
from vla.runtime import is_hub_name
from vla.training.state_files import make_contiguous


def save_pretrained(run: Path, folder: Path, make_simulator: Callable[[Any], Any]) -> Path:
    """Write the policy that `run` ended with into `folder`, with a model card of its results.

    Raises:
        ValueError: the run holds no policy, or the folder holds other files.
    """
    from safetensors.torch import save_file

    from vla.pipelines.robot.policy import load_policy

    if folder.exists() and any(folder.iterdir()) and not (folder / WEIGHTS).exists():
        raise ValueError(f"{folder} holds other files: choose an empty folder")
    config = checkpoint_settings(run)
    policy, _ = load_policy(run, config, make_simulator(config.sim))
    folder.mkdir(parents=True, exist_ok=True)
    weights = make_contiguous(policy.state_dict())
    with atomic_file(folder / WEIGHTS) as unfinished:
        save_file(weights, unfinished, {"format": "pt"})
    for name in ("policy.json", "starts.json"):
        shutil.copyfile(run / name, folder / name)
    shutil.copytree(run / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump(mask_nested(portable_settings(saved_settings(run))), sort_keys=False)
    )
    size, policy_spec = sum(tensor.numel() for tensor in weights.values()), read_policy_spec(run)
    for name, text in lerobot_files(policy_spec, len(weights[PROPRIO]), size).items():
        (folder / name).write_text(text)
    (folder / "README.md").write_text(model_card(run, size))
    write_checksums(folder)
    return folder


def portable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without paths of this machine; the weights include those of model.checkpoint."""
    portable = {**settings, "run_dir": None, "resume": None}
    portable["model"] = {**settings["model"], "checkpoint": None}
    portable["policy"] = {**settings["policy"], "path": None}
    portable["data"] = {**settings["data"], "path": None}
    return portable


def from_pretrained(
    name: str, make_simulator: Callable[[Any], Any]
) -> tuple[Any, Any, Any, RobotConfig]:
    """Policy, its observer, world and settings, from a folder or `user/name` on the hub.

    Raises ValueError when there is none, or its actions mean something else than those of the world
    it is put into.
    """
    from vla.pipelines.robot.policy import load_policy

    folder = local_folder(name)
    config = checkpoint_settings(folder)
    simulator = make_simulator(config.sim)
    return *load_policy(folder, config, simulator), simulator, config


def local_folder(name: str) -> Path:
    """The folder of that name, or the policy of ours that `lerobot-train` saved last in it, or what
    the hub holds."""
    folder = Path(name)
    if folder.exists():
        trained = folder / LAST_TRAINED
        return trained if (trained / "policy.json").is_file() else folder
    if not is_hub_name(name):
        raise ValueError(
            f"{name} is neither a folder nor a repository on the hub "
            f"(user/name){suggest_runs(folder)}"
        )
    return hub_folder(name)


def push_to_hub(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder of `save_pretrained` to the hub and return its address.

    The token is that of `huggingface-cli login`.

    Raises:
        ValueError: the folder holds no weights.
    """
    from huggingface_hub import HfApi

    if not (folder / WEIGHTS).exists():
        raise ValueError(f"{folder} holds no {WEIGHTS}: write it with save_pretrained first")
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=list(FILES))
    return f"https://huggingface.co/{repository}"
