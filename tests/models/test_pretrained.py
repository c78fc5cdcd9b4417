"""A model as a folder: it reads back as it was, and says what is wrong when it does not."""

import json

import pytest
import torch

from tests.models.tiny import tiny_architecture, tiny_observation
from vla.data.tokenizer import train_tokenizer
from vla.models.checkpoint import load_vlm, num_parameters, save_vlm, small_vlm


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    architecture = tiny_architecture(vocabulary_size=448)
    torch.manual_seed(0)
    model = small_vlm(architecture)
    model.fit_proprio(torch.randn(9, 3))
    folder = tmp_path_factory.mktemp("vlm")
    save_vlm(folder, model, architecture, train_tokenizer(["put it there"], 448))
    return folder, model, architecture


@pytest.fixture
def folder(saved, tmp_path):
    for file in saved[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_it_reads_back_as_it_was(saved):
    folder, model, architecture = saved
    loaded, found, tokenizer = load_vlm(folder)
    assert found == architecture
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    observation = tiny_observation([3])
    assert torch.equal(loaded.prefix(observation), model.prefix(observation))
    assert tokenizer.decode(tokenizer.encode("put it there")) == "put it there"
    assert tokenizer.bos_token_id != tokenizer.eos_token_id
    assert sorted(f.name for f in folder.iterdir() if f.suffix == ".partial") == []


def test_parameters_are_counted_once():
    layer = torch.nn.Linear(3, 4)
    assert num_parameters(layer) == 3 * 4 + 4
    assert num_parameters(torch.nn.ModuleList([layer, layer])) == 16


@pytest.mark.parametrize("name", ["architecture.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing; make one with vla-pretrain"):
        load_vlm(folder)


def cut(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def widen(folder):
    values = json.loads((folder / "architecture.json").read_text())
    (folder / "architecture.json").write_text(json.dumps({**values, "width": 32}))


def scribble(folder):
    (folder / "architecture.json").write_text('{"cameras": [')


def rename(folder):
    values = json.loads((folder / "architecture.json").read_text())
    (folder / "architecture.json").write_text(json.dumps({**values, "depths": 3}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "model.safetensors cannot be read: .*not fully covered; make one with"),
        (
            widen,
            r"model.safetensors cannot be read: the tensor .* has the shape \[2, 16\], the model "
            r"expects \[2, 32\]",
        ),
        (scribble, "architecture.json cannot be read"),
        (rename, "architecture.json cannot be read.*depths"),
    ],
)
def test_a_broken_file_is_named(folder, harm, message):
    harm(folder)
    with pytest.raises(ValueError, match=message):
        load_vlm(folder)
