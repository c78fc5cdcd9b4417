"""Images of every environment, from one of two back ends that draw the same picture.

`egl` is MuJoCo's classic OpenGL renderer without a display (software or GPU driver); `warp` is
mujoco-warp's ray tracer, which needs no system library and runs on the CPU or on a CUDA device.
Both read the live state of a `mujoco.batch.Batch` and its expanded (per-environment) model fields,
so colours, sizes, cameras and lights may differ from environment to environment. Neither draws
shadows, highlights, reflections, sky or (unless asked) textures: with them a 96 px frame takes 50
to 100 times as long on a CPU, and the two pictures would differ. Directional lights are shaded
alike by both; positional ones differ on large faces, which the classic renderer shades at their
corners.
"""

from __future__ import annotations

import ctypes.util
import functools
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    import mujoco
    from mujoco.batch import Batch

Backend = Literal["egl", "warp"]
Arrays = Mapping[str, np.ndarray]

POSE_FIELDS = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir")
"""Fields of `MjData` that say where everything is; a renderer needs nothing else of the physics."""

LOOK_FIELDS = (
    "geom_rgba",
    "geom_size",
    "geom_type",
    "geom_matid",
    "geom_group",
    "mat_rgba",
    "mat_emission",
    "mat_texid",
    "mat_texrepeat",
    "cam_fovy",
    "cam_sensorsize",
    "cam_intrinsic",
    "light_active",
    "light_type",
    "light_ambient",
    "light_diffuse",
    "light_attenuation",
    "light_cutoff",
    "light_exponent",
)
"""Fields of `MjModel` that change the picture when `Batch.expand` gave each environment its own
values."""

_NO_GL = {"disable", "disabled", "off", "false", "0"}

# Run in a process of its own: a broken driver may abort or hang. Prints "ok" or ends with what
# failed.
_PROBE = """
import ctypes
egl = ctypes.CDLL({library!r})
egl.eglGetProcAddress.restype = ctypes.c_void_p
P, I = ctypes.c_void_p, ctypes.c_int
def extension(name, result, *arguments):
    address = egl.eglGetProcAddress(name.encode())
    if not address:
        raise SystemExit(name + " is missing")
    return ctypes.CFUNCTYPE(result, *arguments)(address)
query = extension("eglQueryDevicesEXT", ctypes.c_uint, I, P, P)
display_of = extension("eglGetPlatformDisplayEXT", P, ctypes.c_uint, P, P)
egl.eglInitialize.argtypes = [P, P, P]
egl.eglChooseConfig.argtypes = [P, P, P, I, P]
egl.eglCreateContext.argtypes = [P, P, P, P]
egl.eglCreateContext.restype = P
devices, count = (P * 16)(), I()
query(16, devices, ctypes.byref(count))
wanted = (I * 7)(0x3033, 1, 0x3040, 8, 0x3025, 24, 0x3038)  # pbuffer surfaces, desktop OpenGL, 24 bits of depth
for device in devices[: count.value]:
    display = display_of(0x313F, device, None)
    if not display or not egl.eglInitialize(display, None, None):
        continue
    config, found = P(), I()
    egl.eglChooseConfig(display, wanted, ctypes.byref(config), 1, ctypes.byref(found))
    if found.value and egl.eglBindAPI(0x30A2) and egl.eglCreateContext(display, config, None, None):
        print("ok")
        break
else:
    raise SystemExit("no EGL device can create an OpenGL context")
"""


@functools.cache
def missing_egl() -> str | None:
    """None when an EGL context can be made on this machine, otherwise what is missing, in a few
    words."""
    library = ctypes.util.find_library("EGL") or "libEGL.so.1"
    environment = {**os.environ, "LP_NUM_THREADS": "0"}
    try:
        probe = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROBE.format(library=library)],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the EGL probe did not finish ({type(error).__name__})"
    if probe.returncode == 0 and probe.stdout.strip() == "ok":
        return None
    lines = probe.stderr.strip().splitlines()
    return lines[-1] if lines else f"the EGL probe ended with code {probe.returncode}"


def choose_backend(requested: str) -> Backend:
    """The back end to draw with, and `MUJOCO_GL` set to match; call it before `mujoco` is imported.

    `auto` takes EGL where a context can be made and the ray tracer elsewhere, with a warning that
    names the packages which bring EGL. `MUJOCO_GL=disable` in the environment makes `auto` take the
    ray tracer.

    Raises:
        ValueError: `requested` is not auto, egl or warp, or is egl on a machine without it.
    """
    if requested not in ("auto", "egl", "warp"):
        raise ValueError(f"sim.renderer ({requested!r}) must be one of auto, egl, warp")
    if requested == "warp" or (
        requested == "auto" and os.environ.get("MUJOCO_GL", "").lower() in _NO_GL
    ):
        os.environ.setdefault(
            "MUJOCO_GL", "disable" if requested == "auto" or missing_egl() else "egl"
        )
        return "warp"
    missing = missing_egl()
    if missing is None:
        os.environ["MUJOCO_GL"] = "egl"
        # Software rasteriser: worker threads of its own only add hand-overs at these image sizes.
        os.environ.setdefault("LP_NUM_THREADS", "0")
        return "egl"
    remedy = "on Debian or Ubuntu: apt-get install --no-install-recommends libegl1 libgl1"
    if requested == "egl":
        raise ValueError(
            f"sim.renderer (egl) needs EGL: {missing}; {remedy}, or set sim.renderer=auto"
        )
    os.environ["MUJOCO_GL"] = "disable"
    warnings.warn(
        f"no EGL ({missing}); drawing with the warp ray tracer, which compiles for some seconds the first time and is "
        f"slower. For EGL, {remedy}",
        stacklevel=2,
    )
    return "warp"


class Drawer(Protocol):
    """A back end: draws rows of poses and looks into images."""

    def draw(self, poses: Arrays, looks: Arrays, images: Arrays) -> None:
        """Fill `images[camera] [n, h, w, 3]` from `poses[field] [n, ...]` and the expanded
        `looks[field] [n, ...]`."""

    def close(self) -> None: ...


class Renderer:
    """Draws chosen environments of a batch through named cameras.

    The batch's derived fields are read as they stand: make the renderer before the first `reset` or
    `forward` (a field bound later reads zero until then), and step with
    `stage=mujoco.mjtStage.mjSTAGE_VEL` so that they describe the newest state.

    Args:
        model: the model the batch was made from.
        batch: the simulations.
        cameras: names of cameras in the model.
        image_size: height and width, pixels.
        backend: what `choose_backend` answered.
        num_threads: drawing threads, each with its own context; 0 for one a core, at most 2. A GPU needs only one.
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
                    f"sim.cameras names {camera!r}, but the scene has {', '.join(known) or 'no camera'}"
                )
        if image_size < 1:
            raise ValueError(f"sim.image_size ({image_size}) must be at least 1 pixel")
        self.cameras, self.image_size, self.backend = tuple(cameras), image_size, backend
        self._batch = batch
        self._poses = {field: batch.bind(field) for field in POSE_FIELDS}
        num_threads = num_threads or min(2, os.cpu_count() or 1)
        self._drawer: Drawer
        if backend == "egl":
            from sim.render_egl import EglDrawer

            self._drawer = EglDrawer(model, self.cameras, image_size, num_threads, textures)
        else:
            from sim.render_warp import WarpDrawer

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
