"""Loading of a language model with its tokenizer and chat format, and saving as a folder of
transformers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, assert_never

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vla.config.language_model_start import BASE, REPOSITORY
from vla.config.language_model_start import SETTING as START
from vla.config.text import Generation, HubLanguageModel, LanguageModel, SmolLM2, TinyLanguageModel
from vla.config.training import Train
from vla.data.chat import ChatFormat, stop_ids
from vla.data.messages import user_message
from vla.devices import Precision, autocast_dtype, choose_device
from vla.files.base_models import BaseRecord, describe_base
from vla.files.folder_kinds import ADAPTER
from vla.files.manifest import write_manifest
from vla.files.reading import short_message
from vla.files.writing import DiskFull, atomic_folder, is_disk_full, write_json
from vla.generation.engine import Engine
from vla.generation.hf_decoder import disable_dropout, enable_tree_attention, plain_model
from vla.generation.http_client import HttpClient
from vla.generation.inference_servers import SERVERS, VllmServer
from vla.generation.sampling import Sampling
from vla.generation.server_engine import ServerEngine
from vla.generation.weight_transfer import FolderTransfer, NcclTransfer, WeightTransfer
from vla.models.base_model import leave_out
from vla.models.fused_ops import use_fused_ops
from vla.models.loading import check_manifest, load_pretrained
from vla.models.lora import add_lora
from vla.policies.text import TextPolicy
from vla.text.tiny_language_model import tiny_language_model
from vla.threads import SINGLE_THREAD, Threads, usable_threads

MIN_WEIGHTS_FOR_THREADS = 20_000_000
"""Number of weights above which two batches in parallel are faster than in sequence."""


@dataclass(frozen=True)
class LanguageParts:
    """A loaded language model with its tokenizer, chat format, device and generation engine.

    `autocast` is the type of matrix products; None is the type of the weights. `base` is the hub
    name or folder of the weights that an adapter was added to; None where they are nowhere else.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    stop_ids: tuple[int, ...]
    pad_id: int
    device: torch.device
    autocast: torch.dtype | None
    base: str | None = None
    engine: Engine | None = None
    threads: Threads = SINGLE_THREAD

    @property
    def context(self) -> int | None:
        """Number of positions of the model; None where it is unlimited."""
        config = plain_model(self.model).config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or None

    def check_context(self, num_tokens: int, settings: str) -> None:
        """Raise ValueError where prompt and completion may exceed the positions of the model.

        `settings` names the settings that set `num_tokens`.
        """
        if self.context is not None and self.context < num_tokens:
            raise ValueError(
                f"{settings} ask for {num_tokens} tokens of prompt and completion, and the "
                f"language_model has {self.context} positions: lower one of them, or choose a "
                "model with a longer context"
            )

    @cached_property
    def tree_attention(self) -> bool:
        """True where the model can attend along the paths of a token tree."""
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
    """(most tokens of a prompt and its completion, text with the settings that set it)."""
    prompt = generation.max_prompt_tokens
    completion = generation.max_new_tokens
    names = (
        f"text.generation.max_prompt_tokens ({prompt}) and "
        f"text.generation.max_new_tokens ({completion})"
    )
    return prompt + completion, names


def load_language_parts(
    settings: LanguageModel, train: Train, system: str | None, texts: Iterable[str]
) -> LanguageParts:
    """Load the model in float32 on its device. `texts` train the tokenizer of a tiny model.

    Raises:
        ValueError: the model cannot be loaded, or has no chat template.
    """
    device = choose_device(train.device)
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
    if settings.lora is not None and not isinstance(settings, TinyLanguageModel):
        # A resumed run reads the base where it began: checkpoints hold the adapter alone.
        named = wrapped.named_parameters(remove_duplicate=False)
        frozen = [name for name, parameter in named if not parameter.requires_grad]
        leave_out(wrapped, frozen, {})
    chat = ChatFormat(tokenizer, system)
    autocast = text_autocast(train.precision, device)
    wrapped = wrapped.to(device)
    engine = make_engine(settings, wrapped)
    threads = choose_threads(wrapped, device, settings)
    base = base_of_adapter(settings)
    return LanguageParts(
        wrapped, tokenizer, chat, ends, pad_id, device, autocast, base, engine, threads
    )


def base_of_adapter(settings: LanguageModel) -> str | None:
    """Hub name or folder of a model as it is loaded; None where it is in no folder."""
    match settings:
        case SmolLM2():
            from vla.text.smollm2_download import fetch_smollm2

            return str(fetch_smollm2())
        case HubLanguageModel() as hub if hub.path is None or not is_adapter(hub.path):
            return hub.repository
        case _:
            return None


def is_adapter(name: str) -> bool:
    """True for a folder with an adapter of peft."""
    return (Path(name) / ADAPTER).is_file()


