"""A policy as a folder that goes to the hub and comes back: safetensors and JSON, a model card, and
the policy spec that is held against the environment whenever the policy is loaded.

    README.md  config.json  config.yaml  policy.json  starts.json  model.safetensors  tokenizer/
    manifest.json  policy_preprocessor.json  policy_postprocessor.json
    architecture/  (of a pretrained model)  merged_adapters.safetensors  (part of frozen weights)

An adapter stays an adapter: model.safetensors then holds it and the heads, and policy.json names
the base. config.json, the preprocessor and the postprocessor are what LeRobot reads: the folder is
one of its checkpoints too (`vla.interop.lerobot`).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from vla.config.robot import RobotConfig
from vla.evaluation.checkpoint_settings import checkpoint_settings, saved_settings, suggest_runs
from vla.files.base_models import BaseRecord, base_name
from vla.files.policy_folders import FILES, LAST_TRAINED, hub_folder
from vla.files.policy_manifest import WEIGHTS, write_checksums
from vla.files.secrets import mask_nested
from vla.files.writing import atomic_file, write_json
from vla.interop.hub.card import model_card
from vla.interop.hub.lerobot_files import lerobot_files
from vla.models.loading import ARCHITECTURE
from vla.policy_spec import PROPRIO, read_policy_spec
from vla.runtime import is_hub_name
from vla.training.state_files import make_contiguous


def save_pretrained(
    run: Path, folder: Path, make_simulator: Callable[[Any], Any], *, merge: bool = False
) -> Path:
    """Write the policy that `run` ended with into `folder`, with a model card of its results.

    A policy with adapters is written as adapters and heads, with the name of its base; with `merge`
    as one model.

    Raises:
        ValueError: the run holds no policy, or the folder holds other files.
    """
    from safetensors.torch import save_file

    from vla.interop.hub.whole_model import (
        is_whole,
        merge_policy,
        whole_settings,
        write_architecture,
    )
    from vla.pipelines.robot.policy import MERGED_ADAPTERS, load_policy

    if folder.exists() and any(folder.iterdir()) and not (folder / WEIGHTS).exists():
        raise ValueError(f"{folder} holds other files: choose an empty folder")
    config = checkpoint_settings(run)
    policy, _ = load_policy(run, config, make_simulator(config.sim))
    if merge and not merge_policy(policy):
        print(f"{run}: nothing to merge, its policy is one model", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    weights = make_contiguous(policy.state_dict())
    with atomic_file(folder / WEIGHTS) as unfinished:
        save_file(weights, unfinished, {"format": "pt"})
    policy_spec = read_policy_spec(run)
    settings = portable_settings(saved_settings(run))
    base: BaseRecord | None = policy_spec.get("base")
    shutil.rmtree(folder / ARCHITECTURE, ignore_errors=True)
    (folder / MERGED_ADAPTERS).unlink(missing_ok=True)
    if is_whole(weights):
        settings["model"] = whole_settings(settings["model"], weights)
        write_architecture(folder, config, policy_spec, run, policy.model.vision)
        for name in ("base", "merged_adapters"):
            policy_spec.pop(name, None)
    else:
        if base is not None:
            settings["model"]["backbone"]["repository"] = base_name(base)
        if (run / MERGED_ADAPTERS).exists():
            shutil.copyfile(run / MERGED_ADAPTERS, folder / MERGED_ADAPTERS)
    write_json(folder / "policy.json", policy_spec)
    shutil.copyfile(run / "starts.json", folder / "starts.json")
    shutil.copytree(run / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(mask_nested(settings), sort_keys=False))
    size = sum(tensor.numel() for tensor in weights.values())
    for name, text in lerobot_files(policy_spec, len(weights[PROPRIO]), size).items():
        (folder / name).write_text(text)
    (folder / "README.md").write_text(model_card(run, size, None if is_whole(weights) else base))
    write_checksums(folder)
    return folder


def portable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without paths of this machine; the weights include those of model.checkpoint."""
    portable = {**settings, "run_dir": None, "resume": None}
    backbone = dict(settings["model"]["backbone"])
    portable["model"] = {**settings["model"], "checkpoint": None, "backbone": backbone}
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

    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no weights: write them with save_pretrained first")
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=list(FILES))
    return f"https://huggingface.co/{repository}"
