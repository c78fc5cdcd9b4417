"""The start of a robot run from a policy (`policy.path`): checks, loading and its record.

`FOREIGN` names the loader of each kind of policy that is not ours. A loader takes the run, its
settings, the simulator, the policy's folder, and the demonstrations (None where no stage needs
them), and returns a `PolicyParts`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from vla.build import MergedAdapter, freeze_parts, leave_out_base, make_policy_adapter
from vla.config.policy_start import PolicyStart, read_policy_start
from vla.config.robot import Model, RobotConfig
from vla.config.training import ADAPTERS
from vla.data.demonstrations import Demonstrations
from vla.data.observations import Observer
from vla.data.questions import QuestionEncoder
from vla.data.spec_checks import check_action_spec, check_state
from vla.evaluation.checkpoint_settings import check_held_out, checkpoint_settings
from vla.evaluation.starts import StartManifest
from vla.files.policy_folders import snapshot_commit
from vla.files.reading import read_json
from vla.files.writing import write_json
from vla.models.loading import ARCHITECTURE
from vla.models.lora import merge_lora
from vla.models.vlm import VisionLanguageModel
from vla.pipelines.robot.policy import (
    MERGED_ADAPTERS,
    MODEL,
    SPEC_FILE,
    TOKENIZER_FOLDER,
    PolicyParts,
    base_entry,
    describe_policy,
    describe_size,
    find_weights,
    fit_action_code,
    load_action_code,
    load_policy,
    place_model,
    read_merged_adapters,
)
from vla.plugins import load_target
from vla.policies.vla_policy import VlaPolicy
from vla.policy_spec import read_policy_spec
from vla.simulator import Simulator
from vla.training.checkpoint import last_checkpoint
from vla.training.distributed import broadcast_weights
from vla.training.run import Run
from vla.training.run_folder import to_plain
from vla.training.seed import derive_seed
from vla.training.state_files import make_contiguous
from vla.training.synchronization import broadcast_from_main

RECORD = "start.json"
"""File of a run folder with the origin of its weights."""
BACKBONE_WEIGHTS = f"{MODEL}backbone."
STAGE = "start"
"""Name of the checkpoint with the weights that a run started from."""
FOREIGN = {"lerobot": "vla.interop.lerobot.refinement:load_refinement"}
"""{kind of a policy folder: "module:function" that loads it}."""

FOREIGN_CHECKS = {"lerobot": "vla.interop.lerobot.refinement:check_refinement"}
"""{kind of a policy folder: "module:function" that holds it against the run before it begins}."""
SAVED = "pretrained_model"
"""Folder of a run with its policy in the format of another library."""


class StartCheck(Protocol):
    """Check of a policy that is not ours, before the run has a folder."""

    def __call__(
        self,
        config: RobotConfig,
        simulator: Simulator,
        start: PolicyStart,
        starts: StartManifest,
    ) -> None: ...


class StartLoader(Protocol):
    """Loader of a policy that is not ours; `start` is None where a resumed run has its own copy."""

    def __call__(
        self,
        run: Run,
        config: RobotConfig,
        simulator: Simulator,
        start: PolicyStart | None,
        demonstrations: Demonstrations | None,
    ) -> PolicyParts: ...


def check_start(config: RobotConfig, simulator: Simulator, starts: StartManifest) -> None:
    """Hold the policy of `policy.path` against the simulator, before the run has a folder.

    Raises:
        ValueError: actions, rate or state differ, the policy was trained on an evaluation start, or
            its kind has no loader.
    """
    if config.policy.path is None or config.resume is not None:
        return
    start = read_policy_start(config.policy.path)
    if start.kind in FOREIGN:
        check: StartCheck = load_target(FOREIGN_CHECKS[start.kind])
        check(config, simulator, start, starts)
        return
    spec = read_policy_spec(start.folder)
    owner = f"the policy of policy.path={start.name}"
    check_action_spec(spec["action_spec"], simulator.action_spec, owner)
    if spec.get("proprio_names"):
        check_state(spec["proprio_names"], simulator.proprio_names, owner)
    own = checkpoint_settings(start.folder)
    check_adapter(config, own, owner)
    check_held_out(starts, start.folder, own)


def check_adapter(config: RobotConfig, own: RobotConfig, owner: str) -> None:
    """A policy that has an adapter keeps it; RL moves no weights below it.

    Raises:
        ValueError: `rl.adapt` or the bound of the adapter differ from the policy's.
    """
    if own.rl.adapt not in ADAPTERS:
        return
    for name in ("adapt", "residual_scale", "noise_bound"):
        value = getattr(own.rl, name)
        if getattr(config.rl, name) != value:
            raise ValueError(
                f"rl.{name} ({getattr(config.rl, name)}) is not the one of {owner}, which acts "
                f"through its adapter: set rl.{name}={value}, or start from the frozen policy"
            )


def start_policy(
    run: Run, config: RobotConfig, simulator: Simulator, demonstrations: Demonstrations | None
) -> PolicyParts:
    """Load the policy of `policy.path` and record it; a resumed run reads its own copy.

    Raises:
        ValueError: the policy cannot be loaded, or does not fit the settings.
    """
    assert config.policy.path is not None
    torch.manual_seed(derive_seed(config.train.seed, "model") % 2**63)
    start = None if has_own_copy(run) else read_policy_start(config.policy.path)
    kind = read_record(run)["kind"] if start is None else start.kind
    if kind in FOREIGN:
        load: StartLoader = load_target(FOREIGN[kind])
        return load(run, config, simulator, start, demonstrations)
    if start is None:
        saved = run.load(STAGE)
        assert saved is not None
        policy, observer = load_policy(run.folder.path, config, simulator, saved["policy"])
    else:
        policy, observer = load_start(run, config, simulator, start, demonstrations)
    run.results["model"] = describe_size(policy)
    tokenizer = observer.tokenizer
    encoder = QuestionEncoder(tokenizer, policy.model.backbone.vocabulary_size)
    return PolicyParts(policy, observer, encoder)


def has_own_copy(run: Run) -> bool:
    """True once the weights of the start are a checkpoint of the run itself."""
    found = last_checkpoint(run.checkpoint_folder(STAGE)) is not None
    return broadcast_from_main(found, run.processes)


def load_start(
    run: Run,
    config: RobotConfig,
    simulator: Simulator,
    start: PolicyStart,
    demonstrations: Demonstrations | None,
) -> tuple[VlaPolicy, Observer]:
    """The policy of a run or an export under this run's settings; the run keeps a copy of it."""
    own = checkpoint_settings(start.folder)
    weights = find_weights(start.folder)
    if weights is None:
        raise ValueError(f"policy.path={start.name} holds no weights: finish its run")
    fitted = demonstrations if config.policy.statistics == "data" else None
    path = start.folder / SPEC_FILE
    spec = read_policy_spec(start.folder)
    code = (
        load_action_code(config.policy, spec, path)
        if fitted is None
        else fit_action_code(run, config, fitted)
    )
    # Weights are loaded under the adapter and the label that they were trained with.
    model = config.model.model_copy(update={"lora": own.model.lora})
    is_adapted = own.rl.adapt in ADAPTERS
    rl = config.rl if is_adapted else config.rl.model_copy(update={"adapt": own.rl.adapt})
    loadable = config.model_copy(update={"model": model, "recap": own.recap, "rl": rl})
    policy, observer = load_policy(start.folder, loadable, simulator, weights, code)
    if fitted is not None:
        policy.model.fit_proprio(torch.from_numpy(fitted.columns.proprio[fitted.rows]))
    merged: list[MergedAdapter] = []
    if config.model.lora != own.model.lora:
        merged = replace_adapter(config.model, own.model, policy.model, start.folder, weights)
    if not is_adapted:
        policy.adapter = make_policy_adapter(config.rl, policy.model, policy.head, code)
    place_model(policy, run.processes.device, config.train)
    broadcast_weights(policy, run.processes)
    record_start(run, describe_start(start, weights))
    if run.processes.is_main:
        observer.tokenizer.save_pretrained(run.folder.path / TOKENIZER_FOLDER)
        described = describe_policy(code, simulator, config)
        described |= base_entry(config.model, policy.model, spec.get("base"))
        copy_architecture(start.folder, run.folder.path)
        described |= write_merged_adapters(run.folder.path, merged)
        if observer.label:
            described |= {"label": observer.label, "guidance": policy.guidance}
        write_json(run.folder.path / SPEC_FILE, to_plain(described))
    run.save(STAGE, 0, {"policy": policy.state_dict()})
    for line in describe_skipped_stages(config, start):
        run.progress.print_line(line)
    return policy, observer


