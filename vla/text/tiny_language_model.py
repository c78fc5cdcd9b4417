"""A tiny Llama-style language model with random weights and its own tokenizer, for tests."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vla.data.tokenizer import train_tokenizer
from vla.models.fused_ops import use_fused_ops


def tiny_language_model(
    texts: Iterable[str],
    vocab_size: int = 320,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    max_length: int = 2**16,
    weight_scale: float = 0.02,
    seed: int = 0,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """(model, tokenizer): weights by `seed` alone, and a tokenizer trained on `texts`.

    `weight_scale` is the standard deviation of the weights; with .02 all next tokens are about
    equally likely. Like real models it has grouped queries (two query heads per key head) and tied
    embeddings.
    """
    tokenizer = train_tokenizer(texts, vocab_size)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads // 2,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        initializer_range=weight_scale,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    use_fused_ops(model)
    return model.eval(), tokenizer
