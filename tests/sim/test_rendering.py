"""Both back ends draw the same picture, of any environment, in any order; and a machine without EGL
still draws."""

import os
import warnings

import numpy as np
import pytest

from sim.rendering import backend as backends
from sim.rendering.renderer import Renderer

SIZE, NUM_ENVS = 48, 6
needs_egl = pytest.mark.skipif(
    backends.missing_egl() is not None, reason=f"no EGL: {backends.missing_egl()}"
)


@pytest.fixture(scope="module")
def simulation():
    """A box and a ball over a finite floor, seen by a fixed camera; every environment has its own
    colours and sizes."""
    backends.choose_backend("auto")
    import mujoco
    from mujoco.batch import Batch

    spec = mujoco.MjSpec()
    world = spec.worldbody
    world.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, dir=[-0.3, 0.2, -1.0], castshadow=False
    )
    world.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 0.1], rgba=[0.6, 0.5, 0.4, 1])
    world.add_camera(name="front", pos=[0.9, 0, 0.7], xyaxes=[0, 1, 0, -0.6, 0, 0.8], fovy=40)
    world.add_camera(name="top", pos=[0, 0, 1.2], fovy=45)
    shapes = {"box": mujoco.mjtGeom.mjGEOM_BOX, "ball": mujoco.mjtGeom.mjGEOM_SPHERE}
    for y, (name, shape) in zip((-0.15, 0.15), shapes.items(), strict=True):
        body = world.add_body(name=name, pos=[0, y, 0.1])
        body.add_freejoint()
        body.add_geom(name=name, type=shape, size=[0.08, 0.08, 0.08])
    model = spec.compile()
    batch = Batch(model, NUM_ENVS, 1)
    rng = np.random.default_rng(0)
    batch.expand("geom_rgba")[:, 1:, :3] = rng.uniform(0.1, 1.0, (NUM_ENVS, 2, 3))
    batch.expand("geom_size")[:, 1:] *= rng.uniform(0.6, 1.2, (NUM_ENVS, 2, 1))
    batch.bind("qpos").reshape(NUM_ENVS, 2, 7)[:, :, :2] += rng.uniform(-0.1, 0.1, (NUM_ENVS, 2, 2))
    return model, batch


def make(simulation, backend, cameras=("front", "top"), **options):
    model, batch = simulation
    renderer = Renderer(model, batch, cameras, SIZE, backend, num_threads=2, **options)
    batch.forward()
    return renderer


@pytest.fixture(scope="module")
def traced(simulation):
    renderer = make(simulation, "warp")
    yield renderer
    renderer.close()


@pytest.fixture(scope="module")
def drawn(simulation):
    renderer = make(simulation, "egl")
    yield renderer
    renderer.close()


@needs_egl
def test_backends_draw_the_same_picture(drawn, traced):
    for camera, image in drawn.render().items():
        difference = np.abs(image.astype(int) - traced.render()[camera])
        assert difference.mean() < 1.5, camera  # of 255; edges of the faceted ball and rounding
        assert (difference.max(axis=-1) > 20).mean() < 0.02, camera


def test_images_are_rgb_with_the_top_row_first(traced, simulation):
    """From above, with the camera's y axis up: the box (y < 0) lies in the lower half, the ball in
    the upper one."""
    _, batch = simulation
    rgba = batch.expand("geom_rgba")
    before = rgba.copy()
    rgba[:, 1], rgba[:, 2] = (1, 0, 0, 1), (0, 0, 1, 1)
    image = traced.render([0])["top"][0].astype(int)
    rgba[:] = before
    assert image.shape == (SIZE, SIZE, 3)
    red = (image[..., 0] > 80) & (image[..., 1] < 30)
    blue = (image[..., 2] > 80) & (image[..., 1] < 30)
    assert red.sum() > 20
    assert blue.sum() > 20
    assert np.argwhere(blue)[:, 0].max() < SIZE / 2 < np.argwhere(red)[:, 0].min()


@pytest.mark.parametrize("backend", [pytest.param("egl", marks=needs_egl), "warp"])
def test_every_environment_has_its_own_colours_and_sizes(backend, request):
    renderer = request.getfixturevalue({"egl": "drawn", "warp": "traced"}[backend])
    images = renderer.render()["front"].astype(int)
    for first in range(NUM_ENVS):
        for second in range(first):
            assert np.abs(images[first] - images[second]).mean() > 1.0


