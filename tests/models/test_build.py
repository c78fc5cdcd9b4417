"""From settings to a model: what is built, from where, what is frozen, and what does not fit."""

import dataclasses

import pytest
import torch

from vla.build import build_vlm, checkpoint_folder, small_architecture
from vla.config import load
from vla.models.checkpoint import EMBEDDED, save_vlm, small_vlm
from vla.models.vocabulary import location_ids

SMALL = (
    "sim.image_size=8",
    "model.vision.width=12",
    "model.vision.depth=1",
    "model.vision.num_heads=2",
    "model.vision.stem_channels=[6,12]",
    "model.backbone.vocabulary_size=700",
    "model.backbone.width=16",
    "model.backbone.depth=1",
    "model.backbone.num_heads=2",
    "model.backbone.intermediate=24",
)
TEXTS = ["put the red cube on the blue disc", "is it there?"]


def settings(*overrides: str, checkpoint: str = "null"):
    return load([f"model.checkpoint={checkpoint}", *SMALL, *overrides])


def trainable(module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_a_tiny_model_and_its_tokenizer_from_nothing():
    config = settings()
    torch.manual_seed(0)
    model, tokenizer = build_vlm(config, 7, 8, TEXTS)
    assert (model.cameras, model.vision.image_size) == (("front", "wrist"), 8)
    assert model.backbone.vocabulary_size == len(tokenizer) == 700
    assert max(tokenizer.encode(TEXTS[0])) < location_ids(700).start
    # Location ids begin in order: neighbours resemble each other, words do not.
    rows = torch.nn.functional.normalize(model.backbone.word_embeddings.detach(), dim=1)
    places = rows[location_ids(700).start : location_ids(700).stop]
    assert (places[1:] * places[:-1]).sum(1).mean() > 0.7
    assert (rows[1:200] * rows[:199]).sum(1).mean().abs() < 0.2


@pytest.mark.parametrize(
    ("override", "still"),
    [
        ("model.freeze_vision=true", {"backbone.", "projector."}),
        ("model.freeze_backbone=true", {"vision.", "projector."}),
        ("model.lora={rank: 2, alpha: 4}", {"vision.", "projector.", "lora_"}),
    ],
)
def test_what_is_frozen(override, still):
    names = trainable(build_vlm(settings(override), 7, 8, TEXTS)[0])
    for part in ("vision.", "backbone.", "projector.", "lora_"):
        found = {n for n in names if (part in n if part == "lora_" else n.startswith(part))}
        assert bool({n for n in found if part != "backbone." or "lora_" not in n}) == (
            part in still
        ), part


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config, folder = settings(), tmp_path_factory.mktemp("checkpoint")
    _, tokenizer = build_vlm(config, 7, 8, TEXTS)
    architecture = small_architecture(config, 7, 8)
    torch.manual_seed(5)
    model = small_vlm(architecture)
    save_vlm(folder, model, architecture, tokenizer)
    return folder, model


def test_a_checkpoint_is_taken_as_it_is(checkpoint):
    folder, saved = checkpoint
    model, _ = build_vlm(settings(checkpoint=str(folder)), 7, 8, [])
    assert torch.equal(model.backbone.word_embeddings, saved.backbone.word_embeddings)
    assert checkpoint_folder("embedded") == EMBEDDED


@pytest.mark.parametrize(
    ("overrides", "proprio", "message"),
    [
        (
            ["sim.cameras=[front]"],
            7,
            r"made with cameras=\('front', 'wrist'\), the settings say \('front',\)",
        ),
        (
            ["sim.image_size=16"],
            7,
            "made with image_size=8, the settings say 16: use the checkpoint's, or pretrain",
        ),
        (["model.backbone.depth=2"], 7, "made with depth=1, the settings say 2"),
        ([], 6, "made with proprio_size=7, the settings say 6"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(checkpoint, overrides, proprio, message):
    with pytest.raises(ValueError, match=message):
        build_vlm(settings(*overrides, checkpoint=str(checkpoint[0])), proprio, 8, [])


def test_a_small_checkpoint_does_not_stand_for_a_hub_model(checkpoint):
    config = load(["model=hub", f"model.checkpoint={checkpoint[0]}"])
    with pytest.raises(
        ValueError, match=r"holds a small model.*model.checkpoint=null, or choose model=tiny"
    ):
        build_vlm(config, 7, 8, [])


def test_every_number_of_an_architecture_is_a_setting():
    architecture = small_architecture(settings(), 7, 8)
    assert dataclasses.asdict(architecture) | {
        "width": 16,
        "vision_width": 12,
        "vocabulary_size": 700,
    } == (dataclasses.asdict(architecture))
    assert small_architecture(load(["model=smollm2"]), 7, 8) is None
