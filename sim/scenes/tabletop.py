"""The tabletop scene: a table, blocks, flat target pads, a light and the front camera.

The world's frame is the robot base's; the table top is z = 0. One compiled model serves all
environments: an object has one geom per primitive and shows one of them, so that colour and shape
are per-environment numbers (`geom_rgba`, `geom_size`).
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from sim.robots.robot import Robot
from sim.scenes.objects import (
    BLOCK_HALF_HEIGHT,
    BLOCK_SHAPES,
    GEOM_KINDS,
    PAD_HALF_HEIGHT,
    PAD_SHAPES,
    Shape,
)
from sim.workspace import CENTER

BLOCK_MASS = 0.05
ROLL_DAMPING = 1e-4
"""N m s: a toppled cylinder stops rolling within a hand's breadth, and sliding is not slowed."""

PARKED = (0.0, 0.0, -1.0)
BOX = mujoco.mjtGeom.mjGEOM_BOX
CYLINDER = mujoco.mjtGeom.mjGEOM_CYLINDER
PLANE = mujoco.mjtGeom.mjGEOM_PLANE
KINDS = {"box": BOX, "cylinder": CYLINDER}


@dataclass(frozen=True)
class Tabletop:
    """A compiled scene with its robot and its numbers of objects."""

    model: mujoco.MjModel
    robot: Robot
    num_blocks: int
    num_pads: int


def build(robot: Robot, num_blocks: int, num_pads: int) -> Tabletop:
    """Compile the scene with `robot`, `num_blocks` free blocks and `num_pads` pads."""
    spec = mujoco.MjSpec()
    spec.modelname = f"tabletop_{robot.name}"
    spec.compiler.degree = False
    _set_options(spec, robot)
    _add_surroundings(spec)
    for i in range(num_blocks):
        _add_block(spec, i)
    for i in range(num_pads):
        _add_pad(spec, i)
    robot.attach(spec)
    return Tabletop(spec.compile(), robot, num_blocks, num_pads)


def _set_options(spec: mujoco.MjSpec, robot: Robot) -> None:
    spec.option.timestep = robot.timestep
    spec.option.integrator = robot.integrator
    spec.option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL
    spec.option.iterations = 20
    spec.option.ls_iterations = 20
    spec.visual.headlight.ambient = [0.4, 0.4, 0.4]
    spec.visual.headlight.diffuse = [0.2, 0.2, 0.2]
    spec.visual.headlight.specular = [0.0, 0.0, 0.0]
    spec.visual.map.znear = 0.005
    spec.visual.map.zfar = 10.0
    spec.visual.quality.shadowsize = 512
    spec.visual.quality.offsamples = 0
    spec.visual.quality.numslices = 16
    spec.visual.quality.numstacks = 8
    spec.visual.quality.numquads = 1
    spec.visual.global_.offwidth = 640
    spec.visual.global_.offheight = 640
    spec.stat.center = [CENTER[0], CENTER[1], 0.1]
    spec.stat.extent = 1.0


def _add_surroundings(spec: mujoco.MjSpec) -> None:
    """Add table, floor, light and front camera.

    The table is a finite plane: an infinite one takes as long to render as four frames.
    """
    world = spec.worldbody
    world.add_geom(
        name="table",
        type=PLANE,
        size=[0.55, 0.7, 0.05],
        pos=[0.35, 0, 0],
        rgba=[0.62, 0.60, 0.56, 1],
        contype=1,
        conaffinity=0,
        condim=3,
        friction=[1.0, 0.005, 0.0001],
    )
    world.add_geom(
        name="floor",
        type=PLANE,
        size=[3, 3, 0.05],
        pos=[0, 0, -0.4],
        rgba=[0.30, 0.32, 0.35, 1],
        contype=0,
        conaffinity=0,
    )
    world.add_light(
        name="lamp",
        pos=[0.9, 0.4, 1.5],
        dir=[-0.25, -0.25, -0.93],
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        diffuse=[0.45, 0.45, 0.45],
        specular=[0.05, 0.05, 0.05],
        ambient=[0.0, 0.0, 0.0],
        castshadow=True,
    )
    add_looking_camera(spec, "front", eye=(1.33, 0.07, 0.91), target=(0.5, 0.0, 0.06), fovy=14.7)


def add_looking_camera(
    spec: mujoco.MjSpec, name: str, eye: tuple[float, ...], target: tuple[float, ...], fovy: float
) -> None:
    """Add a fixed camera at `eye` that looks at `target` (metres), with z upwards; `fovy` in
    degrees."""
    back = np.array(eye) - np.array(target)
    back = back / np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right = right / np.linalg.norm(right)
    spec.worldbody.add_camera(
        name=name, pos=list(eye), xyaxes=[*right, *np.cross(back, right)], fovy=fovy
    )


def largest_size(shapes: dict[str, Shape], kind: str) -> list[float]:
    """The largest size of a primitive over the shapes.

    The model's bounding volumes are computed from it and must hold every shape.
    """
    return np.max([shape.size for shape in shapes.values() if shape.geom == kind], axis=0).tolist()


def _add_block(spec: mujoco.MjSpec, i: int) -> None:
    body = spec.worldbody.add_body(name=f"block_{i}", pos=[CENTER[0], 0.1 * i, BLOCK_HALF_HEIGHT])
    body.add_joint(name=f"block_{i}", type=mujoco.mjtJoint.mjJNT_FREE, damping=[ROLL_DAMPING, 0, 0])
    body.mass = BLOCK_MASS
    body.ipos = [0, 0, 0]
    body.iquat = [1, 0, 0, 0]
    body.inertia = [BLOCK_MASS * (0.04**2 + 0.04**2) / 12] * 3
    body.explicitinertial = True
    for kind in GEOM_KINDS:
        body.add_geom(
            name=f"block_{i}_{kind}",
            type=KINDS[kind],
            size=largest_size(BLOCK_SHAPES, kind),
            contype=1,
            conaffinity=3,
            condim=3,
            friction=[1.0, 0.005, 0.0001],
        )


def _add_pad(spec: mujoco.MjSpec, i: int) -> None:
    body = spec.worldbody.add_body(
        name=f"pad_{i}", mocap=True, pos=[CENTER[0], 0.1 * i, PAD_HALF_HEIGHT]
    )
    for kind in GEOM_KINDS:
        body.add_geom(
            name=f"pad_{i}_{kind}",
            type=KINDS[kind],
            size=largest_size(PAD_SHAPES, kind),
            contype=0,
            conaffinity=0,
        )