@pytest.mark.parametrize("backend", [pytest.param("egl", marks=needs_egl), "warp"])
def test_any_ids_in_any_order_draw_what_all_of_them_draw(backend, request):
    renderer = request.getfixturevalue({"egl": "drawn", "warp": "traced"}[backend])
    everything = renderer.render()
    some = renderer.render([4, 0, 3])
    for camera in ("front", "top"):
        np.testing.assert_array_equal(some[camera], everything[camera][[4, 0, 3]])
    assert renderer.render([])["front"].shape == (0, SIZE, SIZE, 3)


@pytest.mark.parametrize("backend", [pytest.param("egl", marks=needs_egl), "warp"])
def test_a_lens_of_its_own_zooms_one_environment(backend, simulation):
    model, _ = simulation
    from mujoco.batch import Batch

    batch = Batch(model, 2, 1)
    batch.expand("cam_fovy")[1] = 20.0
    renderer = make((model, batch), backend, ("top",))
    wide, narrow = renderer.render()["top"].astype(int)
    renderer.close()
    # The box's colour is grey (.5) on a brown floor (.6 .5 .4): a narrower lens shows more grey
    # pixels.
    grey = [(np.ptp(image, axis=-1) < 12).sum() for image in (wide, narrow)]
    assert grey[1] > 2 * grey[0] > 0


def test_unknown_camera_is_named(simulation):
    with pytest.raises(ValueError, match=r"'side'.*front, top"):
        make(simulation, "warp", ("side",))


def test_without_egl_auto_falls_back_with_the_remedy(monkeypatch):
    monkeypatch.setattr(
        backends, "missing_egl", lambda: "libEGL.so.1: cannot open shared object file"
    )
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.warns(UserWarning, match="libegl1 libgl1"):
        assert backends.choose_backend("auto") == "warp"
    assert os.environ["MUJOCO_GL"] == "disable"
    with pytest.raises(ValueError, match="libEGL.so.1.*sim.renderer=auto"):
        backends.choose_backend("egl")
    with pytest.raises(ValueError, match="auto, egl, warp"):
        backends.choose_backend("vulkan")


def test_a_machine_told_to_do_without_gl_is_not_warned(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.choose_backend("auto") == "warp"
    assert os.environ["MUJOCO_GL"] == "disable"


def test_the_probe_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(backends.ctypes.util, "find_library", lambda name: "libNoSuchEGL.so.1")
    assert "libNoSuchEGL.so.1" in (backends.missing_egl.__wrapped__() or "")


@needs_egl
def test_leaving_out_what_no_camera_sees_changes_no_pixel(monkeypatch):
    """Eighty shapes of every kind around a camera inside the heap: most are out of view, some are
    cut by its edge."""
    backends.choose_backend("egl")
    import mujoco
    from mujoco.batch import Batch

    from sim.rendering import egl_drawer

    rng = np.random.default_rng(1)
    spec = mujoco.MjSpec()
    spec.worldbody.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, dir=[-0.3, 0.2, -1.0], castshadow=False
    )
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 0.1], pos=[0, 0, -1])
    spec.worldbody.add_camera(name="inside", xyaxes=[0, 1, 0, -0.6, 0, 0.8], fovy=30)
    shapes = ("BOX", "SPHERE", "CAPSULE", "CYLINDER", "ELLIPSOID")
    for index in range(80):
        spec.worldbody.add_geom(
            type=getattr(mujoco.mjtGeom, f"mjGEOM_{shapes[index % 5]}"),
            size=rng.uniform(0.02, 0.15, 3),
            pos=rng.uniform(-1, 1, 3),
            quat=rng.normal(size=4),
            rgba=[*rng.random(3), 1],
        )
    model = spec.compile()
    batch = Batch(model, 2, 1)
    batch.expand("geom_size")[1, 1:] *= 1.5  # beyond the radius that the compiler worked out
    batch.expand("cam_fovy")[1] = 20.0
    counts = []

    def counted(*arguments):
        seen = geoms_in_view(*arguments)
        counts.append(seen.sum(axis=-1))
        return seen

    geoms_in_view = egl_drawer.geoms_in_view
    monkeypatch.setattr(egl_drawer, "geoms_in_view", counted)
    renderer = make((model, batch), "egl", ("inside",))
    some = renderer.render()["inside"]
    monkeypatch.setattr(
        egl_drawer, "geoms_in_view", lambda model, *_: np.ones((2, 1, model.ngeom), bool)
    )
    everything = renderer.render()["inside"]
    renderer.close()
    np.testing.assert_array_equal(some, everything)
    assert (counts[0] < 40).all()
    assert (counts[0] > 3).all()
