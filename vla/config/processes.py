"""What many processes ask of the settings: whole shares for each, and stages that know how to
share."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vla.config.robot import RobotConfig
from vla.config.text import TextConfig
from vla.runtime import world_size

SHARING_MODES = ("rlvr", "sft")
"""Text modes that run in many processes."""


def process_conflicts(config: RobotConfig | TextConfig) -> list[str]:
    """What is wrong in as many processes as a launcher started, a line apiece: setting, value,
    remedy."""
    found = launcher_conflicts(os.environ)
    number = world_size()
    if number == 1:
        return found
    for setting, count in shared_counts(config).items():
        if count < number:
            found.append(
                f"{setting} ({count}) is less than the number of processes ({number}): raise it to {number}"
            )
    starts = config.rl.num_start_states
    if config.rl.num_iterations and starts % number:
        found.append(
            f"rl.num_start_states ({starts}) must be a multiple of the number of processes ({number}), which take "
            f"equal shares of it: {number * max(1, round(starts / number))} is"
        )
    if isinstance(config, RobotConfig):
        if config.recap.num_rounds:
            found.append(
                f"recap.num_rounds ({config.recap.num_rounds}) runs in one process, and there are {number}: start it "
                "by python, or set it to 0"
            )
        return found
    if config.text.name not in SHARING_MODES:
        found.append(
            f"text={config.text.name} runs in one process, and there are {number}: start it by python, or choose "
            f"text={' or '.join(SHARING_MODES)}"
        )
    if getattr(config.language_model, "engine", "own") != "own":
        found.append(
            f"language_model.engine=vllm is for one process, and there are {number}: set it to own"
        )
    return found


def shared_counts(config: RobotConfig | TextConfig) -> dict[str, int]:
    """What is shared among processes, each of which needs at least one."""
    if isinstance(config, RobotConfig):
        asked = (
            {"data.question_batch_size": config.data.question_batch_size}
            if config.data.question_weight
            else {}
        )
        if config.data.texts:
            asked["data.text_batch_size"] = config.data.text_batch_size
        if config.grounding.num_steps and config.model.checkpoint is None:
            asked["grounding.batch_size"] = config.grounding.batch_size
        return {
            "sft.batch_size": config.sft.batch_size,
            "evaluation.num_starts": config.evaluation.num_starts,
            "evaluation.num_validation_starts": config.evaluation.num_validation_starts,
            **asked,
        }
    return {"text.fit.batch_size": config.text.fit.batch_size} if config.text.name == "sft" else {}


def launcher_conflicts(environment: Mapping[str, str]) -> list[str]:
    """`accelerate launch --cpu --num_processes 2` starts a single process, or by MPI several that
    WORLD_SIZE does not count.
    """
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if not on_cpu or "MASTER_PORT" not in environment or "WORLD_SIZE" in environment:
        return []
    return [
        "accelerate launch --cpu --num_processes N starts a single process (accelerate asks MPI for more): use "
        "torchrun --nproc_per_node N -m vla.commands.train"
    ]
