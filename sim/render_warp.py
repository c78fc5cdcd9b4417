"""mujoco-warp's batch ray tracer: no system library, on the CPU or on a CUDA device."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import mujoco
import mujoco_warp as mjw
import numpy as np
import warp as wp

MAX_WORLDS = {"cpu": 64, "cuda": 2048}
"""Environments traced by one call; the CPU gains nothing from more."""

_CAMERA_LENS = {"cam_fovy", "cam_sensorsize", "cam_intrinsic"}


class WarpDrawer:
    """A ray-tracing context for a fixed number of worlds; shorter calls use its first worlds."""

    def __init__(
        self, model: mujoco.MjModel, cameras: tuple[str, ...], size: int, num_envs: int, textures: bool = False
    ) -> None:
        wp.config.log_level = 30  # warnings and worse
        wp.init()
        self._device = wp.get_preferred_device()
        self._model = copy.copy(model)
        self._cameras, self._size, self._textures = cameras, size, textures
        self._worlds = min(num_envs, MAX_WORLDS["cuda" if self._device.is_cuda else "cpu"])
        with wp.ScopedDevice(self._device):
            self._warp_model = mjw.put_model(self._model)
            self._warp_data = mjw.make_data(self._model, nworld=self._worlds, nconmax=1, njmax=1)
        self._precomputed_rays = True
        self._context = self._make_context()

    def _make_context(self) -> mjw.RenderContext:
        with wp.ScopedDevice(self._device):
            return mjw.create_render_context(
                self._model,
                nworld=self._worlds,
                cam_res=(self._size, self._size),
                cam_active=list(self._cameras),
                render_rgb=True,
                render_depth=False,
                render_seg=False,
                use_textures=self._textures,
                use_shadows=False,
                enable_specular=False,
                use_precomputed_rays=self._precomputed_rays,
            )

    def draw(
        self, poses: Mapping[str, np.ndarray], looks: Mapping[str, np.ndarray], images: Mapping[str, np.ndarray]
    ) -> None:
        if self._precomputed_rays and _CAMERA_LENS & set(looks):
            self._precomputed_rays = False
            self._context = self._make_context()
        total = len(next(iter(poses.values())))
        with wp.ScopedDevice(self._device):
            for start in range(0, total, self._worlds):
                rows = slice(start, min(start + self._worlds, total))
                self._trace(rows, poses, looks, images)

    def _trace(
        self,
        rows: slice,
        poses: Mapping[str, np.ndarray],
        looks: Mapping[str, np.ndarray],
        images: Mapping[str, np.ndarray],
    ) -> None:
        count, size = rows.stop - rows.start, self._size
        for field, values in poses.items():
            self._write(self._warp_data, field, values[rows])
        for field, values in looks.items():
            self._write(self._warp_model, field, values[rows])
        self._warp_data.nworld = count
        mjw.refit_bvh(self._warp_model, self._warp_data, self._context)
        mjw.render(self._warp_model, self._warp_data, self._context)
        # Each pixel is one little-endian 32-bit word, bytes B, G, R, A; cameras stand one after the other.
        pixels = self._context.rgb_data[:count].numpy().view(np.uint8).reshape(count, len(self._cameras), size, size, 4)
        for index, camera in enumerate(self._cameras):
            images[camera][rows] = pixels[:, index, :, :, 2::-1]

    def _write(self, owner: object, field: str, values: np.ndarray) -> None:
        """Copy host rows `values` into the first worlds of a device field, which gets one row a world if it was shared."""
        array: wp.array | None = getattr(owner, field, None)
        if array is None:  # a field the ray tracer does not know, such as the classic renderer's reflectance
            return
        if array.shape[0] != self._worlds or array.strides[0] == 0:
            shared = np.repeat(array.numpy()[:1], self._worlds, axis=0)
            array = wp.array(shared, dtype=array.dtype)
            setattr(owner, field, array)
        target = array[: len(values)]
        target.assign(np.ascontiguousarray(values.reshape(target.numpy().shape), dtype=target.numpy().dtype))

    def close(self) -> None:
        del self._context, self._warp_data, self._warp_model
