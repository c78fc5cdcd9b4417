"""The policy of a robot run: built before SFT, described in `policy.json`, and loaded again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vla.build import (
    MergedAdapter,
    base_repository,
    build_vlm,
    leave_out_base,
    make_policy,
    model_notes,
    policy_settings,
)
from vla.config.policy import PolicySection
from vla.config.robot import Model, RobotConfig
from vla.config.training import Lora, Train
from vla.data.demonstrations import Demonstrations, undisturbed_chunks
from vla.data.image_fitting import RESIZE, check_resize, describe_rule_mismatch
from vla.data.observations import Observer
from vla.data.questions import QuestionEncoder
from vla.data.spec_checks import check_action_spec, check_state
from vla.devices import autocast_dtype, available_device
from vla.files.arrays import load_weights, read_safetensors, read_tokenizer
from vla.files.base_models import BaseRecord, describe_base, find_base
from vla.files.policy_manifest import WEIGHTS, check_export
from vla.files.reading import validating_file
from vla.files.writing import write_json
from vla.models.checkpoint import num_parameters
from vla.models.loading import ARCHITECTURE, BACKBONE
from vla.models.vlm import VisionLanguageModel
from vla.pipelines.robot.grounding.stage import grounding_stage
from vla.pipelines.robot.recap import conditioned_observer
from vla.policies.head import ActionCode
from vla.policies.vla_policy import VlaPolicy, rename_weights
from vla.policy_spec import (
    REMEDY,
    match_query_count,
    num_plan_numbers,
    proprio_names,
    read_policy_spec,
    without_checkpoint,
)
from vla.simulator import Simulator
from vla.training.checkpoint import last_checkpoint, load_checkpoint
from vla.training.distributed import broadcast_weights
from vla.training.run import Run
from vla.training.run_folder import to_plain
from vla.training.seed import derive_seed
from vla.training.synchronization import broadcast_from_main

SPEC_FILE = "policy.json"
TOKENIZER_FOLDER = "tokenizer"
MODEL = "model."
"""Prefix of the names of the model's weights in a policy."""
MERGED_ADAPTERS = "merged_adapters.safetensors"
"""File with the adapters that are part of the frozen weights, by number."""
STAGES_WITH_WEIGHTS = ("rl", "recap", "sft", "start")
"""Stages whose checkpoints hold the policy, the last one first."""


@dataclass(frozen=True)
class PolicyParts:
    """A policy ready for SFT and RL, its observer, and the encoder of its questions.

    `encoder` is None for a policy without a language model that answers questions. `save` writes a
    policy that is not ours into a folder, in its own library's format.
    """

    policy: Any
    observer: Any
    encoder: QuestionEncoder | None
    save: Callable[[Path], None] | None = None


def build_policy(
    run: Run, config: RobotConfig, simulator: Simulator, demonstrations: Demonstrations
) -> PolicyParts:
    """Build the policy before SFT, its observer, and the encoder of its questions.

    A new run writes `policy.json` and `tokenizer/`, which a later process needs to load the policy.
    A resumed run reads its action code from there.
    """
    torch.manual_seed(derive_seed(config.train.seed, "model") % 2**63)
    path = run.folder.path / SPEC_FILE
    is_resumed = broadcast_from_main(path.exists(), run.processes)
    if is_resumed:
        config = with_base(config, read_policy_spec(path.parent), path.parent)
    model, tokenizer = build_vlm(
        config, simulator.proprio_size, simulator.scenes().num_plan_numbers, simulator.texts()
    )
    for note in model_notes(config, model):
        run.progress.print_line(f"model: {note}")
    place_model(model, run.processes.device, config.train)
    encoder = QuestionEncoder(tokenizer, model.backbone.vocabulary_size)
    if config.model.checkpoint is None:
        model.fit_proprio(torch.from_numpy(demonstrations.columns.proprio[demonstrations.rows]))
        if not run.is_finished("sft") and run.load("sft") is None:
            grounding_stage(run, config, simulator, model, encoder)
    if is_resumed:
        code = _read_code(path, config.policy, demonstrations)
    else:
        code = fit_action_code(run, config, demonstrations)
    policy = make_policy(config, model, code).to(run.processes.device)
    leave_out_base(config.model, model)
    if not is_resumed and run.processes.is_main:
        tokenizer.save_pretrained(run.folder.path / TOKENIZER_FOLDER)
        described = describe_policy(code, simulator, config) | base_entry(config.model, model)
        write_json(path, to_plain(described))
    broadcast_weights(policy, run.processes)
    run.results["model"] = describe_size(policy)
    observer = make_observer(config, tokenizer, config.policy.instruction_length, policy)
    return PolicyParts(policy, observer, encoder)


