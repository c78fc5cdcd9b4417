"""timm models see pixels as they were trained to; what cannot see here is refused by name before it
is loaded."""

import pytest
import torch
from transformers import LlamaConfig, SiglipVisionConfig

from vla.build import check_model
from vla.config import load
from vla.models.vision import (
    HALF,
    VisionEncoder,
    check_tower,
    hub_vit,
    small_vit,
    timm_arguments,
    timm_config,
)

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pictures(size=64):
    return torch.randint(
        0, 256, (2, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize(
    ("name", "scale", "tokens"),
    [
        ("resnet10t", IMAGENET, 4),
        ("mobilenetv3_small_050", IMAGENET, 4),
        ("test_vit", (HALF, HALF), 16),
        ("test_convnext", (HALF, HALF), 4),
    ],
)
def test_every_model_has_its_own_mean_and_standard_deviation(name, scale, tokens):
    encoder = hub_vit(name, 64, pretrained=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in scale)
    seen = []
    encoder.model.forward_features = lambda pixels: seen.append(pixels) or pixels.new_zeros(2, 5, 7)
    encoder(pictures())
    torch.testing.assert_close(seen[0], (pictures().permute(0, 3, 1, 2) / 255 - mean) / std)
    assert encoder.num_patches == tokens


def test_our_own_model_sees_pixels_from_minus_1_to_1_to_the_bit():
    encoder = small_vit(16, 8, 1, 2, (4, 8, 8))
    signed = (
        pictures(16)
        .permute(0, 3, 1, 2)
        .float()
        .div(127.5)
        .sub(1.0)
        .contiguous(memory_format=torch.channels_last)
    )
    assert torch.equal(encoder(pictures(16)), encoder.model.forward_features(signed))
    assert not [name for name in encoder.state_dict() if "pixel" in name]


def test_pictures_are_enlarged_to_whole_patches():
    name = "vit_small_patch14_dinov2.lvd142m"
    config = timm_config(name, pretrained=True)
    assert (config.mean, config.std) == IMAGENET
    assert timm_arguments(name, config, 64) == ({"img_size": 70}, 70)
    assert timm_arguments("resnet10t", timm_config("resnet10t", False), 64) == ({}, 64)


def test_maps_are_read_row_by_row():
    class Map(torch.nn.Conv2d):
        output_fmt = "NCHW"

        def forward_features(self, pixels):
            found = self(pixels)
            return found if self.output_fmt == "NCHW" else found.permute(0, 2, 3, 1)

    one, other = Map(3, 5, 4, stride=4), Map(3, 5, 4, stride=4)
    other.load_state_dict(one.state_dict())
    other.output_fmt = "NHWC"
    rows = VisionEncoder(one, 8)(pictures(8))
    torch.testing.assert_close(rows, VisionEncoder(other, 8)(pictures(8)))
    half = pictures(8).clone()
    half[:, :, 4:] = 0  # the right half: cells 1 and 3 of 2 x 2
    changed = (VisionEncoder(one, 8)(half) - rows).abs().amax((0, 2)) > 1e-4
    assert changed.tolist() == [False, True, False, True]


def test_a_pictures_features_do_not_depend_on_the_others():
    encoder = hub_vit("test_resnet", 64, pretrained=False).train()
    torch.testing.assert_close(
        encoder(pictures())[:1], encoder(pictures()[:1]), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet20", r"resnet20 is no model of timm; did you mean resnet20\w*\?"),
        ("vit_small_patch14_dinov2.lvd143m", "did you mean vit_small_patch14_dinov2.lvd142m"),
        ("timm/resnet18.a1_in1k", "model.vision.repository: .*hf-hub:timm/resnet18.a1_in1k"),
        (
            "pit_ti_224",
            "makes 1 tokens of 64 x 64 pixels .sim.image_size., which are no grid of places",
        ),
        ("coat_tiny", "coat_tiny cannot take 64 x 64 pixels"),
        ("inception_v3", "inception_v3 cannot take 64 x 64 pixels"),
    ],
)
def test_what_cannot_see_here_is_refused_by_name(name, message):
    with pytest.raises(ValueError, match=message) as found:
        check_tower(name, 64, pretrained=False)
    assert "\n" not in str(found.value)


def test_the_model_is_checked_before_anything_is_made_for_it(tmp_path):
    with pytest.raises(ValueError, match="no_such_model is no model of timm"):
        check_model(load(["model=hub", "model.vision.repository=no_such_model"]))
    with pytest.raises(
        ValueError, match=r"was made with cameras.*begin with none \(model.checkpoint=null\)"
    ):
        check_model(load(["sim.cameras=[front]"]))
    LlamaConfig().save_pretrained(tmp_path)
    language = f"model.backbone.repository={tmp_path}"
    check_model(load(["model=hub", language]))
    with pytest.raises(
        ValueError, match=r"is a llama, which takes no pictures.*use this one by model=hub"
    ):
        check_model(load(["model=vlm", language]))
    SiglipVisionConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a siglip_vision_model, which is no causal language"):
        check_model(load(["model=hub", language]))
    check_model(load([]))
