"""A text run starts from a finished run, an adapter, an export or a folder of transformers."""

import json

import pytest
from safetensors.torch import load_file

from tests.text.test_best_weights import TINY
from vla.config import ConfigError, load
from vla.interop.hub.text_model import export_language_model
from vla.pipelines.text.run import run_in_folder
from vla.training.run_folder import open_run

NOT_TINY = [one for one in TINY if not one.startswith("language_model.")]
NOT_TINY += ["rl.num_iterations=1"]
NOT_TINY.append("language_model.gradient_checkpointing=false")
LORA = "language_model.lora={rank: 2, alpha: 4}"


def go(folder, *settings):
    config = load([*settings, f"run_dir={folder}"])
    run_in_folder(config, open_run(config))
    return folder


def test_a_run_an_adapter_and_exports_are_starts(tmp_path):
    whole = go(tmp_path / "whole", *TINY, "rl.num_iterations=1")
    adapter = go(tmp_path / "adapter", *NOT_TINY, f"language_model.path={whole}", LORA)
    assert json.loads((adapter / "model" / "base.json").read_text())["name"] == "model"
    start = json.loads((adapter / "start.json").read_text())
    assert str(tmp_path) not in json.dumps(start)

    # Another adapter on the first one, of another mode.
    other = go(
        tmp_path / "other",
        "mode=text",
        "preset=smoke",
        "text=rejection",
        "train.tensorboard=false",
        "language_model.gradient_checkpointing=false",
        f"language_model.path={adapter}",
        "language_model.lora={rank: 3, alpha: 4}",
    )
    assert (other / "model" / "adapter_model.safetensors").exists()

    plain, merged = tmp_path / "plain", tmp_path / "merged"
    export_language_model(adapter, plain, merge=False)
    assert str(tmp_path) not in (plain / "adapter_config.json").read_text()
    export_language_model(adapter, merged, merge=True)
    assert not (merged / "adapter_config.json").exists()
    before, after = (load_file(f / "model.safetensors") for f in (whole / "model", merged))
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    with pytest.raises(ConfigError, match=r"give its folder by language_model.repository=FOLDER"):
        load([*NOT_TINY, f"language_model.path={plain}"])
    given = f"language_model.repository={whole / 'model'}"
    config = load([*NOT_TINY, f"language_model.path={plain}", given])
    assert config.language_model.path == str(plain)
    assert load([*NOT_TINY, f"language_model.path={merged}"]).language_model.repository == str(
        merged
    )


def test_what_is_no_start_and_no_run_is_named(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    file, empty, data = model / "config.json", tmp_path / "empty", tmp_path / "data"
    empty.mkdir()
    (data / "meta").mkdir(parents=True)
    (data / "meta" / "info.json").write_text("{}")
    policy = tmp_path / "act"
    policy.mkdir()
    (policy / "config.json").write_text('{"type": "act", "input_features": {}}')
    robot = tmp_path / "robot"
    robot.mkdir()
    (robot / "config.yaml").write_text("mode: robot\n")
    for folder, what in (
        (file, f"a file: give the folder that it is in \\({model}\\)"),
        (empty, "an empty folder: give the folder of a run or a model"),
        (data, "a dataset of LeRobot: data.path="),
        (policy, "a checkpoint of LeRobot: policy.path="),
    ):
        with pytest.raises(ConfigError, match=f"is no run, it is {what}"):
            load([f"resume={folder}"])
        with pytest.raises(ConfigError, match=f"is {what.split(':')[0]}, which holds no"):
            load(["mode=text", f"language_model.path={folder}"])
    with pytest.raises(ConfigError, match=r"a model of transformers .llama.: mode=text language"):
        load([f"resume={model}"])
    with pytest.raises(ConfigError, match=r"is a run of mode=robot, .*: policy.path="):
        load(["mode=text", f"language_model.path={robot}"])
    with pytest.raises(ConfigError, match="starts a text run: add mode=text"):
        load([f"language_model.path={model}"])
    with pytest.raises(ConfigError, match="language_model=tiny contradicts language_model.path"):
        load(["mode=text", "language_model=tiny", f"language_model.path={model}"])
    with pytest.raises(ConfigError, match=r"repository=x/y contradicts .* a whole model"):
        load(["mode=text", "language_model.repository=x/y", f"language_model.path={model}"])
    with pytest.raises(ConfigError, match="neither a folder nor user/name"):
        load(["mode=text", "language_model.path=./nowhere"])
