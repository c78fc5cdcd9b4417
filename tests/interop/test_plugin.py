"""LeRobot's own commands know our policies and environments: by their discovery, their factories
and their loops."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import sim
from sim.experts import Expert
from tests.test_pipeline import TINY
from vla.data.collection import collect, dataset_spec
from vla.data.lerobot_writer import LeRobotWriter
from vla.evaluation.checkpoint_settings import checkpoint_settings
from vla.interop.hub.lerobot_files import lerobot_files
from vla.interop.hub.pretrained import local_folder
from vla.pipelines.robot.policy import load_policy

pytestmark = pytest.mark.filterwarnings("ignore")  # LeRobot's own
PLUGIN = Path(__file__).parents[2] / "scripts" / "lerobot_plugin"
SETTINGS = " ".join(word for word in TINY if not word.startswith("sim.reward"))
SETTINGS += " policy.instruction_length=32"  # words that no demonstration says are spelt


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory):
    """The plugin as if installed: its code and the metadata that an installer would write."""
    about = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    written = site / f"{about['name']}-{about['version']}.dist-info"
    written.mkdir()
    (written / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {about['name']}\nVersion: {about['version']}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PLUGIN))
        patch.syspath_prepend(str(site))
        from lerobot.utils.import_utils import register_third_party_plugins

        register_third_party_plugins()
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations") / "reach"
    env = sim.make_vector(
        task="reach", robot="gantry", num_envs=2, image_size=32, max_steps=40, num_threads=1
    )
    writer = LeRobotWriter(
        folder, dataset_spec(env, "gantry", "video", {"task": "reach", "seed": 0})
    )
    collect(
        env,
        Expert(env, seed=0, expert_perturbation_probability=0.0),
        writer,
        num_episodes=2,
        first_seed=0,
    )
    writer.finish()
    env.close()
    return folder


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """(policy after some steps as lerobot-train makes them, its losses, the folder LeRobot saved it
    in)."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.datasets.factory import resolve_delta_timestamps
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.factory import make_policy, make_pre_post_processors
    from lerobot.utils.collate import lerobot_collate_fn

    torch.manual_seed(0)
    config = PreTrainedConfig.get_choice_class("vla")(settings=SETTINGS, device="cpu")
    meta = LeRobotDataset("local/reach", root=dataset, video_backend="pyav").meta
    chunks = resolve_delta_timestamps(config, meta)
    rows = LeRobotDataset(
        "local/reach", root=dataset, delta_timestamps=chunks, video_backend="pyav"
    )
    policy = make_policy(config, ds_meta=meta)
    before, after = make_pre_post_processors(config, dataset_stats=meta.stats)
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    batch = before(lerobot_collate_fn([rows[i] for i in range(8)]))
    losses = []
    for _ in range(12):
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    folder = tmp_path_factory.mktemp("saved") / "pretrained_model"
    policy.save_pretrained(folder)
    before.save_pretrained(folder)
    after.save_pretrained(folder)
    return policy, losses, folder


def test_lerobot_finds_the_policy_and_the_environment():
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.envs.configs import EnvConfig

    assert "lerobot_policy_vla" in sys.modules
    assert (
        PreTrainedConfig.get_choice_class("vla").__module__
        == "vla.interop.lerobot.configuration_vla"
    )
    assert EnvConfig.get_choice_class("vla").__name__ == "VlaEnv"


def test_a_policy_of_ours_learns_in_lerobots_loop(trained):
    _, losses, _ = trained
    assert losses[-1] < 0.8 * losses[0]


def test_what_lerobot_saved_acts_alike_there_and_in_our_own_commands(trained, dataset):
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class

    from vla.simulator import make_simulator

    policy, _, folder = trained
    env = sim.make_vector(
        task="reach", robot="gantry", num_envs=2, image_size=32, max_steps=16, num_threads=1
    )
    seen = env.reset([2_000_000, 2_000_001])
    images = {
        f"observation.images.{n}": torch.from_numpy(i).movedim(-1, 1) / 255
        for n, i in seen.images.items()
    }
    batch = {
        **images,
        "observation.state": torch.from_numpy(seen.proprio),
        "task": seen.instruction,
    }
    expected = policy.eval().predict_action_chunk(batch)
    config = PreTrainedConfig.from_pretrained(folder)
    again = get_policy_class(config.type).from_pretrained(folder, config=config)
    np.testing.assert_allclose(again.predict_action_chunk(batch), expected, atol=1e-6)
    # One action at a time is the same chunk.
    again.reset()
    first = torch.stack([again.select_action(batch) for _ in range(policy.policy.chunk)], dim=1)
    np.testing.assert_allclose(first, expected, atol=1e-6)
    own = checkpoint_settings(folder, ["sim.num_envs=2"])
    assert own.data.path == str(dataset)
    loaded, observe = load_policy(folder, own, make_simulator(own.sim))
    np.testing.assert_allclose(loaded.act(observe(seen), greedy=True).action, expected, atol=1e-6)
    env.close()


def test_the_output_folder_of_a_training_stands_for_what_it_saved_last(tmp_path):
    saved = tmp_path / "train" / "checkpoints" / "last" / "pretrained_model"
    saved.mkdir(parents=True)
    assert local_folder(str(tmp_path / "train")) == tmp_path / "train"
    (saved / "policy.json").write_text("{}")
    assert local_folder(str(tmp_path / "train")) == saved


def test_lerobots_evaluation_runs_it_in_our_simulation(trained):
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.envs import make_env, make_env_config, make_env_pre_post_processors
    from lerobot.policies.factory import make_policy, make_pre_post_processors
    from lerobot.scripts.lerobot_eval import rollout

    config = PreTrainedConfig.from_pretrained(trained[2])
    config.pretrained_path = trained[2]
    env_config = make_env_config("vla", task="reach", robot="gantry", image_size=32, max_steps=8)
    (env,) = make_env(env_config, n_envs=2)["vla"].values()
    policy = make_policy(config, env_cfg=env_config)
    pipelines = make_env_pre_post_processors(env_config, config)
    found = rollout(
        env,
        policy,
        *pipelines,
        *make_pre_post_processors(config, pretrained_path=trained[2]),
        seeds=[0, 1],
    )
    assert found["action"].shape == (2, 8, 7)
    # Seed 1 is the first held-out start but one, and LeRobot's loop drove it as ours would.
    vector = sim.make_vector(
        task="reach", robot="gantry", num_envs=1, image_size=32, max_steps=8, num_threads=1
    )
    seen = vector.reset([2_000_001])
    chunk = policy.policy.act(policy.bundle.observer(seen), greedy=True).action[0].numpy()
    np.testing.assert_allclose(found["action"][1, : len(chunk)], chunk, atol=1e-6)
    env.close()
    vector.close()


def test_another_robots_shapes_are_refused_by_name(trained):
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class

    config = PreTrainedConfig.from_pretrained(trained[2])
    config.output_features["action"] = PolicyFeature(FeatureType.ACTION, (6,))
    with pytest.raises(ValueError, match=r"action is \[6\], the policy was made for \[7\]"):
        get_policy_class("vla").from_pretrained(trained[2], config=config)


def test_what_an_export_writes_is_what_lerobot_would_write(trained):
    policy, _, folder = trained
    files = lerobot_files(policy.bundle.policy_spec, 7, 1)
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        assert json.loads(files[name]) == json.loads((folder / name).read_text()), name
    ours, theirs = (
        json.loads(files["config.json"]),
        json.loads((folder / "config.json").read_text()),
    )
    shared = ("type", "input_features", "output_features", "device", "chunk")
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
