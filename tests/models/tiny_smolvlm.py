"""A tiny random SmolVLM of the real class of transformers, as a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from vla.data.tokenizer import train_tokenizer

WORDS = 900


def write_smolvlm(folder: Path, seed: int = 0) -> Path:
    """Write model and tokenizer; 16 pixels a side, 4 tokens an image."""
    import transformers as hf

    torch.manual_seed(seed)
    text = {
        "model_type": "llama",
        "vocab_size": WORDS,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    eyes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "num_hidden_layers": 1,
    }
    config = hf.SmolVLMConfig(
        text_config=text, vision_config=eyes, image_token_id=60, scale_factor=2
    )
    hf.SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    texts = ["reach the red block", "put the blue block on the green one", "yes", "no"]
    train_tokenizer(texts, WORDS, reserve_last=384).save_pretrained(folder)
    return folder
