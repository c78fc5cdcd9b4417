"""Files that make the folder of a policy a checkpoint of LeRobot.

They are written as plain JSON, because loading LeRobot takes fifteen seconds. A test compares them
with the files that LeRobot writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Features = Mapping[str, Mapping[str, Any]]
"""{name: {"type": VISUAL, STATE or ACTION, "shape": sizes}}."""
IDENTITY = dict.fromkeys(("VISUAL", "STATE", "ACTION"), "IDENTITY")


def input_features(policy_spec: Mapping[str, Any], proprio_size: int) -> Features:
    """Input features of the policy; images have channels first."""
    size = policy_spec["image_size"]
    images = {
        f"observation.images.{name}": describe_feature("VISUAL", 3, size, size)
        for name in policy_spec["cameras"]
    }
    return {**images, "observation.state": describe_feature("STATE", proprio_size)}


def output_features(policy_spec: Mapping[str, Any]) -> Features:
    return {"action": describe_feature("ACTION", len(policy_spec["action_spec"]["names"]))}


def describe_feature(kind: str, *shape: int) -> dict[str, Any]:
    return {"type": kind, "shape": list(shape)}


def lerobot_files(
    policy_spec: Mapping[str, Any], proprio_size: int, num_parameters: int
) -> dict[str, str]:
    """{file: text}: the settings as `VlaConfig` reads them, and the pipelines before and after the
    policy, which only name and move (the policy normalises by itself).
    """
    shown, decided = input_features(policy_spec, proprio_size), output_features(policy_spec)
    config = {
        "type": "vla",
        "input_features": shown,
        "output_features": decided,
        "device": "cpu",
        "chunk": policy_spec["chunk"],
        "num_parameters": num_parameters,
    }
    move = processor_step("device_processor", device="cpu", float_dtype=None)
    before = [
        processor_step("rename_observations_processor", rename_map={}),
        processor_step("to_batch_processor"),
        move,
        processor_step(
            "normalizer_processor", eps=1e-8, features={**shown, **decided}, norm_map=IDENTITY
        ),
    ]
    after = [
        processor_step("unnormalizer_processor", eps=1e-8, features=decided, norm_map=IDENTITY),
        move,
    ]
    pipelines = {"policy_preprocessor": before, "policy_postprocessor": after}
    files = {f"{name}.json": {"name": name, "steps": steps} for name, steps in pipelines.items()}
    return {
        name: json.dumps(values, indent=1) + "\n"
        for name, values in {"config.json": config, **files}.items()
    }


def processor_step(name: str, **config: Any) -> dict[str, Any]:
    return {"registry_name": name, "config": config}
