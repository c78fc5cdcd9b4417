"""The renderer of a batch of simulations through named cameras."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import UInt8

from sim.rendering.backend import Backend
from sim.rendering.fields import LOOK_FIELDS, POSE_FIELDS, Arrays

if TYPE_CHECKING:
    import mujoco
    from mujoco.batch import Batch


class Drawer(Protocol):
    """A back end: it draws rows of poses and appearances into images."""

    def draw(self, poses: Arrays, looks: Arrays, images: Arrays) -> None:
        """Fill `images[camera] [n, h, w, 3]` from `poses[field] [n, ...]` and the expanded
        `looks[field] [n, ...]`."""

    def close(self) -> None: ...


class Renderer:
    """The renderer of chosen environments of a batch through named cameras.

    It reads the batch's derived fields. Make it before the first `reset` or `forward`, since a
    field that is bound later reads zero until then. Step with `stage=mujoco.mjtStage.mjSTAGE_VEL`,
    so that the fields describe the newest state.

    Args:
        model: the model of the batch.
        batch: the simulations.
        cameras: names of cameras in the model.
        image_size: height and width, pixels.
        backend: the result of `choose_backend`.
        num_threads: drawing threads, each with its own context; 0: one per core, at most 2. A GPU
            needs only one.
        textures: draw textures too, at about 1.5 times the cost.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        batch: Batch,
        cameras: tuple[str, ...],
        image_size: int,
        backend: Backend,
        num_threads: int = 0,
        *,
        textures: bool = False,
    ) -> None:
        known = [model.camera(i).name for i in range(model.ncam)]
        for camera in cameras:
            if camera not in known:
                raise ValueError(
                    f"sim.cameras names {camera!r}, but the scene has "
                    f"{', '.join(known) or 'no camera'}"
                )
        if image_size < 1:
            raise ValueError(f"sim.image_size ({image_size}) must be at least 1 pixel")
        self.cameras = tuple(cameras)
        self.image_size = image_size
        self.backend = backend
        self._batch = batch
        self._poses = {field: batch.bind(field) for field in POSE_FIELDS}
        num_threads = num_threads or min(2, os.cpu_count() or 1)
        self._drawer: Drawer
        if backend == "egl":
            from sim.rendering.egl_drawer import EglDrawer

            self._drawer = EglDrawer(model, self.cameras, image_size, num_threads, textures)
        else:
            from sim.rendering.warp_drawer import WarpDrawer

            self._drawer = WarpDrawer(
                model, self.cameras, image_size, batch.nsim, num_threads, textures
            )

    def render(
        self, ids: Sequence[int] | np.ndarray | None = None
    ) -> dict[str, UInt8[np.ndarray, "n h w 3"]]:
        """RGB images of the environments `ids` [n], in their order (None: all of them)."""
        rows = (
            np.arange(self._batch.nsim)
            if ids is None
            else np.asarray(ids, dtype=np.int64).reshape(-1)
        )
        size = self.image_size
        images = {camera: np.empty((len(rows), size, size, 3), np.uint8) for camera in self.cameras}
        if len(rows) and self.cameras:
            poses = {field: values[rows] for field, values in self._poses.items()}
            expanded = {field: self._batch.expanded(field) for field in LOOK_FIELDS}
            looks = {
                field: values[rows] for field, values in expanded.items() if values is not None
            }
            self._drawer.draw(poses, looks, images)
        return images

    def close(self) -> None:
        """Free the contexts; the renderer must not be used afterwards."""
        self._drawer.close()
