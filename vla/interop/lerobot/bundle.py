"""`PolicyBundle`: a policy with its observer, settings and spec, from a dataset or a folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import yaml
from torch import Tensor

from vla.build import build_vlm, checkpoint_folder, make_policy, policy_settings
from vla.cli import to_yaml
from vla.command_names import command_name
from vla.config import RobotConfig
from vla.data.dataset_checks import read_trainable_rows
from vla.data.demonstrations import undisturbed_chunks
from vla.data.image_fitting import check_resize
from vla.data.lerobot_reader import Columns, dimension_names, read_action_spec, read_info
from vla.data.observations import Observer
from vla.data.spec_checks import LIMITS_FROM_DATA
from vla.evaluation.checkpoint_settings import checkpoint_settings
from vla.files.policy_manifest import WEIGHTS, write_checksums
from vla.files.reading import KEYS, read_optional_json
from vla.files.writing import atomic_file, write_json
from vla.interop.hub.lerobot_files import lerobot_files
from vla.interop.hub.pretrained import local_folder, portable_settings
from vla.interop.lerobot.configuration_vla import ACTION, IMAGES, STATE, VlaConfig, robot_settings
from vla.pipelines.robot.pipeline import start_manifest
from vla.pipelines.robot.policy import describe_policy, find_weights, load_policy
from vla.policies.vla_policy import VlaPolicy
from vla.policy_spec import SpecSimulator, read_policy_spec, simulator_from_spec
from vla.training.seed import derive_seed
from vla.training.state_files import make_contiguous


@dataclass(frozen=True)
class PolicyBundle:
    """A policy, what turns observations into its own, its settings and policy spec. `folder` is
    where it was read from, `dataset` where its demonstrations stand.
    """

    policy: VlaPolicy
    observer: Observer
    settings: RobotConfig
    policy_spec: Mapping[str, Any]
    proprio_size: int
    folder: Path | None = None
    dataset: Path | None = None

    def check(self, config: VlaConfig) -> None:
        """Hold the policy spec against what LeRobot's environment or dataset shows; ValueError
        names what differs."""
        shown = {**(config.input_features or {}), **(config.output_features or {})}
        sizes = {STATE: self.proprio_size, ACTION: len(self.policy_spec["action_spec"]["names"])}
        for name in [*(IMAGES + camera for camera in self.policy_spec["cameras"]), *sizes]:
            if name not in shown:
                raise ValueError(f"the policy needs {name}, which is not among {', '.join(shown)}")
            shape = tuple(shown[name].shape)
            if name not in sizes:
                check_resize(self.policy_spec, shape[-2], shape[-1], name)
            elif shape != (sizes[name],):
                raise ValueError(
                    f"{name} is {list(shape)}, the policy was made for {[sizes[name]]}"
                )


def load_bundle(name: str) -> PolicyBundle:
    """The policy of a folder, or of `user/name` on the hub; no simulator is asked."""
    folder = local_folder(name)
    weights = find_weights(folder)
    if weights is None or not (folder / "policy.json").exists():
        raise ValueError(
            f"{folder} holds no policy of ours: export one with {command_name('vla-export')}"
        )
    settings, world = checkpoint_settings(folder), simulator_from_spec(folder, weights)
    policy, observer = load_policy(folder, settings, world, weights)  # type: ignore[arg-type]
    policy_spec = read_policy_spec(folder)
    return PolicyBundle(policy, observer, settings, policy_spec, world.proprio_size, folder)


def bundle_from_dataset(config: VlaConfig, dataset: Any) -> PolicyBundle:
    """A policy to be trained on a LeRobot dataset (its metadata), by the settings that `config`
    holds.

    Pictures become `sim.stored_image_size` pixels square when they are looked at
    (`VlaPolicy.observe`).

    Raises ValueError where there is no dataset, it holds numbers that cannot be learned, or its
    cameras are not those of the model's checkpoint.
    """
    if dataset is None:
        raise ValueError(
            "policy.type=vla learns from a dataset: give --dataset.repo_id, or --policy.path to act"
        )
    settings = robot_settings(f"sim.cameras=[{','.join(config.cameras)}] {config.settings}")
    root = Path(dataset.root)
    columns = read_columns_checked(root, settings)
    proprio_size = columns.proprio.shape[1]
    felt = dimension_names({"features": dataset.features}, STATE)
    world = SpecSimulator(dataset_action_spec(root, dataset), felt, read_num_plan_numbers(settings))
    torch.manual_seed(derive_seed(settings.train.seed, "model") % 2**63)
    instructions = [str(task) for task in dataset.tasks.index]
    model, tokenizer = build_vlm(settings, proprio_size, world.num_plan_numbers, instructions)
    if settings.model.checkpoint is None:
        model.fit_proprio(torch.from_numpy(columns.proprio))
    chunks = undisturbed_chunks(columns, config.horizon)
    kind = policy_settings(settings.policy)
    code = kind.fit_code(chunks)
    for note in kind.code_notes(code, chunks[:, 0], world.action_spec["names"]):
        logging.getLogger(__name__).warning(note)
    policy_spec = json.loads(json.dumps(describe_policy(code, world, settings)))  # type: ignore[arg-type]
    observer = Observer(tokenizer, settings.policy.instruction_length)
    return PolicyBundle(
        make_policy(settings, model, code),
        observer,
        settings,
        policy_spec,
        proprio_size,
        dataset=root,
    )


class CheckpointArchitecture(TypedDict):
    """Required keys of the architecture.json of a model."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    num_plan_numbers: int