def copy_architecture(source: Path, folder: Path) -> None:
    """Copy the architecture of an exported model, without which its weights cannot be loaded."""
    if (source / ARCHITECTURE).is_dir():
        shutil.copytree(source / ARCHITECTURE, folder / ARCHITECTURE, dirs_exist_ok=True)


def describe_skipped_stages(config: RobotConfig, start: PolicyStart) -> list[str]:
    """Sentences about the stages that the policy has behind it, and what repeats them."""
    lines = [f"start: the {start.kind} {start.name}; grounding is skipped"]
    if config.sft.num_steps == 0 and config.sft.head_steps == 0:
        lines.append("SFT is skipped: sft.num_steps=N trains the policy on demonstrations again")
    elif config.sft.head_steps == 0:
        lines.append("head pretraining is skipped: sft.head_steps=N trains the head alone first")
    return lines


def skip_sft(run: Run) -> None:
    """Record that no SFT ran: the policy is that of `policy.path`."""
    left_out = "the policy of policy.path had it; sft.num_steps trains it again"
    run.finish_stage("sft", {"num_steps": 0, "left_out": left_out})


def replace_adapter(
    settings: Model,
    own: Model,
    model: VisionLanguageModel,
    folder: Path,
    weights: Mapping[str, Tensor],
) -> list[MergedAdapter]:
    """Merge the adapter of a loaded model into its weights, and add the one of the settings.

    Args:
        settings: the model of this run.
        own: the model of the policy in `folder`, whose `weights` were loaded.

    Returns:
        The adapters to add to the base's weights when the model is built again, where checkpoints
        leave these out.
    """
    base = {without_layer(name) for name in model.left_out}
    merged = read_merged_adapters(folder, read_policy_spec(folder))
    if own.lora is not None:
        adapter = {
            name.removeprefix(BACKBONE_WEIGHTS): tensor
            for name, tensor in weights.items()
            if name.startswith(BACKBONE_WEIGHTS) and "lora_" in name
        }
        merged = [*merged, MergedAdapter(own.lora, adapter)]
    merge_lora(model.backbone.model)
    model.backbone.requires_grad_(True)
    freeze_parts(settings, model)
    # What the policy itself had trained is not the base's, and stays in the checkpoints.
    trained = [n for n, _ in model.named_parameters() if without_layer(n) not in base]
    leave_out_base(settings, model, trained)
    return merged if any(name.startswith("backbone.") for name in model.left_out) else []


