"""The parts of the model one by one: encoder, backbone, adapters, value head."""

import copy

import pytest
import torch
from torch import nn

from vla.models.backbone import ORDER_SCALES, small_llama
from vla.models.heads import ValueHead
from vla.models.lora import add_lora
from vla.models.vision import VisionEncoder, hub_vit, small_vit


class Recorder(nn.Module):
    """Stands in for a timm model and keeps what it was shown."""

    num_prefix_tokens = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward_features(self, pixels):
        self.seen = pixels
        return torch.arange(5.0).view(1, 5, 1).expand(len(pixels), 5, 3)


def test_pixels_are_scaled_to_one_and_other_tokens_are_dropped():
    model = Recorder()
    encoder = VisionEncoder(model, 2)
    images = torch.tensor([[[[0, 255, 51]] * 2] * 2], dtype=torch.uint8)
    features = encoder(images)
    # 0 -> -1, 255 -> 1, 51 -> 51 / 127.5 - 1 = -0.6, channels first
    torch.testing.assert_close(model.seen[0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))
    assert model.seen.shape == (1, 3, 2, 2)
    assert features[0, :, 0].tolist() == [2.0, 3.0, 4.0]
    assert (encoder.num_patches, encoder.width) == (3, 3)


def test_a_small_vit_has_a_patch_for_every_layer_of_the_stem_halved():
    encoder = small_vit(16, width=8, depth=1, num_heads=2, stem_channels=(4, 8))
    assert (encoder.num_patches, encoder.width) == (16, 8)
    with pytest.raises(
        ValueError, match=r"sim.image_size \(18\) must be a multiple of the patch size \(4\)"
    ):
        small_vit(18, width=8, depth=1, num_heads=2, stem_channels=(4, 8))


def test_any_timm_model_loses_its_class_token():
    encoder = hub_vit("test_vit", 32, pretrained=False)
    assert encoder.num_patches == (32 // encoder.model.patch_embed.patch_size[0]) ** 2


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return small_llama(vocabulary_size=48, width=256, depth=1, num_heads=2, intermediate=32)


def test_logits_of_part_of_the_vocabulary_are_a_slice(llama):
    hidden = torch.randn(2, 3, 256)
    whole = llama.logits(hidden)
    assert whole.shape == (2, 3, 48)
    torch.testing.assert_close(llama.logits(hidden, 40), whole[..., 40:])
    torch.testing.assert_close(llama.logits(hidden, 10, 20), whole[..., 10:20])
    # Tied: the head is the embedding, so logits by hand are dot products with it.
    torch.testing.assert_close(whole, hidden @ llama.word_embeddings.T, rtol=1e-4, atol=1e-4)


def test_keys_start_as_queries(llama):
    attention = llama.model.model.layers[0].self_attn
    assert torch.equal(attention.k_proj.weight, attention.q_proj.weight)
    assert attention.k_proj.weight is not attention.q_proj.weight


def test_ordered_ids_resemble_their_neighbours(llama):
    backbone = copy.deepcopy(llama)
    before = backbone.word_embeddings.detach().clone()
    torch.manual_seed(1)
    backbone.order_embeddings(first=16, count=32)
    rows = backbone.word_embeddings.detach()
    assert torch.equal(rows[:16], before[:16])
    assert rows[16:].std().item() == pytest.approx(before.std().item(), rel=0.3)
    likeness = torch.nn.functional.cosine_similarity(rows[16:, None], rows[None, 16:], dim=-1)
    # The kernel by hand: at a distance of 1/31 of the line, the mean of exp(-d^2 / 2 s^2) over s =
    # .02, .08, .3 is .73; ten ids apart it is .19, at the ends .001. Cosines of 256 numbers scatter
    # by 1/16.
    assert ORDER_SCALES == (0.02, 0.08, 0.3)
    for apart, expected in ((1, 0.729), (10, 0.188), (31, 0.001)):
        assert likeness.diagonal(apart).mean().item() == pytest.approx(expected, abs=0.15)


def test_ids_that_stand_for_others_resemble_those_with_which_they_share_a_place(llama):
    backbone = copy.deepcopy(llama)
    torch.manual_seed(1)
    backbone.order_embeddings(first=10, count=32)
    before = backbone.word_embeddings.detach().clone()
    backbone.compose_embeddings(first=10, count=32, parts=[[3, 30], [3, 16], [30, 3]])
    rows = backbone.word_embeddings.detach()
    assert torch.equal(rows[:42], before[:42])
    assert torch.equal(rows[45:], before[45:])
    assert rows[42:45].std().item() == pytest.approx(before[10:42].std().item(), rel=0.3)
    likeness = torch.nn.functional.cosine_similarity(rows[42:45, None], rows[None, 42:45], dim=-1)
    # One of two parts alike in the same place: half of the square of the norm. The same parts in
    # other places: nothing.
    assert likeness[0, 1].item() == pytest.approx(0.5, abs=0.2)
    assert likeness[0, 2].item() == pytest.approx(0.0, abs=0.2)


def test_adapters_change_nothing_until_they_learn(llama):
    plain = copy.deepcopy(llama)
    adapted = copy.deepcopy(llama)
    add_lora(adapted.model, rank=2, alpha=4.0)
    embeddings, attend = torch.randn(1, 4, 256), torch.ones(1, 4, 4, dtype=torch.bool).tril()
    positions = torch.arange(4)[None]
    torch.testing.assert_close(
        adapted(embeddings, attend, positions), plain(embeddings, attend, positions)
    )
    free = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert free
    assert all("lora_" in name for name in free)
    # q, k, v, o and the three of the MLP, two matrices each
    assert len(free) == 14
    # text models take the same layers, rank and scale, behind the wrapper that peft saves
    wrapped = add_lora(copy.deepcopy(llama).model, rank=2, alpha=4.0, wrap=True)
    inside = {name.removeprefix("base_model.model.") for name, _ in wrapped.named_parameters()}
    assert inside == {name for name, _ in adapted.model.named_parameters()}
    names = [name for name, _ in adapted.model.named_modules() if name.endswith("q_proj")]
    layer = adapted.model.get_submodule(names[0])
    assert layer.scaling == wrapped.base_model.model.get_submodule(names[0]).scaling


def test_the_value_head_starts_at_zero_and_keeps_to_itself():
    for detach in (True, False):
        torch.manual_seed(0)
        head = ValueHead(6, detach)
        hidden = torch.randn(3, 6, requires_grad=True)
        assert torch.equal(head(hidden), torch.zeros(3))
        nn.init.ones_(head.layers[-1].weight)
        head(hidden).sum().backward()
        assert head.layers[1].weight.grad.abs().sum() > 0
        assert (hidden.grad is None) == detach