def _read_code(path: Path, settings: PolicySection, demonstrations: Demonstrations) -> ActionCode:
    """The action code of a resumed run; images must be resized as before."""
    spec = read_policy_spec(path.parent)
    for camera, (height, width) in demonstrations.picture_sizes.items():
        dataset = f"camera {camera} of the dataset {demonstrations.folder}"
        check_resize(spec, height, width, dataset)
    return load_action_code(settings, spec, path)


def fit_action_code(run: Run, config: RobotConfig, demonstrations: Demonstrations) -> ActionCode:
    """Fit the action code of a new run to its demonstrations."""
    training, _ = demonstrations.split(config.data.holdout_fraction, config.train.seed)
    chunks = undisturbed_chunks(training.columns, config.policy.chunk, training.rows)
    settings = policy_settings(config.policy)
    code = settings.fit_code(chunks)
    for note in settings.code_notes(code, chunks[:, 0], demonstrations.action_names):
        run.progress.print_line(f"actions: {note}")
    return code


def load_action_code(settings: PolicySection, spec: Mapping[str, Any], path: Path) -> ActionCode:
    """The action code in a policy's spec, which was read from `path`.

    Raises:
        ValueError: the code is damaged, or its number of dimensions is not the action_spec's.
    """
    with validating_file(path, REMEDY):
        code: ActionCode = policy_settings(settings).read_code(spec["actions"])
        names = spec["action_spec"]["names"]
        if len(code.constants) != len(names):
            raise ValueError(
                f"its code of actions has {len(code.constants)} dimensions, its action_spec names "
                f"{len(names)}"
            )
        return code


def place_model(
    module: VisionLanguageModel | VlaPolicy, device: torch.device, train: Train
) -> None:
    """Move a model or policy to its device, and set the precision of its matrix products."""
    module.to(device)
    model = module if isinstance(module, VisionLanguageModel) else module.model
    model.autocast = autocast_dtype(train.precision, device)


def make_observer(config: RobotConfig, tokenizer: Any, length: int, policy: VlaPolicy) -> Observer:
    """The observer of a policy: instructions of `length` tokens in `data.sentence`."""
    return Observer(tokenizer, length, sentence=config.data.sentence, slots=policy.model.slots)


def describe_policy(code: ActionCode, simulator: Simulator, config: RobotConfig) -> dict[str, Any]:
    """The spec of a policy, as in `policy.json`: actions, state, cameras, and the action code."""
    return {
        "action_spec": dict(simulator.action_spec),
        "proprio_names": list(simulator.proprio_names),
        "cameras": list(config.sim.cameras),
        "image_size": config.sim.image_size,
        "resize": RESIZE,
        "chunk": config.policy.chunk,
        "instruction_length": config.policy.instruction_length,
        "policy": config.policy.name,
        "actions": code.to_dict(),
    }


def describe_size(policy: VlaPolicy) -> dict[str, int]:
    """Numbers of parameters and of draws a decision, for results.json."""
    size = {"num_parameters": num_parameters(policy), "num_draws": policy.num_draws}
    if policy.adapter is not None:
        size["num_adapter_parameters"] = num_parameters(policy.adapter)
    return size