def without_layer(name: str) -> str:
    """The name of a weight without an adapter around its layer."""
    return name.replace(".base_layer.", ".")


def write_merged_adapters(folder: Path, merged: Sequence[MergedAdapter]) -> dict[str, Any]:
    """Write the adapters that are part of the frozen weights; their entry of the policy spec."""
    if not merged:
        return {}
    tensors = {
        f"{number}.{name}": tensor
        for number, adapter in enumerate(merged)
        for name, tensor in adapter.weights.items()
    }
    save_file(make_contiguous(tensors), folder / MERGED_ADAPTERS)
    return {"merged_adapters": [adapter.lora.model_dump(mode="json") for adapter in merged]}


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values of weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def describe_start(start: PolicyStart, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Where a run started: name without folders, revision, kind, and hash of the weights."""
    is_folder = Path(start.name).exists()
    return {
        "name": Path(start.name).resolve().name if is_folder else start.name.partition("@")[0],
        "revision": snapshot_commit(start.folder),
        "kind": start.kind,
        "policy": start.policy_name,
        "weights_sha256": weights_sha256(weights),
    }


def read_record(run: Run) -> dict[str, Any]:
    """The start.json of a run."""
    record: dict[str, Any] = read_json(run.folder.path / RECORD)
    return record


def record_start(run: Run, record: Mapping[str, Any]) -> None:
    """Write where the run started into start.json and results.json."""
    run.results["start"] = dict(record)
    if run.processes.is_main:
        write_json(run.folder.path / RECORD, dict(record))
