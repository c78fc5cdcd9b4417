"""A tiny random model of every tested family, of the real class, and the inputs of its own
processor."""

from __future__ import annotations

from typing import Any

import torch

WORDS = 512
IMAGE_TOKEN = 60
SIDE = 16
"""Pixels a side of the tower's input, and of a picture."""
TEXT: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "image_size": SIDE,
    "patch_size": 4,
}
QWEN_TOWER = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention"] * 2
FAMILIES = (
    "gemma3",
    "idefics3",
    "internvl",
    "llava",
    "llava_next",
    "paligemma",
    "paligemma2",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
)


def tiny_config(family: str, **text: Any) -> Any:
    """The configuration of a tiny model; `text` are changes of its language model."""
    import transformers as hf

    image = {"image_token_id": IMAGE_TOKEN}
    siglip = {**TOWER, "model_type": "siglip_vision_model"}
    clip = {**TOWER, "model_type": "clip_vision_model"}
    words = {**TEXT, **text}
    match family:
        case "idefics3" | "smolvlm":
            kind = {"idefics3": hf.Idefics3Config, "smolvlm": hf.SmolVLMConfig}[family]
            llama = {**words, "model_type": "llama"}
            return kind(text_config=llama, vision_config=TOWER, scale_factor=2, **image)
        case "paligemma" | "paligemma2":
            gemma = {**words, "model_type": "gemma"}
            if family == "paligemma2":
                window = {"sliding_window": 16, "layer_types": LOCAL_AND_GLOBAL}
                gemma = {**window, **words, "model_type": "gemma2"}
            return hf.PaliGemmaConfig(
                text_config=gemma,
                vision_config={**siglip, "projection_dim": 32},
                image_token_index=IMAGE_TOKEN,
                projection_dim=32,
            )
        case "gemma3":
            window = {"sliding_window": 16, "layer_types": LOCAL_AND_GLOBAL}
            return hf.Gemma3Config(
                text_config={**window, **words, "model_type": "gemma3_text"},
                vision_config=siglip,
                mm_tokens_per_image=4,
                image_token_index=IMAGE_TOKEN,
            )
        case "llava":
            return hf.LlavaConfig(
                text_config={**words, "model_type": "llama"},
                vision_config=clip,
                image_token_index=IMAGE_TOKEN,
            )
        case "llava_next":
            return hf.LlavaNextConfig(
                text_config={**words, "model_type": "mistral"},
                vision_config=clip,
                image_token_index=IMAGE_TOKEN,
                image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
            )
        case "internvl":
            return hf.InternVLConfig(
                text_config={**words, "model_type": "qwen2"},
                vision_config={**TOWER, "model_type": "internvl_vision", "patch_size": [4, 4]},
                **image,
            )
        case "qwen2_vl":
            tower = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2}
            return hf.Qwen2VLConfig(
                text_config={**words, "rope_parameters": MROPE},
                vision_config={**tower, "patch_size": 4, "spatial_merge_size": 2},
                **image,
            )
        case "qwen2_5_vl":
            tower = {**QWEN_TOWER, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
            return hf.Qwen2_5_VLConfig(
                text_config={**words, "rope_parameters": MROPE},
                vision_config={**tower, "window_size": 16},
                **image,
            )
        case "qwen3_vl":
            tower = {**QWEN_TOWER, "out_hidden_size": 32, "deepstack_visual_indexes": [0, 1]}
            return hf.Qwen3VLConfig(
                text_config={**words, "rope_parameters": MROPE},
                vision_config={**tower, "num_position_embeddings": 16},
                **image,
            )
    raise AssertionError(family)


def tiny_model(family: str, scale: float = 3.0, **text: Any) -> Any:
    """A random model with large matrices, so that a wrong position or mask changes its logits."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(tiny_config(family, **text)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and not parameter.any():
                parameter.normal_(std=0.1)  # Gemma 3's projection of images starts at zero
            elif parameter.ndim == 2:
                parameter.mul_(scale)
    return model


def pictures(rows: int = 2, size: int = SIDE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, size, size, 3), generator=generator).to(torch.uint8)


def processed(family: str, images: torch.Tensor) -> dict[str, Any]:
    """The pixels that the family's own image processor makes of pictures."""
    import transformers as hf

    listed = [image.numpy() for image in images]
    plain = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
    match family:
        case "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl":
            processor = hf.Qwen2VLImageProcessor(patch_size=4, merge_size=2, do_resize=False)
            return dict(processor(images=listed, return_tensors="pt"))
        case "idefics3" | "smolvlm":
            signed = images.permute(0, 3, 1, 2)[:, None].float() / 127.5 - 1
            return {"pixel_values": signed}
        case "paligemma" | "paligemma2":
            return dict(hf.SiglipImageProcessor()(images=listed, **plain))
        case "gemma3":
            return dict(hf.Gemma3ImageProcessor()(images=listed, **plain))
        case "llava":
            return dict(hf.CLIPImageProcessor()(images=listed, **plain))
        case "llava_next":
            processor = hf.LlavaNextImageProcessor(
                size={"shortest_edge": SIDE},
                crop_size={"height": SIDE, "width": SIDE},
                image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
            )
            return dict(processor(images=listed, return_tensors="pt"))
        case "internvl":
            return dict(hf.GotOcr2ImageProcessor()(images=listed, **plain))
    raise AssertionError(family)