def read_num_plan_numbers(settings: RobotConfig) -> int:
    """Number of plan numbers of the model: that of its checkpoint, or 1 without a checkpoint."""
    if settings.model.checkpoint is None:
        return 1
    architecture = checkpoint_folder(settings.model.checkpoint) / "architecture.json"
    return read_optional_json(architecture, {"num_plan_numbers": 1}, CheckpointArchitecture)[
        "num_plan_numbers"
    ]


def read_columns_checked(root: Path, settings: RobotConfig) -> Columns:
    """The numbers of a dataset that LeRobot will draw from, whole: all of its episodes count,
    whichever it draws."""
    trainable = read_trainable_rows(root, read_info(root), settings.data.failures)
    kept = np.unique(trainable.columns.episode_index[trainable.rows]).tolist()
    if len(trainable.rows) < len(trainable.columns.actions):
        raise ValueError(
            f"data.failures=drop leaves episodes out, and LeRobot draws the frames here: give it "
            f"--dataset.episodes={kept} instead"
        )
    for note in trainable.notes:
        logging.getLogger(__name__).warning(note)
    return trainable.columns


def dataset_action_spec(root: Path, dataset: Any) -> dict[str, Any]:
    """Action spec of a dataset; without one, names, observed limits and rate of its metadata."""
    stated = read_action_spec(root)
    if stated is not None:
        return stated
    names, limits = dimension_names({"features": dataset.features}, ACTION), dataset.stats[ACTION]
    low, high = (np.asarray(limits[bound]).reshape(-1).tolist() for bound in ("min", "max"))
    unknown = ["unknown"] * len(names)
    spec = {
        "names": list(names),
        "units": unknown,
        "kinds": unknown,
        "low": low,
        "high": high,
        "limits": LIMITS_FROM_DATA,
    }
    return {**spec, "frame": "unknown", "control_hz": float(dataset.fps)}


def write_folder(folder: Path, made: PolicyBundle, weights: Mapping[str, Tensor]) -> None:
    """All that our own commands need to load the policy, and LeRobot's pipelines; a config.json
    there is kept."""
    from safetensors.torch import save_file

    for name, text in lerobot_files(
        made.policy_spec, made.proprio_size, num_elements(weights)
    ).items():
        if not (folder / name).exists():
            (folder / name).write_text(text)
    with atomic_file(folder / WEIGHTS) as unfinished:
        save_file(make_contiguous(dict(weights)), unfinished, {"format": "pt"})
    write_json(folder / "policy.json", dict(made.policy_spec))
    made.observer.tokenizer.save_pretrained(folder / "tokenizer")
    settings = portable_settings(yaml.safe_load(to_yaml(made.settings)))
    if made.dataset is not None:
        settings["data"]["path"] = str(made.dataset)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    start_manifest(made.settings).save(folder / "starts.json")
    write_checksums(folder)


def num_elements(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())