def load_policy(
    folder: Path,
    config: RobotConfig,
    simulator: Simulator,
    weights: Mapping[str, torch.Tensor] | None = None,
    code: ActionCode | None = None,
    device: torch.device | None = None,
) -> tuple[VlaPolicy, Observer]:
    """Load the final policy of a run or an export; `weights` where they have been read already.

    `code` replaces the action code of the folder. `device` is that of the run where this machine
    has it, by default.

    Raises:
        ValueError: the folder holds no policy, or one with other actions or another state than the
            simulator's.
    """
    path = folder / SPEC_FILE
    spec = read_policy_spec(folder) if path.exists() else None
    if spec is not None:
        check_action_spec(spec["action_spec"], simulator.action_spec, f"the policy in {folder}")
    weights = find_weights(folder) if weights is None else weights
    if spec is None or weights is None:
        raise ValueError(f"{folder} holds no policy: finish the run, or give another folder")
    check_state(proprio_names(spec, weights), simulator.proprio_names, f"the policy in {folder}")
    mismatch = describe_rule_mismatch(spec, str(path))
    if mismatch and simulator.cameras is None:  # our own simulator renders squares
        logging.getLogger(__name__).warning(mismatch)
    config = with_base(without_checkpoint(config), spec, folder)
    model, _ = build_vlm(
        config,
        simulator.proprio_size,
        num_plan_numbers(weights),
        simulator.texts(),
        read_merged_adapters(folder, spec),
    )
    match_query_count(model, weights)
    tokenizer = read_tokenizer(folder / TOKENIZER_FOLDER, REMEDY)
    policy = make_policy(config, model, code or load_action_code(config.policy, spec, path))
    leave_out_base(config.model, model, [name.removeprefix(MODEL) for name in weights])
    load_weights(policy, rename_weights(policy.state_dict(), weights), folder)
    device = available_device(config.train.device) if device is None else device
    place_model(policy, device, config.train)
    observer = make_observer(config, tokenizer, spec["instruction_length"], policy)
    if "label" in spec and not config.recap.num_rounds:
        # A run that started from a policy of RECAP acts under its label.
        policy.guidance = spec["guidance"]
        return policy, replace(observer, label=spec["label"])
    return policy, conditioned_observer(policy, observer, config.recap)


def base_entry(
    settings: Model, model: VisionLanguageModel, known: BaseRecord | None = None
) -> dict[str, Any]:
    """The entry `base` of a policy spec: the pretrained model whose weights are left out.

    `known` is the record of the policy that the run started from.
    """
    repository = base_repository(settings)
    if repository is None or not any(name.startswith("backbone.") for name in model.left_out):
        return {}
    return {"base": known or describe_base(repository)}


def with_base(config: RobotConfig, spec: Mapping[str, Any], folder: Path) -> RobotConfig:
    """The settings with the place of the policy's base on this machine.

    Raises:
        ValueError: the base is not here.
    """
    repository = base_repository(config.model)
    if (folder / ARCHITECTURE).is_dir():
        found = str(folder / ARCHITECTURE)
    elif repository is None or "base" not in spec:
        return config
    else:
        found = find_base(spec["base"], repository, folder, BACKBONE)
    backbone = config.model.backbone.model_copy(update={"repository": found})
    model = config.model.model_copy(update={"backbone": backbone})
    return config.model_copy(update={"model": model})


def read_merged_adapters(folder: Path, spec: Mapping[str, Any]) -> list[MergedAdapter]:
    """Adapters that are part of the frozen weights of the policy in `folder`, the first first."""
    settings = spec.get("merged_adapters", [])
    if not settings:
        return []
    tensors = read_safetensors(folder / MERGED_ADAPTERS, REMEDY)
    return [
        MergedAdapter(
            Lora.model_validate(lora),
            {
                name.removeprefix(f"{number}."): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{number}.")
            },
        )
        for number, lora in enumerate(settings)
    ]


def find_weights(folder: Path) -> dict[str, torch.Tensor] | None:
    """The final weights in a run or an export; None where there are none."""
    if (folder / WEIGHTS).exists():
        check_export(folder)
        return read_safetensors(folder / WEIGHTS, REMEDY)
    for stage in STAGES_WITH_WEIGHTS:
        path = last_checkpoint(folder / "checkpoints" / stage)
        if path is not None:
            state = load_checkpoint(path)
            # The best weights are the trained ones alone.
            return {**state["policy"], **state.get("best", {})}
    return None