def choose_threads(model: nn.Module, device: torch.device, settings: LanguageModel) -> Threads:
    """Threads for batches in parallel: one for small models and with gradient checkpointing.

    Python takes longer than the matrix products of a small model.
    """
    small = sum(parameter.numel() for parameter in model.parameters()) < MIN_WEIGHTS_FOR_THREADS
    return SINGLE_THREAD if small or settings.gradient_checkpointing else usable_threads(device)


def make_engine(settings: LanguageModel, model: nn.Module) -> Engine | None:
    """The engine of `language_model.engine` with the present weights; None is our own generation.

    Raises:
        ValueError: the server cannot be reached, or does not take the weights.
    """
    if isinstance(settings, TinyLanguageModel) or settings.engine == "own":
        return None
    assert settings.engine_url is not None
    server = SERVERS[settings.engine](HttpClient(settings.engine_url, settings.engine_timeout))
    transfer: WeightTransfer
    if settings.engine_transfer == "nccl":
        assert isinstance(server, VllmServer)
        transfer = NcclTransfer(server, next(model.parameters()).device)
    else:
        folder = settings.engine_folder or mkdtemp(prefix="engine-")
        transfer = FolderTransfer(server, Path(folder))
    engine = ServerEngine(model, server, transfer, settings.engine_timeout)
    engine.push_weights()
    return engine


def load_language_model(
    settings: LanguageModel, texts: Iterable[str], seed: int, system: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model in float32, tokenizer); the chat template is checked with `system` before loading."""
    match settings:
        case TinyLanguageModel() as tiny:
            return tiny_language_model(
                texts, tiny.vocabulary_size, tiny.width, tiny.depth, tiny.num_heads, seed=seed
            )
        case SmolLM2():
            from vla.text.smollm2_download import fetch_smollm2

            return load_from_folder(str(fetch_smollm2()), system)
        case HubLanguageModel() as hub:
            model, tokenizer = load_from_folder(hub.repository, system)
            if hub.path is not None and is_adapter(hub.path):
                check_manifest(Path(hub.path), START)
                model = merge_adapter(model, Path(hub.path))
                tokenizer = own_tokenizer(Path(hub.path), tokenizer)
            return model, tokenizer
        case other:
            assert_never(other)


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A model with the adapter of peft in `folder` added to its weights.

    Raises:
        ValueError: the adapter is not one of this model.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            # peft 0.21 reads a property that transformers renames.
            warnings.simplefilter("ignore", FutureWarning)
            merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except Exception as error:  # peft raises errors of many kinds
        raise ValueError(
            f"{START} ({folder}) cannot be added to {REPOSITORY}: {short_message(error)}; give the "
            "base that it was trained on"
        ) from error
    for part in merged.modules():
        if "peft_config" in vars(part):  # peft would take the next adapter for a second one
            del part.peft_config
    return merged.requires_grad_(True)


def own_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer beside an adapter; that of the base where there is none."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        return tokenizer
    loaded: PreTrainedTokenizerBase = load_pretrained(AutoTokenizer, str(folder), START)
    return loaded


def load_from_folder(
    name: str, system: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, by hub name or folder.

    Raises:
        ValueError: the model is neither on this machine nor can be fetched, has no chat template,
            or its template has no place for the system message.
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


def text_autocast(precision: Precision, device: torch.device) -> torch.dtype | None:
    """`autocast_dtype`; `auto` is bfloat16 on CPUs with AMX too."""
    has_amx = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return autocast_dtype("bf16" if precision == "auto" and has_amx else precision, device)


def save_base(parts: LanguageParts, folder: Path) -> BaseRecord:
    """The record of the base of an adapter in `folder`.

    A base that is nowhere else (a tiny model, or one with a merged adapter) is written beside the
    adapter.
    """
    if parts.base is not None:
        return describe_base(parts.base)
    plain: Any = plain_model(parts.model)
    weights = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in plain.state_dict().items()
        if "lora_" not in name
    }
    plain.save_pretrained(folder / "base", state_dict=weights)
    return describe_base(str(folder / "base"))


def save_language_model(parts: LanguageParts, folder: Path) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads, or peft with adapters.

    Raises:
        DiskFull: there is no room; an earlier folder then stays unchanged.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as draft:
            model: Any = parts.model
            model.save_pretrained(draft)
            if (draft / ADAPTER).is_file():
                write_json(draft / BASE, save_base(parts, draft))
            parts.tokenizer.save_pretrained(draft)
            write_manifest(
                draft,
                [file for file in draft.rglob("*") if file.is_file() and file.name != "README.md"],
            )
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"the disk is full, the trained model was not written to {folder}; results and report "
            "are beside it: make room and run again, or give another run_dir"
        ) from None
