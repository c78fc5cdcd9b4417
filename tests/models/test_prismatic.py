"""OpenVLA's published files load, and compute what their own code does."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.models.tiny import PROPRIO_SIZE
from tests.models.tiny_openvla import MEANS, PIXELS, STDS, parts, write_openvla
from vla.models.pretrained_vlm import load_pretrained_vlm
from vla.models.vlm import VisionLanguageModel
from vla.types import Observation


def pictures(size: int = PIXELS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, size, size, 3), generator=generator).to(torch.uint8)


def reference_logits(images: torch.Tensor, ids: torch.Tensor, is_fused: bool) -> torch.Tensor:
    """The forward pass of modeling_prismatic.py: patches of the last block but one, side by side,
    projected, behind the first token."""
    towers, layers, language = parts(is_fused)
    unit = images.permute(0, 3, 1, 2) / 255
    found = []
    for tower, mean, std in zip(towers, MEANS, STDS, strict=False):
        scaled = (unit - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        found += tower.get_intermediate_layers(scaled, n=[len(tower.blocks) - 2])
    hidden = torch.cat(found, dim=2)
    for number, layer in enumerate(layers.values()):
        hidden = layer(functional.gelu(hidden) if number else hidden)
    words = language.get_input_embeddings()(ids)
    joined = torch.cat([words[:, :1], hidden, words[:, 1:]], dim=1)
    logits = language(inputs_embeds=joined).logits
    count = hidden.shape[1]
    return torch.cat([logits[:, :1], logits[:, 1 + count :]], dim=1)


@pytest.mark.parametrize("is_fused", [True, False])
@torch.no_grad()
def test_published_weights_give_the_logits_of_their_own_code(tmp_path, is_fused):
    write_openvla(tmp_path, is_fused)
    halves = load_pretrained_vlm(str(tmp_path), 16, torch.float32)
    model = VisionLanguageModel(*halves, ("front",), PROPRIO_SIZE).eval()
    ids = torch.randint(3, 700, (2, 9), generator=torch.Generator().manual_seed(1))
    slots = torch.tensor([-1 - place for place in model.slots["front"]]).expand(2, -1)
    tokens = torch.cat([ids[:, :1], slots, ids[:, 1:]], dim=1)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    model.vision.image_size = PIXELS
    images = pictures()
    seen = Observation({"front": images}, torch.zeros(2, PROPRIO_SIZE), tokens, mask)
    logits = model.backbone.logits(model(model.prefix(seen), tokens, mask)[0])[tokens >= 0]
    expected = reference_logits(images, ids, is_fused).flatten(0, 1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    other = reference_logits(images.flip(0), ids, is_fused).flatten(0, 1)
    assert (other - expected).abs().max() > 1e-2
