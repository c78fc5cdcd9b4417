"""The ground truth of scenes, for questions about pictures and for reports."""

from __future__ import annotations

import numpy as np

from sim.appearance import BLOCK_SHAPE_NAMES, COLOR_NAMES, PAD_SHAPE_NAMES
from sim.instructions import instruction_texts
from sim.physics import Physics
from sim.task import ObjectFacts, SceneFacts, Task

Pixels = tuple[float, float] | None


def scene_facts(
    physics: Physics, task: Task, ids: np.ndarray, phrasing: np.ndarray, cameras: tuple[str, ...]
) -> list[SceneFacts]:
    """One `SceneFacts` per environment of `ids` [n], which all run one task.

    `phrasing` [n] numbers the sentence of each instruction, as in `InstructionTemplate.fill`.
    """
    num_blocks = physics.tabletop.num_blocks
    num_pads = physics.tabletop.num_pads
    blocks = range(num_blocks)
    pads = range(num_pads)
    position = [physics.block_position(ids, i) for i in blocks] + [
        physics.pad_position(ids, i) for i in pads
    ]
    yaw = [physics.block_yaw(ids, i) for i in blocks] + [physics.pad_yaw(ids, i) for i in pads]
    held = [physics.grasped(ids, i) for i in blocks] + [np.zeros(len(ids), dtype=bool)] * num_pads
    pixels = {camera: [physics.project(ids, camera, p) for p in position] for camera in cameras}
    hand = physics.hand_position(ids)
    hand_yaw = physics.hand_yaw(ids)
    opening = physics.gripper_opening(ids)
    instruction = instruction_texts(physics.looks, ids, task.template, phrasing)
    success = task.success(physics, ids)
    named = task.template.objects(num_blocks)
    facts = []
    for row, env in enumerate(ids):
        objects = tuple(
            ObjectFacts(
                *_names(physics, int(env), i, num_blocks),
                role="target" if i in named else "distractor",
                position=tuple(position[i][row].tolist()),
                yaw=float(yaw[i][row]),
                grasped=bool(held[i][row]),
                pixels={camera: _inside(points[i][row]) for camera, points in pixels.items()},
            )
            for i in range(num_blocks + num_pads)
        )
        grasped = next((i for i, item in enumerate(objects) if item.grasped), None)
        facts.append(
            SceneFacts(
                objects=objects,
                hand_position=tuple(hand[row].tolist()),
                hand_yaw=float(hand_yaw[row]),
                gripper_opening=float(opening[row]),
                grasped=grasped,
                instruction=instruction[row],
                success=bool(success[row]),
                template=task.template,
            )
        )
    return facts


def _names(physics: Physics, env: int, i: int, num_blocks: int) -> tuple[str, str, str]:
    """Kind, colour and shape of object i."""
    looks = physics.looks
    if i < num_blocks:
        return (
            "block",
            COLOR_NAMES[looks.block_color[env, i]],
            BLOCK_SHAPE_NAMES[looks.block_shape[env, i]],
        )
    pad = i - num_blocks
    return "pad", COLOR_NAMES[looks.pad_color[env, pad]], PAD_SHAPE_NAMES[looks.pad_shape[env, pad]]


def _inside(point: np.ndarray) -> Pixels:
    u = float(point[0])
    v = float(point[1])
    return (u, v) if 0.0 <= u <= 1.0 and 0.0 <= v <= 1.0 else None
