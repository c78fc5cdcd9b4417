"""A tiny random OpenVLA in the published layout: names of weights, `config.json`, statistics.

The names are those of `modeling_prismatic.py` of openvla/openvla: full timm towers, whose LayerScale
calls its parameter `scale_factor`, a projector `fc1` to `fc3`, and a Llama below `language_model`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from vla.data.tokenizer import train_tokenizer

TOWERS = ("test_vit2.r160_in1k", "test_vit3.r160_in1k")
"""Register tokens and LayerScale, as DINOv2; and a pooling head beside them, as SigLIP."""
PIXELS = 32
WIDTH = 32
PADDED = 64
WORDS = 1024
Q01 = [-0.5, -1.0, 0.0]
Q99 = [0.5, 3.0, 1.0]
MEANS = [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]]
STDS = [[0.228515625, 0.2236328125, 0.224609375], [0.5, 0.5, 0.5]]


def parts(is_fused: bool = True) -> tuple[list[Any], dict[str, nn.Linear], LlamaForCausalLM]:
    """Towers, layers of the projector, and language model, with random weights."""
    torch.manual_seed(0)
    names = TOWERS if is_fused else TOWERS[:1]
    towers = [timm.create_model(n, num_classes=0, img_size=PIXELS).eval() for n in names]
    for tower in towers:
        for name, parameter in tower.named_parameters():
            if name.endswith(("gamma", "token", "pos_embed", "latent")):
                nn.init.normal_(parameter)
    width = sum(tower.embed_dim for tower in towers)
    sizes = [width, 4 * width, WIDTH, WIDTH] if is_fused else [width, WIDTH, WIDTH]
    layers = {f"fc{i + 1}": nn.Linear(*sizes[i : i + 2]) for i in range(len(sizes) - 1)}
    language = LlamaForCausalLM(LlamaConfig(**text_config())).eval()
    return towers, layers, language


def text_config() -> dict[str, Any]:
    return {
        "vocab_size": WORDS + PADDED,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def write_openvla(folder: Path, is_fused: bool = True) -> Path:
    """Write weights, configuration, statistics of pixels and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    towers, layers, language = parts(is_fused)
    weights: dict[str, torch.Tensor] = {}
    for prefix, tower in zip(("featurizer", "fused_featurizer"), towers, strict=False):
        for name, value in tower.state_dict().items():
            place = name.replace(".gamma", ".scale_factor")
            weights[f"vision_backbone.{prefix}.{place}"] = value
    for name, layer in layers.items():
        weights |= {f"projector.{name}.{k}": v for k, v in layer.state_dict().items()}
    weights |= {f"language_model.{k}": v for k, v in language.state_dict().items()}
    copies = {k: v.clone().contiguous() for k, v in weights.items()}
    save_file(copies, folder / "model.safetensors", metadata={"format": "pt"})
    count = len(towers)
    action = {"q01": Q01, "q99": Q99, "mask": [True, True, False]}
    config = {
        "model_type": "openvla",
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "llm_backbone_id": "llama2-7b-pure",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "use_fused_vision_backbone": is_fused,
        "timm_model_ids": list(TOWERS[:count]),
        "timm_override_act_layers": [None] * count,
        "image_sizes": [PIXELS] * count,
        "image_resize_strategy": "resize-naive",
        "text_config": {"model_type": "llama", **text_config()},
        "pad_token_id": WORDS,
        "pad_to_multiple_of": PADDED,
        "n_action_bins": 256,
        "norm_stats": {"bridge_orig": {"action": action}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    processor = {"means": MEANS[:count], "stds": STDS[:count], "image_processor_type": "Prismatic"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    texts = ["reach the red block", "put the blue block on the green one", "yes", "no"]
    train_tokenizer(texts, WORDS, reserve_last=256).save_pretrained(folder)
    return folder
