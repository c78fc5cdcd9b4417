"""Conflicts of settings with many processes: equal shares, and recipes that can share work."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vla.config.robot import RobotConfig
from vla.config.text import TextConfig
from vla.runtime import world_size

SHARING_MODES = ("rlvr", "sft")
"""Text modes that run in many processes."""


def process_conflicts(config: RobotConfig | TextConfig) -> list[str]:
    """Conflicts of settings with the number of launched processes, one message each."""
    problems = launcher_conflicts(os.environ)
    number = world_size()
    if number == 1:
        return problems
    for setting, count in shared_counts(config).items():
        if count < number:
            problems.append(
                f"{setting} ({count}) is less than the number of processes ({number}): raise it "
                f"to {number}"
            )
    starts = config.rl.num_start_states
    if config.rl.num_iterations and starts % number:
        problems.append(
            f"rl.num_start_states ({starts}) must be a multiple of the number of processes "
            f"({number}), which "
            f"take equal shares of it: {number * max(1, round(starts / number))} is"
        )
    if isinstance(config, RobotConfig):
        if config.recap.num_rounds:
            problems.append(
                f"recap.num_rounds ({config.recap.num_rounds}) runs in one process, and there are "
                f"{number}: start it "
                "by python, or set it to 0"
            )
        return problems
    if config.text.name not in SHARING_MODES:
        problems.append(
            f"text={config.text.name} runs in one process, and there are {number}: start it by "
            "python, or choose "
            f"text={' or '.join(SHARING_MODES)}"
        )
    if config.language_model.name != "tiny" and config.language_model.engine != "own":
        problems.append(
            f"language_model.engine={config.language_model.engine} draws for one process, and "
            f"there are {number}: start it by python, or set language_model.engine to own"
        )
    return problems


def shared_counts(config: RobotConfig | TextConfig) -> dict[str, int]:
    """Settings that are divided among processes, {name: value}; each process needs at least one."""
    if isinstance(config, RobotConfig):
        shared = (
            {"data.question_batch_size": config.data.question_batch_size}
            if config.data.question_weight
            else {}
        )
        if config.data.texts:
            shared["data.text_batch_size"] = config.data.text_batch_size
        if config.grounding.num_steps and config.model.checkpoint is None:
            shared["grounding.batch_size"] = config.grounding.batch_size
        return {
            "sft.batch_size": config.sft.batch_size,
            "evaluation.num_starts": config.evaluation.num_starts,
            "evaluation.num_validation_starts": config.evaluation.num_validation_starts,
            **shared,
        }
    return {"text.fit.batch_size": config.text.fit.batch_size} if config.text.name == "sft" else {}


def launcher_conflicts(environment: Mapping[str, str]) -> list[str]:
    """`accelerate launch --cpu --num_processes 2` starts a single process (or by MPI several
    that WORLD_SIZE does not count).
    """
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if not on_cpu or "MASTER_PORT" not in environment or "WORLD_SIZE" in environment:
        return []
    return [
        "accelerate launch --cpu --num_processes N starts a single process (accelerate asks MPI "
        "for more): use "
        "torchrun --nproc_per_node N -m vla.commands.train"
    ]
