"""Low-rank adapters (LoRA, Hu et al. 2021) on every linear layer of a language model."""

from __future__ import annotations

import warnings

from torch import nn


def add_lora(model: nn.Module, rank: int, alpha: float, *, wrap: bool = False) -> nn.Module:
    """Freeze a causal LM of transformers and add trainable adapters to the layers of its decoder.

    Each linear layer W becomes W + alpha / rank B A, with B [out, rank] zero at the start; the
    output head stays as it is. Text models are wrapped (`wrap=True`), so that peft saves the
    adapters alone. Robot policies are changed in place, so that checkpoints name weights as without
    a wrapper.

    Returns:
        The wrapper, or `model` itself.
    """
    from peft import LoraConfig, get_peft_model, inject_adapter_in_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    if wrap:
        with warnings.catch_warnings():
            # peft 0.21 reads a property that transformers renames.
            warnings.simplefilter("ignore", FutureWarning)
            return get_peft_model(model, config)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    inject_adapter_in_model(config, model.get_decoder())
    return model


def merge_lora(model: nn.Module) -> None:
    """Add the adapters of a model to its weights, W + alpha / rank B A, and remove them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(n, part) for n, part in model.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, layer in adapted:
        layer.merge(safe_merge=True)
        model.set_submodule(name, layer.get_base_layer())
    for part in model.modules():
        if "peft_config" in vars(part):  # peft would take the next adapter for a second one
            del part.peft_config
