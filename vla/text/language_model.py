"""A language model, its tokenizer and what goes with them, from the settings; and back into an
ordinary transformers folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, assert_never

import torch
from torch import nn

from vla.config.text import Generation, HubLanguageModel, LanguageModel, SmolLM2, TinyLanguageModel
from vla.config.training import Train
from vla.data.chat import ChatFormat, stop_ids
from vla.data.messages import user_message
from vla.files.manifest import write_manifest
from vla.files.writing import DiskFull, atomic_folder, is_disk_full
from vla.generation.engine import Engine, VllmEngine
from vla.generation.hf_decoder import disable_dropout, enable_tree_attention, plain_model
from vla.generation.sampling import Sampling
from vla.models.fused_ops import use_fused_ops
from vla.models.loading import load_pretrained
from vla.models.lora import add_lora
from vla.policies.text import TextPolicy
from vla.text.tiny_language_model import tiny_language_model
from vla.threads import SINGLE_THREAD, Threads, usable_threads

MIN_WEIGHTS_FOR_THREADS = 20_000_000
"""Weights from which on two batches at once are faster than one after the other."""


@dataclass(frozen=True)
class LanguageParts:
    """What every text mode works with. `autocast` is the type of matrix products, None for that of
    the weights."""

    model: nn.Module
    tokenizer: Any
    chat: ChatFormat
    stop_ids: tuple[int, ...]
    pad_id: int
    device: torch.device
    autocast: torch.dtype | None
    engine: Engine | None = None
    threads: Threads = SINGLE_THREAD

    @property
    def context(self) -> int | None:
        """How many positions the model has; None where any number of tokens goes."""
        return (
            getattr(
                plain_model(self.model).config.get_text_config(), "max_position_embeddings", None
            )
            or None
        )

    def check_context(self, num_tokens: int, settings: str) -> None:
        """Raises ValueError where the model has fewer positions than prompt and completion may
        take. `settings` says which settings ask for so many.
        """
        if self.context is not None and self.context < num_tokens:
            raise ValueError(
                f"{settings} ask for {num_tokens} tokens of prompt and completion, and the language_model has"
                f" {self.context} positions: lower one of them, or choose a model with a longer context"
            )

    @cached_property
    def tree_attention(self) -> bool:
        """Whether a tree of tokens can go through the model by its branches."""
        return enable_tree_attention(self.model)

    def policy(
        self, sampling: Sampling, max_new_tokens: int, value_head: bool = False, num_beams: int = 1
    ) -> TextPolicy:
        """The model as a policy."""
        return TextPolicy(
            self.model,
            sampling,
            max_new_tokens,
            self.stop_ids,
            self.pad_id,
            value_head,
            autocast=self.autocast,
            engine=self.engine,
            num_beams=num_beams,
            threads=self.threads,
        )


def required_context(generation: Generation) -> tuple[int, str]:
    """The most tokens of a prompt and its completion, and the settings that say so."""
    asked, said = generation.max_prompt_tokens, generation.max_new_tokens
    return (
        asked + said,
        f"text.generation.max_prompt_tokens ({asked}) and text.generation.max_new_tokens ({said})",
    )


def load_language_parts(
    settings: LanguageModel, train: Train, system: str | None, texts: Iterable[str]
) -> LanguageParts:
    """Load the model on its device, in float32. `texts` train the tokenizer of a tiny model.

    Raises ValueError when a model cannot be had or has no chat template.
    """
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if train.device == "auto" else train.device)
    model, tokenizer = load_language_model(settings, texts, train.seed, system)
    pad_id = (
        tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    )
    ends = tuple(stop_ids(tokenizer, model))
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        disable_dropout(model)
        model.train()  # transformers recomputes in training mode only
    wrapped = (
        model
        if settings.lora is None
        else add_lora(model, settings.lora.rank, settings.lora.alpha, wrap=True)
    )
    chat = ChatFormat(tokenizer, system)
    autocast = autocast_type(train.precision, device)
    wrapped = wrapped.to(device)
    engine, threads = make_engine(settings, wrapped), choose_threads(wrapped, device, settings)
    return LanguageParts(wrapped, tokenizer, chat, ends, pad_id, device, autocast, engine, threads)


def choose_threads(model: nn.Module, device: torch.device, settings: LanguageModel) -> Threads:
    """How many batches the model may work on at once: one where Python takes longer than its
    products, and where activations are computed again in the backward pass.
    """
    small = sum(parameter.numel() for parameter in model.parameters()) < MIN_WEIGHTS_FOR_THREADS
    return SINGLE_THREAD if small or settings.gradient_checkpointing else usable_threads(device)


def make_engine(settings: LanguageModel, model: nn.Module) -> Engine | None:
    """The engine that the settings name; None is our own generation.

    Raises ValueError for vLLM where it is not installed.
    """
    if isinstance(settings, TinyLanguageModel) or settings.engine == "own":
        return None
    if isinstance(settings, HubLanguageModel):
        return VllmEngine(model, settings.repository)
    from vla.text.smollm2_download import fetch_smollm2

    return VllmEngine(model, str(fetch_smollm2()))


def load_language_model(
    settings: LanguageModel, texts: Iterable[str], seed: int, system: str | None = None
) -> tuple[Any, Any]:
    """(model in float32, tokenizer); refused before the model loads where its chats cannot hold
    `system`."""
    match settings:
        case TinyLanguageModel() as tiny:
            return tiny_language_model(
                texts, tiny.vocabulary_size, tiny.width, tiny.depth, tiny.num_heads, seed=seed
            )
        case SmolLM2():
            from vla.text.smollm2_download import fetch_smollm2

            return load_from_folder(str(fetch_smollm2()), system)
        case HubLanguageModel() as hub:
            return load_from_folder(hub.repository, system)
        case other:
            assert_never(other)


def load_from_folder(name: str, system: str | None = None) -> tuple[Any, Any]:
    """A causal language model and its tokenizer by hub name or folder.

    Raises ValueError when it is neither on this machine nor to be fetched, has no chat template, or
    one that cannot hold the system message.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    setting = "language_model.repository"
    tokenizer = load_pretrained(AutoTokenizer, name, setting)
    if tokenizer.chat_template is None:
        raise ValueError(
            f"language_model ({name}) has no chat template: choose an instruction-tuned model"
        )
    ChatFormat(tokenizer, system).render(user_message("x"))
    model = load_pretrained(AutoModelForCausalLM, name, setting, dtype=torch.float32)
    use_fused_ops(model)
    return model, tokenizer


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 where the machine multiplies it faster than float32: GPUs, and CPUs with AMX."""
    if precision == "auto":
        fast = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else None
    return torch.bfloat16 if precision == "bf16" else None


def save_language_model(parts: LanguageParts, folder: Path) -> None:
    """A folder that `AutoModelForCausalLM.from_pretrained` loads, or peft where the model has
    adapters.

    Raises DiskFull where there is no room; a folder that was there stays as it was then.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as draft:
            parts.model.save_pretrained(draft)
            parts.tokenizer.save_pretrained(draft)
            write_manifest(
                draft,
                [file for file in draft.rglob("*") if file.is_file() and file.name != "README.md"],
            )
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"the disk is full, the trained model was not written to {folder}; results and report are beside it: make "
            "room and run again, or give another run_dir"
        ) from None
