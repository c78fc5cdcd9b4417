"""Refinement of LeRobot's policies by RL (`policy.path=CHECKPOINT`).

A run copies the checkpoint to `lerobot_start/` and ends with `pretrained_model/`: the refined
weights beside the unchanged config.json and processors, which LeRobot's `from_pretrained` and
`lerobot-eval` load.
"""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

from vla.config.policy_start import PolicyStart
from vla.config.robot import RobotConfig
from vla.data.demonstrations import Demonstrations
from vla.evaluation.checkpoint_settings import check_held_out
from vla.evaluation.starts import StartManifest
from vla.files.arrays import read_safetensors
from vla.files.policy_manifest import WEIGHTS
from vla.interop.lerobot.checkpoints import read_checkpoint_spec
from vla.models.checkpoint import num_parameters
from vla.pipelines.robot.policy import REMEDY, PolicyParts
from vla.pipelines.robot.start import STAGE, describe_start, record_start
from vla.policies.lerobot import ActPolicy, LeRobotSettings, TextObserver
from vla.simulator import Simulator
from vla.training.distributed import broadcast_weights
from vla.training.run import Run
from vla.training.synchronization import propagate_errors

START = "lerobot_start"
"""Folder of a run with the checkpoint that it started from."""
FILES = ("*.json", "*.safetensors")
REFINABLE = ("act",)
"""Kinds of LeRobot's policies that RL can refine."""
ADAPTS = ("head", "weights")


def check_refinement(
    config: RobotConfig, simulator: Simulator, start: PolicyStart, starts: StartManifest
) -> None:
    """Hold a checkpoint of LeRobot against the run, before the run has a folder.

    Raises:
        ValueError: its kind cannot be refined, sizes of state or action differ from the
            simulator's, a setting has no meaning for it, or it was trained on an evaluation start.
    """
    declared = read_checkpoint_spec(start.folder)
    owner = f"policy.path={start.name}"
    if declared.kind not in REFINABLE:
        raise ValueError(
            f"{owner} is of LeRobot's kind {declared.kind}, which this version can evaluate "
            f"(vla-eval), not train: RL refines {', '.join(REFINABLE)}"
        )
    if config.rl.adapt not in ADAPTS:
        raise ValueError(
            f"rl.adapt ({config.rl.adapt}) is not for a policy of LeRobot ({owner}): choose "
            "rl.adapt=head (its last layer) or rl.adapt=weights"
        )
    if config.policy.statistics == "data":
        raise ValueError(
            f"policy.statistics (data): {owner} keeps the normalisation of its processors: leave "
            "policy.statistics out"
        )
    if config.train.precision == "bf16":
        raise ValueError(
            f"train.precision (bf16): {owner} computes in the precision of its own config.json: "
            "leave train.precision out"
        )
    try:
        declared.check(simulator.action_spec, simulator.proprio_size)
    except ValueError as error:
        raise ValueError(f"{owner} does not fit the simulation: {error}") from None
    if declared.dataset is not None:
        data = config.data.model_copy(update={"path": str(declared.dataset)})
        check_held_out(starts, start.folder, config.model_copy(update={"data": data}))


def load_refinement(
    run: Run,
    config: RobotConfig,
    simulator: Simulator,
    start: PolicyStart | None,
    demonstrations: Demonstrations | None,
) -> PolicyParts:
    """The policy of a checkpoint of LeRobot, ready for RL; a resumed run loads its own copy."""
    own = run.folder.path / START
    if start is not None:
        with propagate_errors(run.processes):
            if run.processes.is_main:
                copy_checkpoint(start.folder, own)
        record_start(run, describe_start(start, read_safetensors(own / WEIGHTS, REMEDY)))
    device = str(run.processes.device)
    names = [field.name for field in fields(LeRobotSettings)]
    settings = LeRobotSettings(**{name: getattr(config.policy, name) for name in names})
    policy = open_act(own, settings, config.model.detach_critic, device)
    broadcast_weights(policy, run.processes)
    run.results["model"] = {
        "num_parameters": num_parameters(policy),
        "num_draws": policy.num_draws,
    }
    if start is not None:
        run.save(STAGE, 0, {"policy": policy.state_dict()})
        kind = read_checkpoint_spec(own).kind
        run.progress.print_line(
            f"start: LeRobot's {kind} {start.name}; grounding and SFT are skipped"
        )
        if read_checkpoint_spec(own).dataset is None:
            run.progress.print_line(
                f"  {start.name} does not name its training starts, or its dataset is gone: cannot "
                "verify that the evaluation starts are held out"
            )

    def save(folder: Path) -> None:
        save_checkpoint(policy, own, folder)
        run.progress.print_line(f"refined checkpoint of LeRobot: {folder}")

    return PolicyParts(policy, TextObserver(config.policy.instruction_length), None, save)


def copy_checkpoint(folder: Path, target: Path) -> None:
    """Copy the files of a checkpoint."""
    target.mkdir(exist_ok=True)
    for pattern in FILES:
        for path in sorted(folder.glob(pattern)):
            shutil.copyfile(path, target / path.name)


def open_act(
    folder: Path, settings: LeRobotSettings, detach_critic: bool, device: str
) -> ActPolicy:
    """LeRobot's ACT of a folder with its processors, as a policy of RL.

    Raises:
        ValueError: it averages over overlapping chunks.
    """
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(folder)
    config.device, config.pretrained_path = device, folder
    if getattr(config, "temporal_ensemble_coeff", None) is not None:
        raise ValueError(
            f"{folder} averages over chunks (temporal_ensemble_coeff): set it to null in its "
            "config.json"
        )
    policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    before, after = make_pre_post_processors(
        config,
        pretrained_path=str(folder),
        preprocessor_overrides={"device_processor": {"device": device}},
    )
    return ActPolicy(policy, before, after, settings, detach_critic).to(device)


def save_checkpoint(policy: ActPolicy, start: Path, folder: Path) -> None:
    """Write the weights of a policy beside the config.json and the processors of its start."""
    folder.mkdir(exist_ok=True)
    policy.policy.save_pretrained(folder)
    for path in sorted(start.glob("*")):
        if path.name != WEIGHTS:
            shutil.copyfile(path, folder / path.name)
