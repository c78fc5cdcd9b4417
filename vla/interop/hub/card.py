"""Model cards of exported policies, written from the files of the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vla.config.compose import read_settings
from vla.evaluation.result import stage_result
from vla.evaluation.starts import StartManifest
from vla.files.base_models import BaseRecord, base_name
from vla.files.reading import validating_file
from vla.files.secrets import mask_secrets
from vla.policy_spec import read_policy_spec
from vla.training.run_folder import RunFolder, read_sessions

FOLDERS = re.compile(r"(?<![^\s=\[,'\"])/(?:[^\s/=,\]]+/)+(?=[^\s/])")
"""The folders above the last name of an absolute path: they are those of one machine."""


def model_card(run: Path, num_parameters: int, base: BaseRecord | None = None) -> str:
    """README.md for the hub: results with n and interval, what actions mean, how it was made, how
    to use it.

    `base` is the model whose adapters the parameters are; None for one model.
    """
    with validating_file(
        f"{run} (config.yaml, results.json, run.json)", "restore the file that is damaged"
    ):
        return build_model_card(run, num_parameters, base)


def build_model_card(run: Path, num_parameters: int, base: BaseRecord | None) -> str:
    config, policy_spec = read_settings(run), read_policy_spec(run)
    results, starts = (
        RunFolder(run).read_results(),
        StartManifest.load(run / "starts.json").to_dict(),
    )
    task = config["sim"].get("task", config["sim"].get("id"))
    title = ", ".join(task) if isinstance(task, list) else str(task)
    head = {
        "license": "apache-2.0",
        "library_name": "vla",
        "pipeline_tag": "robotics",
        "tags": [
            "robotics",
            "vla",
            "mujoco",
            config["policy"]["name"],
            config["algorithm"]["name"],
        ],
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {title}, {config['policy']['name']} policy",
        f"A vision-language-action policy of {num_parameters / 1e6:.2f} million parameters"
        f"{describe_adapters(base)}: "
        f"{config['sim']['robot']} "
        f"in MuJoCo, demonstrations, supervised fine-tuning{describe_training(config)}.",
        "## Results",
        results_table(results, starts),
        "## What an action means",
        action_table(policy_spec["action_spec"]),
        f"{policy_spec['chunk']} actions are predicted at once from {len(policy_spec['cameras'])} "
        "cameras "
        f"({', '.join(policy_spec['cameras'])}, {policy_spec['image_size']} pixels square, by "
        f"{policy_spec.get('resize', 'a rule that is not named')} from other shapes), "
        f"{describe_frame(policy_spec)}.",
        "## How to use it",
        "```\n"
        "vla-eval FOLDER     # on held-out starts\n"
        "vla-serve FOLDER    # actions over a websocket\n"
        "```",
        "Loading compares the table above with the environment, and refuses one where a field "
        "differs.",
        "## Limits",
        "Trained and evaluated in simulation only, on the scenes its settings describe "
        "(`config.yaml`). It was never run "
        "on a real robot.",
        "## How it was made",
        describe_origin(run, starts),
    ]
    return "\n\n".join(parts) + "\n"


def describe_adapters(base: BaseRecord | None) -> str:
    """The base of a policy of adapters, as text; empty for one model."""
    if base is None:
        return ""
    sha256 = base["sha256"]
    known_by = "" if sha256 is None else f", the folder of weights with the hash `{sha256[:12]}`"
    return f", adapters and heads of the base `{base_name(base)}`{known_by}"


def describe_training(config: Mapping[str, Any]) -> str:
    """The stages after supervised fine-tuning, as text; empty where there were none."""
    advantages = (
        ", then on its own episodes by advantage (RECAP)"
        if config.get("recap", {}).get("num_rounds")
        else ""
    )
    algorithm = config["algorithm"]["name"].upper().replace("_", " ")
    return advantages + (f", then {algorithm}" if config["rl"]["num_iterations"] else "")


def results_table(results: Mapping[str, Any], starts: Mapping[str, Any]) -> str:
    """Table of the success before and after RL, or a note that nothing was measured."""
    rows = [
        f"| {when} RL | {result.success_rate.decoding} | {100 * result.mean:.1f} % | "
        f"{result.num_successes}/{result.n} | "
        f"{100 * result.interval[0]:.1f} to {100 * result.interval[1]:.1f} % |"
        for when in ("before", "after")
        for decoding in ("greedy", "sampled")
        if (result := stage_result(results.get("stages", {}), when, decoding)) is not None
    ]
    if not rows:
        return "Nothing was measured: the run was not evaluated on held-out starts."
    head = "| | decoding | success | n | 95 % Wilson interval |\n|---|---|---|---|---|"
    caption = (
        f"Held-out starts: seeds from {starts['evaluation'][0]}, "
        f"sha256 `{starts['sha256'][:16]}`; none was trained on."
    )
    return "\n".join([head, *rows]) + f"\n\n{caption}"


def action_table(spec: Mapping[str, Any]) -> str:
    names = zip(spec["names"], spec["units"], spec["kinds"], spec["low"], spec["high"], strict=True)
    rows = [
        f"| {name} | {unit} | {kind} | {low:g} to {high:g} |"
        for name, unit, kind, low, high in names
    ]
    return "\n".join(["| dimension | unit | kind | limits |", "|---|---|---|---|", *rows])


def describe_frame(policy_spec: Mapping[str, Any]) -> str:
    spec = policy_spec["action_spec"]
    text = f"{spec['control_hz']:g} actions a second in the frame of the {spec['frame']}"
    sign = spec.get("gripper_sign")
    return text + (f"; a positive gripper value means {sign}" if sign else "")


def describe_origin(run: Path, starts: Mapping[str, Any]) -> str:
    """Command, commit and machine of the last session."""
    last = (read_sessions(run) or [{}])[-1]
    libraries = ", ".join(
        f"{name} {version}" for name, version in last.get("libraries", {}).items()
    )
    command = FOLDERS.sub("", mask_secrets(str(last.get("command", "unknown"))))
    return (
        f"```\n{command}\n```\n\n"
        f"Commit `{last.get('commit')}`, {last.get('machine')}; {libraries}. "
        f"Training seeds {starts['train'][0]} to {starts['train'][1]}."
    )
