"""Vision-language models of transformers, tiny and random: taken apart they compute what they did
whole."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.models.tiny import CAMERAS, PROPRIO_SIZE
from tests.policies.kinds import settings
from tests.policies.test_kinds import restless
from tests.policies.tiny import token_policy
from vla.actions.bins import fit_bins
from vla.actions.flow import FlowMatching
from vla.actions.normalize import fit_normalizer
from vla.models.pretrained_vlm import KINDS, load_pretrained_vlm, split_vlm
from vla.models.vlm import VisionLanguageModel
from vla.policies.denoising import DenoisingHead
from vla.policies.vla_policy import VlaPolicy
from vla.types import Observation

WORDS, IMAGE_TOKEN = 512, 60
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EYES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}


def whole(kind: str):
    """A random model of a kind, as transformers makes it."""
    import transformers as hf

    torch.manual_seed(0)
    if kind in ("idefics3", "smolvlm"):
        text = {**TEXT, "model_type": "llama"}
        eyes = {**EYES, "num_hidden_layers": 1}
        config_class, model_class = {
            "idefics3": (hf.Idefics3Config, hf.Idefics3ForConditionalGeneration),
            "smolvlm": (hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration),
        }[kind]
        config = config_class(
            text_config=text, vision_config=eyes, image_token_id=IMAGE_TOKEN, scale_factor=2
        )
    elif kind == "paligemma":
        eyes = {
            **EYES,
            "num_hidden_layers": 1,
            "model_type": "siglip_vision_model",
            "projection_dim": 32,
        }
        config = hf.PaliGemmaConfig(
            text_config={**TEXT, "model_type": "gemma"},
            vision_config=eyes,
            image_token_index=IMAGE_TOKEN,
            projection_dim=32,
        )
        model_class = hf.PaliGemmaForConditionalGeneration
    else:
        eyes = {
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 16,
            "spatial_merge_size": 2,
        }
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
        text = {**TEXT, "rope_scaling": rope, "rope_parameters": rope}
        config = hf.Qwen2_5_VLConfig(
            text_config=text, vision_config=eyes, image_token_id=IMAGE_TOKEN
        )
        model_class = hf.Qwen2_5_VLForConditionalGeneration
    return model_class(config).eval()


def pictures(rows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, 16, 16, 3), generator=generator).to(torch.uint8)


def pixels_for(kind: str, images: torch.Tensor) -> dict:
    """What a processor of transformers would give for the pictures."""
    unit = images.permute(0, 3, 1, 2).float() / 255
    if kind == "qwen2_5_vl":
        from transformers import Qwen2VLImageProcessor

        processor = Qwen2VLImageProcessor(patch_size=4, merge_size=2, do_resize=False)
        return dict(processor(images=[image.numpy() for image in images], return_tensors="pt"))
    signed = unit * 2 - 1
    return {"pixel_values": signed if kind == "paligemma" else signed[:, None]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_halves_compute_what_the_whole_does(kind):
    model, images = whole(kind), pictures()
    vision, backbone = split_vlm(copy.deepcopy(model), image_size=16)
    tokens = torch.randint(3, 50, (2, 5), generator=torch.Generator().manual_seed(1))
    count = vision.num_patches
    ids = torch.cat([torch.full((2, count), IMAGE_TOKEN), tokens], dim=1)
    positions = torch.arange(count + 5).expand(2, -1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels_for(kind, images)}
    if kind == "qwen2_5_vl":
        given["position_ids"] = positions.expand(
            3, -1, -1
        )  # ours count tokens, rows and columns are not told
    with torch.no_grad():
        expected = model(**given).logits[:, -1]
        embeddings = torch.cat([vision(images), backbone.embed(tokens)], dim=1)
        attend = torch.ones(2, count + 5, count + 5, dtype=torch.bool)
        if kind != "paligemma":  # its prompts see themselves in both directions
            attend = attend.tril()
        found = backbone.logits(backbone(embeddings, attend, positions))[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    names = [name for half in (vision, backbone) for name, _ in half.named_parameters()]
    shared = {p.data_ptr() for p in vision.parameters()} & {
        p.data_ptr() for p in backbone.parameters()
    }
    assert names
    assert not shared


def seen(rows: int) -> Observation:
    generator = torch.Generator().manual_seed(3)
    images = {camera: pictures(rows) for camera in CAMERAS}
    mask = torch.arange(6) < torch.tensor([4, 6, 3][:rows])[:, None]
    tokens = torch.randint(3, 50, (rows, 6), generator=generator).masked_fill(~mask, 0)
    return Observation(images, torch.randn(rows, PROPRIO_SIZE, generator=generator), tokens, mask)


@pytest.mark.parametrize("kind", KINDS)
def test_policies_act_on_it_and_say_again_how_likely_that_was(kind):
    torch.manual_seed(0)
    frames = np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)
    model = VisionLanguageModel(*split_vlm(whole(kind), image_size=16), CAMERAS, PROPRIO_SIZE)
    flow = FlowMatching(num_steps=4, time_alpha=1.5, time_beta=1.0, noise_level=0.5)
    policies = (
        token_policy(model, fit_bins(frames, 8, "uniform"), 2, "parallel", 1.0),
        token_policy(model, fit_bins(frames, 8, "uniform"), 2, "autoregressive", 1.0),
        VlaPolicy(
            model,
            DenoisingHead(model, flow, fit_normalizer(frames), settings("all_steps")),
            detach_critic=True,
        ),
    )
    for policy in policies:
        decision = policy.act(seen(3))
        assert decision.action.shape == (3, 2, 2)
        gap = (policy.score(seen(3), decision.trace).logprobs - decision.logprobs).abs().max()
        assert gap <= 1e-4
    expert = restless(policies[2])
    expert.imitation_terms(seen(2), torch.zeros(2, 2, 2), torch.ones(2, 2, dtype=torch.bool))[
        0
    ].sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.vision.parameters())


def test_it_loads_by_name_and_refuses_what_it_does_not_know(tmp_path):
    whole("smolvlm").save_pretrained(tmp_path / "smol")
    vision, backbone = load_pretrained_vlm(str(tmp_path / "smol"), 8, torch.float32)
    assert vision(torch.zeros(1, 8, 8, 3, dtype=torch.uint8)).shape == (
        1,
        vision.num_patches,
        backbone.width,
    )
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**TEXT)).save_pretrained(tmp_path / "llama")
    with pytest.raises(
        ValueError, match=r"llama\) is a llama, which is not supported: choose one of idefics3"
    ):
        load_pretrained_vlm(str(tmp_path / "llama"), 8, torch.float32)
