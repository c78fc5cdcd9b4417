"""The choice between the two back ends, made before MuJoCo is imported."""

from __future__ import annotations

import ctypes.util
import functools
import os
import subprocess
import sys
import warnings
from typing import Literal

Backend = Literal["egl", "warp"]

NO_GL = {"disable", "disabled", "off", "false", "0"}

# Run in a process of its own, since a broken driver may abort or hang. It prints "ok", or ends with
# the step that failed.
PROBE = """
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
# Pbuffer surfaces, desktop OpenGL, 24 bits of depth.
wanted = (I * 7)(0x3033, 1, 0x3040, 8, 0x3025, 24, 0x3038)
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
    """None where an EGL context can be made on this machine, else a few words on the obstacle."""
    library = ctypes.util.find_library("EGL") or "libEGL.so.1"
    environment = {**os.environ, "LP_NUM_THREADS": "0"}
    try:
        probe = subprocess.run(
            [sys.executable, "-I", "-S", "-c", PROBE.format(library=library)],
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
    """The back end for the setting `requested`; call it before `mujoco` is imported.

    It sets the environment variable MUJOCO_GL to match. `auto` takes EGL where a context can be
    made. Elsewhere it takes the ray tracer, with a warning that names the packages of EGL.
    MUJOCO_GL=disable makes `auto` take the ray tracer without a warning.

    Raises:
        ValueError: `requested` is not auto, egl or warp, or is egl on a machine without it.
    """
    if requested not in ("auto", "egl", "warp"):
        raise ValueError(f"sim.renderer ({requested!r}) must be one of auto, egl, warp")
    if requested == "warp" or (
        requested == "auto" and os.environ.get("MUJOCO_GL", "").lower() in NO_GL
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
        f"no EGL ({missing}); drawing with the warp ray tracer, which compiles for some seconds "
        "the first time and is "
        f"slower. For EGL, {remedy}",
        stacklevel=2,
    )
    return "warp"
