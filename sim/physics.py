"""Quantities of many simulations at once, such as the hand's position and whether a block is
grasped.

Every query takes sorted simulation ids [n] and returns arrays whose first dimension is n. Queries
use positions and velocities only, never contact forces: a restored state gives the same values bit
for bit.
"""

from __future__ import annotations

import mujoco
import numpy as np
from mujoco import batch as mujoco_batch

from sim.appearance import (
    ALWAYS_VARIED,
    Looks,
    Surroundings,
    geom_ids,
    write_objects,
    write_surroundings,
)
from sim.robots.rotations import quat_to_yaw, rpy_to_quat, wrap_angle
from sim.scenes.objects import BLOCK_HALF_HEIGHT, BLOCK_SHAPES, PAD_HALF_HEIGHT, PAD_SHAPES
from sim.scenes.tabletop import Tabletop
from sim.spec import CLOSE, DEFAULT_ACTION_SPEC
from sim.workspace import CONTROL_SECONDS, MAX_OPENING, POSE_HIGH, POSE_LOW

SYMMETRY = np.array([shape.symmetry for shape in BLOCK_SHAPES.values()])
GRASP_WIDTH = np.array([shape.grasp_width for shape in BLOCK_SHAPES.values()])

GRASP_OFFSET = np.array([0.022, 0.02, 0.024])
"""Largest offset (metres, in the hand's frame) from the tcp to the centre of a grasped block."""
STILL_SPEED = 0.03
"""Finger speed (m/s) below which closing fingers count as stopped by an object between them."""
REST_TOLERANCE = 0.006
"""Largest height difference (metres) to a block that lies on the table."""


