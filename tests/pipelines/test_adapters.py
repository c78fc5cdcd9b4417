"""A run that trains adapters on a pretrained model: its checkpoints and exports are adapters, which
name their base; one model comes from --merge. The model is a SmolVLM of the real class."""

import json
import shutil

import numpy as np
import pytest

import vla
import vla.runtime
from tests.interop.test_evaluate_checkpoint import FEW
from tests.models.tiny_smolvlm import write_smolvlm
from vla.commands import export, train
from vla.files.arrays import read_safetensors
from vla.training.checkpoint import last_checkpoint
from vla.training.state_files import tensor_bytes

VLM = [
    "preset=smoke",
    "model=vlm",
    "model.lora.rank=8",
    "policy=regression",
    "sim.robot=gantry",
    "sim.num_envs=2",
    "sim.image_size=16",
    "sim.num_threads=1",
    "train.num_threads=1",
    "rl.target_success=null",
    "rl.num_start_states=2",
    *FEW,
    "evaluation.num_videos=0",
    "grounding.num_steps=0",
    "policy.instruction_length=48",
    "data.num_question_scenes=4",
]


@pytest.fixture(scope="module", autouse=True)
def prepared():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vla.runtime, "prepare", lambda *arguments, **settings: None)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_smolvlm(tmp_path_factory.mktemp("models") / "tiny-smolvlm")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "adapted"
    assert train.main([*VLM, f"model.backbone.repository={base}", f"run_dir={folder}"]) == 0
    return folder


def act(folder) -> np.ndarray:
    loaded = vla.load_policy(folder)
    images = {
        camera: np.full((*size, 3), 90, np.uint8) for camera, size in loaded.image_size.items()
    }
    state = np.zeros(len(loaded.state_names), np.float32)
    return loaded.act_chunk(images, state, "pick up the red cube")


def test_a_checkpoint_holds_what_was_trained(run):
    """Beside it are the rows of the reserved ids, 384 of the vocabulary's 900."""
    last = last_checkpoint(run / "checkpoints" / "rl")
    best = read_safetensors(last / "best.safetensors")
    assert any("lora_" in name for name in best)
    frozen = [
        n for n in best if n.startswith(("model.vision", "model.backbone")) and "lora" not in n
    ]
    assert not frozen
    for stage in ("sft", "rl"):
        weights = last_checkpoint(run / "checkpoints" / stage) / "policy.safetensors"
        assert tensor_bytes(read_safetensors(weights)) < 1.2 * tensor_bytes(best), stage


def test_an_export_is_adapters_that_name_their_base(run, base, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "exported"
    assert export.main([str(run), str(folder)]) == 0
    spec = json.loads((folder / "policy.json").read_text())
    assert spec["base"]["name"] == base.name
    for file in folder.rglob("*"):
        if file.is_file():
            assert str(base.parent).encode() not in file.read_bytes(), file.name
    with pytest.raises(ValueError, match="give its folder by model.backbone.repository=FOLDER or"):
        vla.load_policy(folder)
    monkeypatch.setenv("VLA_BASE_MODELS", str(base))
    assert np.array_equal(act(folder), act(run))


def test_a_merged_export_is_one_model(run, base, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "merged"
    assert export.main([str(run), str(folder), "--merge"]) == 0
    expected = act(run)
    names = read_safetensors(folder / "model.safetensors")
    assert not any("lora_" in name for name in names)
    hidden = base.with_name("moved")
    shutil.move(base, hidden)
    try:
        np.testing.assert_allclose(act(folder), expected, atol=1e-4)
    finally:
        shutil.move(hidden, base)
