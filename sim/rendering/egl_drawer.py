"""MuJoCo's classic OpenGL renderer on EGL contexts without a display, one context per thread."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import mujoco
import numpy as np
from mujoco.egl import GLContext

from sim.rendering.fields import Arrays

_EVERYTHING = int(mujoco.mjtCatBit.mjCAT_ALL)
_HIDDEN_GROUP = mujoco.mjNGROUP - 1
_OFF = ("SHADOW", "REFLECTION", "SKYBOX", "HAZE", "FOG")
_opening = threading.Lock()


class _Canvas:
    """An OpenGL context with its scratch model, data and scene; it belongs to the thread that made
    it.

    The framebuffer holds the cameras of one environment side by side, so that its pixels are read
    once. It never holds several environments: the position in the framebuffer shifts the edges of a
    picture by a rounding, and a picture must not depend on the others of its batch.
    """

    def __init__(
        self, model: mujoco.MjModel, cameras: tuple[str, ...], size: int, textures: bool
    ) -> None:
        self._model = copy.copy(model)
        visual = self._model.vis
        visual.global_.offwidth = size * len(cameras)
        visual.global_.offheight = size
        visual.quality.offsamples = 0
        visual.quality.shadowsize = 0
        visual.quality.numquads = 1
        # OpenGL computes highlights at vertices, the ray tracer at pixels: without them the
        # pictures are the same.
        visual.headlight.specular[:] = 0
        self._model.light_specular[:] = 0
        self._data = mujoco.MjData(self._model)
        with _opening:  # the display is shared by all contexts
            self._gl = GLContext(size * len(cameras), size)
            self._gl.make_current()
            self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(
            self._model, maxgeom=self._model.ngeom + self._model.nsite + 16
        )
        for flag in _OFF:
            self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._option = mujoco.MjvOption()
        self._option.flags[mujoco.mjtVisFlag.mjVIS_TEXTURE] = int(textures)
        self._option.geomgroup[_HIDDEN_GROUP] = 0
        self._groups = self._model.geom_group.copy()
        self._views = [
            (self._fixed_camera(model.camera(name).id), mujoco.MjrRect(index * size, 0, size, size))
            for index, name in enumerate(cameras)
        ]
        self._whole = mujoco.MjrRect(0, 0, size * len(cameras), size)
        self._pixels = np.empty((size, size * len(cameras), 3), np.uint8)
        # OpenGL's first row is the bottom one; this view [cameras, h, w, 3] starts at the top.
        self._upright = self._pixels[::-1].reshape(size, len(cameras), size, 3).swapaxes(0, 1)

    @staticmethod
    def _fixed_camera(index: int) -> mujoco.MjvCamera:
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = index
        return camera

    def draw(
        self,
        rows: Iterator[int],
        poses: Arrays,
        looks: Arrays,
        visible: np.ndarray,
        images: list[np.ndarray],
    ) -> None:
        """Draw rows from the shared iterator `rows` into `images`, an array [n, h, w, 3] per
        camera.

        `visible` [n, cameras, geoms] is False for geoms outside a camera's view.
        """
        model = self._model
        data = self._data
        scene = self._scene
        context = self._context
        fields = [(getattr(data, field), values) for field, values in poses.items()]
        fields += [(getattr(model, field), values) for field, values in looks.items()]
        writes = [(target, values.reshape(len(values), *target.shape)) for target, values in fields]
        for row in rows:
            for target, values in writes:
                target[...] = values[row]
            groups = np.where(
                visible[row],
                model.geom_group if "geom_group" in looks else self._groups,
                _HIDDEN_GROUP,
            )
            for (camera, viewport), group in zip(self._views, groups, strict=True):
                model.geom_group[:] = group
                # mjv_updateCamera is 0.01 ms cheaper, but leaves the headlight at the previous
                # camera.
                mujoco.mjv_updateScene(model, data, self._option, None, camera, _EVERYTHING, scene)
                mujoco.mjr_render(viewport, scene, context)
            mujoco.mjr_readPixels(self._pixels, None, self._whole, context)
            for image, view in zip(images, self._upright, strict=True):
                image[row] = view

    def close(self) -> None:
        self._context.free()
        self._gl.free()


def geoms_in_view(
    model: mujoco.MjModel, cameras: Sequence[int], poses: Arrays, looks: Arrays
) -> np.ndarray:
    """Whether [n, cameras, geoms] a geom's bounding sphere touches the pyramid of a square picture.

    Let p be the centre in the camera's frame, d = -p_z its depth, a half the field of view and r
    the radius. Then d > -r and |p_x| cos a - d sin a < r, and the same for p_y. Drawing a geom
    costs 0.02 ms wherever it is, and a close camera shows a third of a robot's geoms.
    """
    sizes = looks.get("geom_size", model.geom_size)
    positions = poses["geom_xpos"]
    # The sum of a primitive's sizes is never too small a radius.
    radius = np.maximum(sizes.sum(axis=-1), model.geom_rbound)
    radius = np.where(
        looks.get("geom_type", model.geom_type) == mujoco.mjtGeom.mjGEOM_PLANE, np.inf, radius
    )
    visible = np.ones((len(positions), len(cameras), model.ngeom), dtype=bool)
    for index, camera in enumerate(cameras):
        if (
            model.cam_projection[camera] != mujoco.mjtProjection.mjPROJ_PERSPECTIVE
            or model.cam_sensorsize[camera].any()
        ):
            continue
        offset = positions - poses["cam_xpos"][:, None, camera]
        x, y, z = np.moveaxis(offset @ poses["cam_xmat"][:, camera].reshape(-1, 3, 3), -1, 0)
        fovy = looks["cam_fovy"][:, camera, None] if "cam_fovy" in looks else model.cam_fovy[camera]
        cosine = np.cos(np.radians(fovy) / 2)
        sine = np.sin(np.radians(fovy) / 2)
        across = np.maximum(np.abs(x), np.abs(y)) * cosine + z * sine
        visible[:, index] = (across < radius) & (-z > -radius)
    return visible


class EglDrawer:
    """The OpenGL back end: threads with a canvas each draw from one shared queue of
    environments."""

    def __init__(
        self,
        model: mujoco.MjModel,
        cameras: tuple[str, ...],
        size: int,
        num_threads: int,
        textures: bool = False,
    ) -> None:
        self._model = model
        self._cameras = cameras
        self._camera_ids = [model.camera(name).id for name in cameras]
        # One executor per canvas, since a context belongs to its thread.
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix=f"render-{i}") for i in range(num_threads)
        ]
        opened = [
            thread.submit(_Canvas, model, cameras, size, textures) for thread in self._threads
        ]
        self._canvases = [future.result() for future in opened]

    def draw(self, poses: Arrays, looks: Arrays, images: Arrays) -> None:
        targets = [images[camera] for camera in self._cameras]
        rows = iter(range(len(targets[0])))
        visible = geoms_in_view(self._model, self._camera_ids, poses, looks)
        drawing = [
            thread.submit(canvas.draw, rows, poses, looks, visible, targets)
            for thread, canvas in zip(self._threads, self._canvases, strict=True)
        ]
        for future in drawing:
            future.result()

    def close(self) -> None:
        for thread, canvas in zip(self._threads, self._canvases, strict=True):
            thread.submit(canvas.close).result()
            thread.shutdown()
        self._threads = []
        self._canvases = []