class Physics:
    """N simulations of one tabletop, their commanded poses and their objects' looks.

    Args:
        tabletop: the compiled scene.
        num_envs: simulations N.
        num_threads: physics threads, 0 for one per core.
        varied: further model fields with a value per simulation, such as "cam_pos".
    """

    def __init__(
        self, tabletop: Tabletop, num_envs: int, num_threads: int, varied: tuple[str, ...] = ()
    ) -> None:
        self.tabletop = tabletop
        self.robot = tabletop.robot
        self.model = tabletop.model
        self.num_envs = num_envs
        self.num_substeps = round(CONTROL_SECONDS / self.robot.timestep)
        self.batch = mujoco_batch.Batch(self.model, num_envs, num_threads)
        bind = self.batch.bind
        self.qpos = bind("qpos")
        self.qvel = bind("qvel")
        self.ctrl = bind("ctrl")
        self.mocap_pos = bind("mocap_pos")
        self.mocap_quat = bind("mocap_quat")
        self.site_xpos = bind("site_xpos")
        self.site_xmat = bind("site_xmat")
        self.cam_xpos = bind("cam_xpos")
        self.cam_xmat = bind("cam_xmat")
        self.fields = {name: self.batch.expand(name) for name in (*ALWAYS_VARIED, *varied)}
        self.commanded = np.zeros((num_envs, 6))
        self.closing = np.zeros(num_envs, dtype=bool)
        blocks = (num_envs, tabletop.num_blocks)
        pads = (num_envs, tabletop.num_pads)
        self.looks = Looks(
            *(np.zeros(shape, dtype=np.int64) for shape in (blocks, blocks, pads, pads))
        )
        self._find_columns()

    def _find_columns(self) -> None:
        model = self.model
        tabletop = self.tabletop
        self._tcp = model.site("tcp").id
        self._arm = np.array([model.joint(name).qposadr[0] for name in self.robot.arm_joints])
        fingers = [model.joint(f"{side}_finger") for side in ("left", "right")]
        self._finger_qpos = np.array([joint.qposadr[0] for joint in fingers])
        self._finger_qvel = np.array([joint.dofadr[0] for joint in fingers])
        self._gripper = model.actuator("gripper").id
        blocks = [model.joint(f"block_{i}") for i in range(tabletop.num_blocks)]
        self._block_qpos = np.array([joint.qposadr[0] for joint in blocks])
        self._block_qvel = np.array([joint.dofadr[0] for joint in blocks])
        self._pad_mocap = np.array(
            [model.body(f"pad_{i}").mocapid[0] for i in range(tabletop.num_pads)]
        )
        self._block_geoms = geom_ids(model, "block", tabletop.num_blocks)
        self._pad_geoms = geom_ids(model, "pad", tabletop.num_pads)

    # -- queries ----------------------------------------------------------------------------------

    def hand_position(self, ids: np.ndarray) -> np.ndarray:
        """Measured tcp position [n, 3], metres."""
        return self.site_xpos[ids, self._tcp]

    def hand_matrix(self, ids: np.ndarray) -> np.ndarray:
        """Measured tcp rotation [n, 3, 3]; the identity when the hand points straight down."""
        return self.site_xmat[ids, self._tcp].reshape(-1, 3, 3)

    def hand_yaw(self, ids: np.ndarray) -> np.ndarray:
        """Measured rotation [n] of the hand about the vertical, radians."""
        matrix = self.hand_matrix(ids)
        return np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0])

    def gripper_opening(self, ids: np.ndarray) -> np.ndarray:
        """Distance [n] between the fingers, metres, 0 to 0.08."""
        return self.qpos[np.ix_(ids, self._finger_qpos)].sum(axis=1)

    def finger_speed(self, ids: np.ndarray) -> np.ndarray:
        """Absolute rate of change [n] of the opening, m/s."""
        return np.abs(self.qvel[np.ix_(ids, self._finger_qvel)].sum(axis=1))

    def block_position(self, ids: np.ndarray, block: np.ndarray | int) -> np.ndarray:
        """Centre [n, 3] of one block per simulation, metres."""
        start = np.broadcast_to(self._block_qpos[block], ids.shape)
        return self.qpos[ids[:, None], start[:, None] + np.arange(3)]

    def block_yaw(self, ids: np.ndarray, block: np.ndarray | int) -> np.ndarray:
        """Rotation [n] of one block per simulation about the vertical, radians."""
        start = np.broadcast_to(self._block_qpos[block], ids.shape)
        return quat_to_yaw(self.qpos[ids[:, None], start[:, None] + np.arange(3, 7)])

    def block_speed(self, ids: np.ndarray, block: np.ndarray | int) -> np.ndarray:
        """Linear speed [n] of one block per simulation, m/s."""
        start = np.broadcast_to(self._block_qvel[block], ids.shape)
        return np.linalg.norm(self.qvel[ids[:, None], start[:, None] + np.arange(3)], axis=1)

    def block_symmetry(self, ids: np.ndarray, block: np.ndarray | int) -> np.ndarray:
        """Smallest rotation [n] that maps one block per simulation onto itself, radians.

        0 stands for a cylinder: every rotation does.
        """
        return SYMMETRY[self.looks.block_shape[ids, block]]

    def grasp_width(self, ids: np.ndarray, block: np.ndarray | int) -> np.ndarray:
        """Distance [n] between the fingers that hold one block per simulation, metres."""
        return GRASP_WIDTH[self.looks.block_shape[ids, block]]

    def pad_position(self, ids: np.ndarray, pad: np.ndarray | int) -> np.ndarray:
        """Centre [n, 3] of one pad per simulation, metres."""
        return self.mocap_pos[ids, self._pad_mocap[pad]]

    def pad_yaw(self, ids: np.ndarray, pad: int) -> np.ndarray:
        """Rotation [n] of one pad about the vertical, radians."""
        return quat_to_yaw(self.mocap_quat[ids, self._pad_mocap[pad]])

    def project(self, ids: np.ndarray, camera: str, points: np.ndarray) -> np.ndarray:
        """Positions [n, 2] of world points [n, 3] in a camera's image: fractions right and down.

        NaN stands for a point behind the camera.
        """
        column = self.model.camera(camera).id
        matrix = self.cam_xmat[ids, column].reshape(-1, 3, 3)
        local = np.einsum("nji,nj->ni", matrix, points - self.cam_xpos[ids, column])
        depth = np.where(local[:, 2] < -1e-6, -local[:, 2], np.nan)
        half = np.tan(np.radians(self.model.cam_fovy[column]) / 2)
        right = local[:, 0] / (depth * half)
        up = local[:, 1] / (depth * half)
        return np.stack([0.5 + 0.5 * right, 0.5 - 0.5 * up], axis=1)

    def hand_to_block(self, ids: np.ndarray, block: np.ndarray | int) -> np.ndarray:
        """Vector [n, 3] from the tcp to a block's centre in the hand's frame, metres.

        The fingers move along y.
        """
        offset = self.block_position(ids, block) - self.hand_position(ids)
        return np.einsum("nji,nj->ni", self.hand_matrix(ids), offset)

    def grasped(self, ids: np.ndarray, block: np.ndarray | int) -> np.ndarray:
        """Whether [n] a block is held: closing fingers have stopped with its centre between
        them."""
        between = (np.abs(self.hand_to_block(ids, block)) < GRASP_OFFSET).all(axis=1)
        width = self.grasp_width(ids, block)
        stopped = (self.finger_speed(ids) < STILL_SPEED) & (
            self.gripper_opening(ids) > width - 0.008
        )
        return between & stopped & self.closing[ids]

    def resting(self, ids: np.ndarray, block: np.ndarray | int) -> np.ndarray:
        """Whether [n] a block's centre is at the height it has when it lies on the table."""
        return np.abs(self.block_position(ids, block)[:, 2] - BLOCK_HALF_HEIGHT) < REST_TOLERANCE

    def aligned_yaw(self, ids: np.ndarray, block: np.ndarray | int) -> np.ndarray:
        """The hand yaw [n] that puts the fingers on opposite faces of a block, radians.

        Of the equivalent ones it is the nearest to the commanded yaw within the limits.
        """
        symmetry = self.block_symmetry(ids, block)
        period = np.where(symmetry > 0, symmetry, 1.0)
        current = self.commanded[ids, 5]
        turn = wrap_angle(self.block_yaw(ids, block) - current, period)
        goal = np.where(symmetry > 0, current + turn, 0.0)
        return np.where(np.abs(goal) > POSE_HIGH[5] - 0.05, goal - np.sign(goal) * symmetry, goal)

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Every array that decides the future, first dimension N.

        The arrays are live: writing rows of them restores a state.
        """
        looks = {f"looks_{name}": values for name, values in vars(self.looks).items()}
        return {
            "state": self.batch.state,
            "commanded": self.commanded,
            "closing": self.closing,
            **self.fields,
            **looks,
        }

    # -- commands and states
    # ------------------------------------------------------------------------

    def apply(self, actions: np.ndarray, ids: np.ndarray) -> None:
        """Move the commanded poses by `actions` [n, 7], clipped to the action and workspace
        limits."""
        spec = DEFAULT_ACTION_SPEC
        actions = np.clip(actions.astype(np.float64), spec.low, spec.high)
        pose = self.commanded[ids] + actions[:, :6] * self.robot.mask
        self.commanded[ids] = np.clip(pose, POSE_LOW, POSE_HIGH)
        self.closing[ids] = np.sign(actions[:, 6]) == CLOSE
        self._send_command(ids)

    def _send_command(self, ids: np.ndarray) -> None:
        self.robot.command(self.model, self, ids, self.commanded[ids])
        self.ctrl[ids, self._gripper] = np.where(self.closing[ids], 0.0, MAX_OPENING / 2)

    def step(self, ids: np.ndarray) -> None:
        """Advance the simulations by one control step and update all positions."""
        self.batch.step(ids, nstep=self.num_substeps, stage=mujoco.mjtStage.mjSTAGE_VEL)

    def clear(self, ids: np.ndarray) -> None:
        """Reset the simulations' state; derived quantities stay stale until `refresh`."""
        self.batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE)

    def refresh(self, ids: np.ndarray) -> None:
        """Compute the derived quantities after a state was written."""
        self.batch.forward(ids, stage=mujoco.mjtStage.mjSTAGE_VEL)

    def place_hand(
        self, ids: np.ndarray, pose: np.ndarray, opening: np.ndarray, closing: np.ndarray
    ) -> None:
        """Put the hand at rest at `pose` [n, 6].

        The fingers are `opening` [n] metres apart; `closing` [n] is their command.
        """
        pose = np.clip(pose * np.where(self.robot.mask > 0, 1.0, 0.0), POSE_LOW, POSE_HIGH)
        self.commanded[ids] = pose
        self.closing[ids] = closing
        self.qpos[np.ix_(ids, self._arm)] = self.robot.inverse_kinematics(pose)
        self.qpos[np.ix_(ids, self._finger_qpos)] = opening[:, None] / 2
        self._send_command(ids)

    def place_block(
        self, ids: np.ndarray, block: np.ndarray | int, position: np.ndarray, yaw: np.ndarray
    ) -> None:
        """Put one block per simulation at `position` [n, 3] with the rotation `yaw` [n]."""
        start = np.broadcast_to(self._block_qpos[block], ids.shape)
        rpy = np.stack([np.zeros_like(yaw), np.zeros_like(yaw), yaw], axis=1)
        values = np.concatenate([position, rpy_to_quat(rpy)], axis=1)
        self.qpos[ids[:, None], start[:, None] + np.arange(7)] = values

    def place_pad(self, ids: np.ndarray, pad: int, position: np.ndarray, yaw: np.ndarray) -> None:
        """Put one pad at `position` [n, 2] on the table with the rotation `yaw` [n]."""
        column = self._pad_mocap[pad]
        self.mocap_pos[ids, column, :2] = position
        self.mocap_pos[ids, column, 2] = PAD_HALF_HEIGHT
        rpy = np.stack([np.zeros_like(yaw), np.zeros_like(yaw), yaw], axis=1)
        self.mocap_quat[ids, column] = rpy_to_quat(rpy)

    def set_appearance(self, ids: np.ndarray, looks: Looks, around: Surroundings) -> None:
        """Give the objects of `ids` their colours and shapes, and the scene its surroundings."""
        for name, values in vars(looks).items():
            getattr(self.looks, name)[ids] = values
        blocks = self._block_geoms
        pads = self._pad_geoms
        block_shapes = tuple(BLOCK_SHAPES.values())
        pad_shapes = tuple(PAD_SHAPES.values())
        write_objects(
            self.fields, ids, blocks, block_shapes, looks.block_color, looks.block_shape, around.rgb
        )
        write_objects(
            self.fields, ids, pads, pad_shapes, looks.pad_color, looks.pad_shape, around.rgb
        )
        write_surroundings(self.fields, self.model, ids, blocks, around)
