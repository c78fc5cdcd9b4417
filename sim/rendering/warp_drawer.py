"""mujoco-warp's batch ray tracer, on the CPU or on a CUDA device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import mujoco
import mujoco_warp as mjw
import numpy as np
import warp as wp

from sim.rendering.fields import Arrays

MAX_WORLDS = {"cpu": 16, "cuda": 2048}
"""Environments traced by one call; more are not faster on the CPU."""

_CAMERA_LENS = {"cam_fovy", "cam_sensorsize", "cam_intrinsic"}


class _Tracer:
    """A ray-tracing context for a fixed number of worlds; smaller batches use its first worlds."""

    def __init__(
        self,
        model: mujoco.MjModel,
        cameras: tuple[str, ...],
        size: int,
        num_worlds: int,
        textures: bool,
    ) -> None:
        self._model = copy.copy(model)
        self._cameras = cameras
        self._size = size
        self._textures = textures
        self.num_worlds = num_worlds
        self._warp_model = mjw.put_model(self._model)
        self._warp_data = mjw.make_data(self._model, nworld=num_worlds, nconmax=1, njmax=1)
        self._precomputed_rays = True
        self._context = self._make_context()

    def _make_context(self) -> mjw.RenderContext:
        return mjw.create_render_context(
            self._model,
            nworld=self.num_worlds,
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

    def draw(self, starts: Iterator[int], poses: Arrays, looks: Arrays, images: Arrays) -> None:
        """Draw `num_worlds` rows from each start of the shared iterator `starts`."""
        if self._precomputed_rays and _CAMERA_LENS & set(looks):
            self._precomputed_rays = False
            self._context = self._make_context()
        total = len(next(iter(poses.values())))
        for start in starts:
            rows = slice(start, min(start + self.num_worlds, total))
            for field, values in poses.items():
                self._write(self._warp_data, field, values[rows])
            for field, values in looks.items():
                self._write(self._warp_model, field, values[rows])
            self._trace(rows, images)

    def _trace(self, rows: slice, images: Arrays) -> None:
        count = rows.stop - rows.start
        size = self._size
        self._warp_data.nworld = count
        mjw.refit_bvh(self._warp_model, self._warp_data, self._context)
        mjw.render(self._warp_model, self._warp_data, self._context)
        # A pixel is one little-endian 32-bit word with the bytes B, G, R, A; the cameras follow one
        # another.
        pixels = (
            self._context.rgb_data[:count]
            .numpy()
            .view(np.uint8)
            .reshape(count, len(self._cameras), size, size, 4)
        )
        for index, camera in enumerate(self._cameras):
            images[camera][rows] = pixels[:, index, :, :, 2::-1]

    def _write(self, owner: object, field: str, values: np.ndarray) -> None:
        """Copy host rows `values` into the first worlds of a device field.

        A field that all worlds share so far first gets a row per world.
        """
        array: wp.array | None = getattr(owner, field, None)
        if array is None:  # the ray tracer has no such field
            return
        if array.shape[0] != self.num_worlds or array.strides[0] == 0:
            shared = np.repeat(array.numpy()[:1], self.num_worlds, axis=0)
            array = wp.array(shared, dtype=array.dtype)
            setattr(owner, field, array)
        target = array[: len(values)]
        host = target.numpy()
        target.assign(np.ascontiguousarray(values.reshape(host.shape), dtype=host.dtype))


class WarpDrawer:
    """The ray-tracing back end: a tracer per CPU thread, or one on the GPU, and one shared
    queue."""

    def __init__(
        self,
        model: mujoco.MjModel,
        cameras: tuple[str, ...],
        size: int,
        num_envs: int,
        num_threads: int,
        textures: bool = False,
    ) -> None:
        wp.config.log_level = 30  # warnings and worse
        wp.init()
        cuda = wp.get_preferred_device().is_cuda
        num_worlds = min(num_envs, MAX_WORLDS["cuda" if cuda else "cpu"])
        num_tracers = 1 if cuda else min(num_threads, -(-num_envs // num_worlds))
        self._tracers = [
            _Tracer(model, cameras, size, num_worlds, textures) for _ in range(num_tracers)
        ]
        self._pool = ThreadPoolExecutor(num_tracers, thread_name_prefix="trace")

    def draw(self, poses: Arrays, looks: Arrays, images: Arrays) -> None:
        starts = iter(range(0, len(next(iter(poses.values()))), self._tracers[0].num_worlds))
        for future in [
            self._pool.submit(tracer.draw, starts, poses, looks, images) for tracer in self._tracers
        ]:
            future.result()

    def close(self) -> None:
        self._pool.shutdown()
        self._tracers = []
