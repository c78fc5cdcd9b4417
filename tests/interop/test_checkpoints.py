"""LeRobot's own policies in our evaluation decide what they decide in LeRobot's, whoever shares the
batch."""

import json
import re
from itertools import count

import numpy as np
import pytest
import torch

import vla.runtime
from tests.interop.tiny_checkpoints import CHUNK, SIZE, make_checkpoint
from vla.commands import evaluate
from vla.config import load
from vla.interop.lerobot.checkpoints import lerobot_folder, open_policy, read_checkpoint_spec
from vla.interop.lerobot.episode_tracking import EpisodeTrackingEnvironment
from vla.rl.rollout import collect_rollout
from vla.simulator import make_simulator

pytestmark = pytest.mark.filterwarnings("ignore")  # LeRobot's own
SIM = [
    f"sim.image_size={SIZE}",
    "sim.max_steps=12",
    "sim.robot=gantry",
    "sim.num_envs=2",
    "sim.num_threads=1",
]
SEEDS = [2_000_000, 2_000_001, 2_000_002]


@pytest.fixture(scope="module", params=["act", "diffusion"])
def checkpoint(request, tmp_path_factory):
    return make_checkpoint(
        request.param, tmp_path_factory.mktemp(request.param) / "pretrained_model"
    )


def as_lerobot_does(folder, seed: int) -> np.ndarray:
    """The actions of one episode, asked for one by one with a policy that knows nothing of other
    rows."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    before, after = make_pre_post_processors(config, pretrained_path=str(folder))
    env = make_simulator(load([*SIM, "sim.num_envs=1"]).sim).environment()
    seen, ended, actions = env.reset([seed]), False, []
    while not ended:
        images = {
            f"observation.images.{n}": torch.from_numpy(i).movedim(-1, 1) / 255
            for n, i in seen.images.items()
        }
        batch = {
            **images,
            "observation.state": torch.from_numpy(seen.proprio),
            "task": seen.instruction,
        }
        with torch.no_grad():
            actions.append(after(policy.select_action(before(batch))).numpy())
        result = env.step(actions[-1][:, None])
        seen, ended = result.observation, bool(result.terminated[0] or result.truncated[0])
    return np.concatenate(actions)


def ours(folder, seeds: list[int]) -> list[np.ndarray]:
    """The actions of every episode in a rollout whose two places are refilled."""
    policy, observer = open_policy(folder, max_steps=12, device="cpu")
    environment = EpisodeTrackingEnvironment(make_simulator(load(SIM).sim).environment(), count())
    rollout = collect_rollout(policy, environment, seeds, 1, observer)
    return [
        rollout.action[rollout.trajectory == i].flatten(0, 1).numpy() for i in range(len(seeds))
    ]


def test_one_episode_is_the_one_that_lerobot_would_run(checkpoint):
    torch.manual_seed(3)
    expected = as_lerobot_does(checkpoint, SEEDS[0])
    torch.manual_seed(3)
    (actions,) = ours(checkpoint, SEEDS[:1])
    assert len(expected) == 12
    assert np.ptp(expected, axis=0).max() > 1e-3, "a policy that never moves proves nothing"
    np.testing.assert_allclose(actions, expected, atol=1e-5)


def test_rows_that_begin_later_remember_only_their_own(tmp_path):
    folder = make_checkpoint("act", tmp_path / "act")
    together = ours(folder, SEEDS)
    for seed, actions in zip(SEEDS, together, strict=True):
        np.testing.assert_allclose(actions, ours(folder, [seed])[0], atol=1e-4)


def test_a_policy_that_remembers_sees_every_control_step(checkpoint):
    policy, _ = open_policy(checkpoint, max_steps=12, device="cpu")
    assert policy.block == (CHUNK if read_checkpoint_spec(checkpoint).kind == "act" else 1)


def test_the_command_judges_it_and_writes_the_same_files(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(vla.runtime, "prepare", lambda *arguments, **settings: None)
    few = [
        *SIM,
        "evaluation.num_starts=3",
        "--perturb",
        "none",
        "--videos",
        "1",
        "--output",
        str(tmp_path / "out"),
    ]
    assert evaluate.main([str(checkpoint), *few]) == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    (row,) = result["conditions"]
    assert row["decoding"] == (
        "greedy" if read_checkpoint_spec(checkpoint).kind == "act" else "sampled"
    )
    assert row["n"] == 3
    assert (tmp_path / "out" / "evaluation.html").exists()
    assert list((tmp_path / "out" / "videos").glob("*.mp4"))
    assert "as trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("action", [6], "action: the policy decides 6 numbers"),
        (
            "observation.state",
            [9],
            "observation.state: the policy wants 9 numbers, the simulation has 7",
        ),
    ],
)
def test_a_checkpoint_for_another_robot_is_refused(tmp_path, name, shape, message):
    folder = make_checkpoint("act", tmp_path / "act")
    values = json.loads((folder / "config.json").read_text())
    part = "output_features" if name == "action" else "input_features"
    values[part][name]["shape"] = shape
    (folder / "config.json").write_text(json.dumps(values))
    world = make_simulator(load(SIM).sim)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_checkpoint_spec(folder).check(world.action_spec, world.proprio_size)


def test_a_folder_of_a_training_is_found_and_ours_is_not_taken_for_it(tmp_path):
    inside = tmp_path / "out" / "checkpoints" / "last" / "pretrained_model"
    inside.mkdir(parents=True)
    (inside / "config.json").write_text(json.dumps({"type": "act", "input_features": {}}))
    assert lerobot_folder(tmp_path / "out") == inside
    (inside / "policy.json").write_text("{}")
    assert lerobot_folder(tmp_path / "out") is None
