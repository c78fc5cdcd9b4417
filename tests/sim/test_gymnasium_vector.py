"""Any gymnasium environment: a small one made here, MuJoCo's own, and Fetch and Meta-World where
they are installed."""

import importlib.util
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import sim
from sim.build_gymnasium import environment_factory
from sim.experts.gymnasium import GymnasiumExpert, build_act
from sim.gymnasium_vector import GymnasiumTask, GymnasiumVector, resize_to_square
from sim.rendering.backend import missing_egl

needs_drawing = pytest.mark.skipif(
    missing_egl() is not None, reason="no EGL: MuJoCo's environments cannot draw"
)


class Line(gymnasium.Env):
    """A point on a line that wants to be at 1; the picture is as bright as the point is far."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(
            {
                "place": spaces.Box(-9, 9, (1,)),
                "start": spaces.Box(-9, 9, (1,)),
                "extra": spaces.Box(0, 1, (2, 2)),
            }
        )
        self.action_space = spaces.Box(-0.5, 0.5, (1,))
        self.drawn = 0

    def _see(self):
        return {
            "place": np.array([self.at]),
            "start": np.array([self.began]),
            "extra": np.zeros((2, 2)),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.began = float(self.np_random.uniform(-0.5, 0))
        return self._see(), {}

    def step(self, action):
        self.at += float(action[0])
        return self._see(), -abs(1 - self.at), False, False, {"is_success": abs(1 - self.at) < 0.1}

    def render(self):
        self.drawn += 1
        return np.full((8, 12, 3), int(100 * abs(self.at)), np.uint8)


def line(**changes):
    task = {
        "name": "line",
        "instruction": "go to one",
        "success": ("is_success",),
        "success_return": None,
    }
    task |= {"proprio": (), "proprio_size": None}
    options = {
        "num_envs": 3,
        "cameras": ("view",),
        "image_size": 4,
        "max_steps": 8,
        "reward": {"success": 1.0},
    }
    options |= {"render_every_step": False}
    task |= {name: changes.pop(name) for name in list(changes) if name in task}
    return GymnasiumVector(
        make=lambda: Line("rgb_array"),
        task=GymnasiumTask(**task),
        **{**options, **changes},
    )


def test_what_it_shows():
    env = line()
    seen = env.reset([4, 5])
    assert seen.instruction == ["go to one"] * 2
    assert seen.proprio.shape == (2, 2)  # place and start; the matrix is no vector
    assert seen.images["view"].shape == (2, 4, 4, 3)
    assert (env.action_spec.size, env.action_spec.low, env.action_spec.control_hz) == (
        1,
        (-0.5,),
        10.0,
    )
    np.testing.assert_array_equal(env.reset([4], np.array([2])).proprio[0], seen.proprio[0])
    assert line(proprio=("start",)).proprio_size == 1
    assert line(proprio_size=1).proprio_size == 1
    with pytest.raises(
        ValueError, match="sim.proprio names 'speed', but the observation has extra, place, start"
    ):
        line(proprio=("speed",))


def test_it_draws_only_when_looked_at():
    env = line()
    env.reset(range(3), render=False)
    env.step(np.zeros((3, 4, 1)), render=False)
    assert [one.drawn for one in env.envs] == [0, 0, 0]
    env.step(np.zeros((2, 4, 1)), np.array([0, 2]))
    assert [one.drawn for one in env.envs] == [1, 0, 1]


def test_chunks_rewards_and_endings():
    env = line(reward={"environment": 0.5, "success": 2.0})
    start = env.reset([0, 1, 2]).proprio[:, 0].astype(float)
    actions = np.zeros((3, 4, 1))
    actions[0] = (1 - start[0]) / 3  # there in three steps of less than 0.5
    result = env.step(actions)
    assert result.num_steps.tolist() == [3, 4, 4]
    assert result.terminated.tolist() == result.success.tolist() == [True, False, False]
    gap = 1 - start[0]  # left after the steps: 2/3, 1/3 and 0 of the gap
    assert result.reward[0] == pytest.approx(2.0 - 0.5 * gap, abs=1e-5)
    assert result.reward[1] == pytest.approx(-0.5 * 4 * (1 - start[1]), abs=1e-5)
    assert result.metrics["return"][0] == pytest.approx(-gap, abs=1e-5)
    again = env.step(np.zeros((3, 4, 1)))
    assert again.num_steps.tolist() == [0, 4, 4]
    assert again.truncated.tolist() == [False, True, True]
    assert again.success.tolist() == [True, False, False]


def test_actions_are_clipped_to_their_limits():
    env = line()
    before = env.reset([0]).proprio[0, 0]
    after = env.step(np.full((1, 1, 1), 7.0), np.array([0])).observation.proprio[0]
    assert after[0] - before == pytest.approx(0.5, abs=1e-6)


def test_success_by_return_is_told_at_the_end():
    env = line(success=(), success_return=-10.0)
    start = env.reset([0, 1]).proprio[:, 0]
    assert not env.step(np.zeros((2, 4, 1)), np.arange(2)).success.any()
    result = env.step(np.zeros((2, 4, 1)), np.arange(2))
    np.testing.assert_array_equal(result.success, -8 * (1 - start) >= -10.0)
    assert result.truncated.all()


def test_every_step_can_be_filmed():
    env = line(render_every_step=True)
    env.reset([0, 1, 2])
    frames = env.step(np.full((3, 4, 1), 0.25)).frames["view"]
    assert frames.shape == (3, 4, 4, 4, 3)
    assert len(np.unique(frames[0, :, 2, 2, 0])) == 4  # the middle: above and below is padding


def test_pictures_become_small_squares_whole_and_padded():
    picture = np.arange(32, dtype=np.uint8).reshape(4, 8)[:, :, None].repeat(3, 2) * 5
    # Halved to 2 x 4: means of 2 x 2 squares; (0 + 1 + 8 + 9) / 4 * 5 = 22.5. Black above and
    # below.
    assert resize_to_square(picture, 4)[:, :, 0].tolist() == [
        [0] * 4,
        [23, 33, 43, 53],
        [103, 113, 123, 133],
        [0] * 4,
    ]
    np.testing.assert_array_equal(resize_to_square(picture[:, :4], 4), picture[:, :4])


@pytest.mark.parametrize(
    "shape", [(480, 640), (640, 480), (48, 128), (64, 64), (96, 96), (7, 31), (1, 9), (65, 64)]
)
@pytest.mark.parametrize("size", [64, 70, 1])
def test_environments_and_datasets_make_one_picture_square_alike(shape, size):
    from vla.data.image_fitting import fit_to_square

    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_to_square(picture, size), fit_to_square(picture, size))


def test_errors():
    env = line()
    env.reset(range(3))
    with pytest.raises(
        ValueError, match="chunk of actions \\(3\\) must divide sim.max_steps \\(8\\)"
    ):
        env.step(np.zeros((3, 3, 1)))
    with pytest.raises(ValueError, match="must be \\[3, H, 1\\]"):
        env.step(np.zeros((3, 2, 4)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        env.step(np.full((3, 2, 1), np.nan))
    with pytest.raises(ValueError, match="name one camera"):
        line(cameras=("left", "right"))
    with pytest.raises(
        ValueError, match="sim.id='Reachr-v5' is unknown; did you mean 'Reacher-v5'"
    ):
        sim.make_gymnasium("Reachr-v5", num_envs=1)
    with pytest.raises(ValueError, match="only bounded vectors"):
        sim.make_gymnasium("CartPole-v1", num_envs=1, cameras=())
    with pytest.raises(ValueError, match="sim.reward='sucess' is unknown; did you mean 'success'"):
        sim.make_gymnasium("Reacher-v5", num_envs=1, cameras=(), reward={"sucess": 1.0})
    with pytest.raises(
        ValueError, match="Reacher-v5\\) has no scripted expert: give demonstrations by data.path"
    ):
        build_act("Reacher-v5", {})


def test_pictures_are_drawn_in_the_size_that_is_wanted_where_that_can_be_said():
    class Sized(Line):
        def __init__(self, width=480, height=480, render_mode=None):
            super().__init__()
            self.size = width, height

    for name, kind in (("Line-v0", Line), ("Sized-v0", Sized)):
        gymnasium.register(name, kind)
    small = {"width": 32, "height": 32}
    try:
        assert environment_factory("Sized-v0", {}, small)().unwrapped.size == (32, 32)
        assert environment_factory("Sized-v0", {"width": 64}, small)().unwrapped.size == (
            64,
            32,
        )  # what is asked for stands
        assert isinstance(environment_factory("Line-v0", {}, small)().unwrapped, Line)
    finally:
        for name in ("Line-v0", "Sized-v0"):
            gymnasium.registry.pop(name)


@needs_drawing
def test_an_environment_of_mujocos():
    env = sim.make_gymnasium(
        "Reacher-v5", num_envs=2, max_steps=10, image_size=32, make={"width": 64, "height": 64}
    )
    first = env.reset([3, 4])
    assert first.images["view"].shape == (2, 32, 32, 3)
    assert first.images["view"].std() > 5
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 5, 2)).astype(np.float32)
    once = env.step(actions)
    np.testing.assert_array_equal(env.reset([3, 4]).images["view"], first.images["view"])
    twice = env.step(actions)
    np.testing.assert_array_equal(once.observation.proprio, twice.observation.proprio)
    np.testing.assert_array_equal(once.observation.images["view"], twice.observation.images["view"])
    env.close()


def run_expert(id, num_envs, max_steps, make):
    env = sim.make_gymnasium(id, num_envs=num_envs, cameras=(), max_steps=max_steps, make=make)
    first = env.reset(range(num_envs)).proprio
    np.testing.assert_array_equal(env.reset(range(num_envs)).proprio, first)
    assert len(np.unique(first.round(4), axis=0)) == num_envs
    expert = GymnasiumExpert(env, build_act(id, make))
    for _ in range(max_steps):
        result = env.step(expert.act()[:, None])
    env.close()
    return result.success.mean()


@pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is None,
    reason="gymnasium-robotics is not installed",
)
def test_fetch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that are not ours
        assert run_expert("FetchPickAndPlace-v4", 6, 50, {}) >= 0.8


@pytest.mark.skipif(
    importlib.util.find_spec("metaworld") is None, reason="metaworld is not installed"
)
def test_meta_world():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run_expert("Meta-World/MT1", 3, 120, {"env_name": "pick-place-v3"}) == 1.0


@pytest.mark.skipif(
    importlib.util.find_spec("metaworld") is not None, reason="metaworld is installed"
)
def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="needs metaworld: pip install --no-deps metaworld"):
        sim.make_gymnasium("Meta-World/MT1", num_envs=1)
