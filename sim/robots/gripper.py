"""The hand of both robots: palm, two coupled fingers, `tcp` site and wrist camera.

The hand body's own frame is the Franka hand's: z points out of the palm, the fingers slide along y.
The `tcp` site is turned by pi about x, so that a hand that points straight down has a `tcp` frame
parallel to the world's.
"""

from __future__ import annotations

import math

import mujoco

from sim.workspace import MAX_OPENING

TCP_OFFSET = 0.1034
"""Metres from the hand's flange to the point between the fingertips (Franka hand data sheet)."""
FINGER_BASE = 0.0584
GRIP_FORCE_N = 4.0
WRIST_TILT = math.radians(22)
"""Angle between the wrist camera and the palm's axis: the tcp is low in its picture."""
FINGER_CONTYPE = 2

WHITE = (0.92, 0.92, 0.92, 1.0)
GREY = (0.45, 0.47, 0.50, 1.0)
DARK = (0.20, 0.21, 0.23, 1.0)
BOX = mujoco.mjtGeom.mjGEOM_BOX


def add_visual(body: mujoco.MjsBody, kind: mujoco.mjtGeom, **attributes: object) -> mujoco.MjsGeom:
    """Add a geom without collisions."""
    return body.add_geom(type=kind, contype=0, conaffinity=0, **attributes)


def add_gripper(spec: mujoco.MjSpec, hand: mujoco.MjsBody, kp: float = 1500.0) -> None:
    """Add palm, fingers, actuator "gripper", site "tcp" and camera "wrist" to the body `hand`.

    The actuator goes from 0 (closed) to 0.04 (open).
    """
    add_visual(hand, BOX, size=[0.016, 0.075, 0.018], pos=[0, 0, 0.03], rgba=WHITE, mass=0.6)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        finger = hand.add_body(name=f"{side}_finger", pos=[0, 0, FINGER_BASE], gravcomp=1)
        finger.add_joint(
            name=f"{side}_finger",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[0, sign, 0],
            range=[0, MAX_OPENING / 2],
            limited=True,
            damping=[25.0, 0, 0],
            armature=0.1,
        )
        add_visual(
            finger,
            BOX,
            size=[0.008, 0.007, 0.016],
            pos=[0, sign * 0.014, 0.014],
            rgba=GREY,
            mass=0.01,
        )
        finger.add_geom(
            name=f"{side}_fingertip",
            type=BOX,
            size=[0.009, 0.005, 0.016],
            pos=[0, sign * 0.005, 0.0395],
            rgba=DARK,
            mass=0.01,
            contype=FINGER_CONTYPE,
            conaffinity=0,
            condim=3,
            friction=[1.5, 0.005, 0.0001],
            solimp=[0.95, 0.99, 0.001, 0.5, 2],
            solref=[0.01, 1],
        )
    _couple_fingers(spec, kp)
    hand.add_site(
        name="tcp", pos=[0, 0, TCP_OFFSET], quat=[0, 1, 0, 0], size=[0.005, 0.005, 0.005], group=5
    )
    sine = math.sin(WRIST_TILT)
    cosine = math.cos(WRIST_TILT)
    hand.add_camera(name="wrist", pos=[0.07, 0, 0.03], xyaxes=[0, 1, 0, cosine, 0, sine], fovy=75)


def _couple_fingers(spec: mujoco.MjSpec, kp: float) -> None:
    """Couple the fingers to one servo: two saturated servos would let a block drift sideways."""
    tendon = spec.add_tendon(name="fingers")
    tendon.wrap_joint("left_finger", 0.5)
    tendon.wrap_joint("right_finger", 0.5)
    spec.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT,
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        name1="left_finger",
        name2="right_finger",
        data=[0, 1] + [0] * 10,
        solref=[0.01, 1],
    )
    actuator = spec.add_actuator(
        name="gripper",
        trntype=mujoco.mjtTrn.mjTRN_TENDON,
        target="fingers",
        ctrllimited=True,
        ctrlrange=[0, MAX_OPENING / 2],
        forcelimited=True,
        forcerange=[-2 * GRIP_FORCE_N, 2 * GRIP_FORCE_N],
    )
    actuator.set_to_position(kp=kp)
