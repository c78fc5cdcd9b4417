"""A vision-language model as a folder: architecture, weights (safetensors) and tokenizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vla.command_names import command_name
from vla.files.arrays import (
    load_weights,
    read_safetensors,
    read_tokenizer,
    translating_library_errors,
)
from vla.files.reading import read_json, validating_file
from vla.files.writing import write_json
from vla.models.action_queries import ActionQueries
from vla.models.backbone import small_llama
from vla.models.vision import small_vit
from vla.models.vlm import VisionLanguageModel

EMBEDDED = Path(__file__).parent / "embedded" / "tiny"
"""The checkpoint that ships with the package, made by `vla-pretrain`."""


@dataclass(frozen=True)
class SmallArchitecture:
    """Sizes of a tiny vision-language model. Widths in channels; a patch has
    `2**len(stem_channels)` pixels a side."""

    cameras: tuple[str, ...]
    image_size: int
    proprio_size: int
    vision_width: int
    vision_depth: int
    vision_heads: int
    stem_channels: tuple[int, ...]
    vocabulary_size: int
    width: int
    depth: int
    num_heads: int
    intermediate: int
    num_queries: int
    num_plan_numbers: int


def small_vlm(architecture: SmallArchitecture) -> VisionLanguageModel:
    """A tiny vision-language model with random weights."""
    a = architecture
    vision = small_vit(
        a.image_size, a.vision_width, a.vision_depth, a.vision_heads, a.stem_channels
    )
    backbone = small_llama(a.vocabulary_size, a.width, a.depth, a.num_heads, a.intermediate)
    plan = ActionQueries(a.num_queries, a.num_plan_numbers, a.width)
    return VisionLanguageModel(vision, backbone, a.cameras, a.proprio_size, plan)


def save_vlm(
    folder: Path, model: VisionLanguageModel, architecture: SmallArchitecture, tokenizer: Any
) -> None:
    """Write the model into `folder`; the weights get their name once they are complete."""
    from safetensors.torch import save_model

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "architecture.json", asdict(architecture))
    tokenizer.save_pretrained(folder)
    temporary = folder / "model.safetensors.partial"
    save_model(model, str(temporary))
    temporary.replace(folder / "model.safetensors")


def read_architecture(folder: Path) -> SmallArchitecture:
    """The sizes of a model that `save_vlm` wrote.

    Raises:
        ValueError: a file is missing or damaged; the message names it.
    """
    for name in ("architecture.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ValueError(f"model.checkpoint={folder}: {name} is missing; {REMEDY}")
    path = folder / "architecture.json"
    values = read_json(path, remedy=REMEDY)
    with validating_file(path, REMEDY):
        return SmallArchitecture(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        )


def load_vlm(folder: Path) -> tuple[VisionLanguageModel, SmallArchitecture, Any]:
    """Model, sizes and tokenizer that `save_vlm` wrote.

    Raises:
        ValueError: a file is missing or damaged; the message names it.
    """
    architecture = read_architecture(folder)
    path = folder / "model.safetensors"
    with translating_library_errors(folder / "architecture.json", REMEDY):
        model = small_vlm(architecture)
    load_weights(model, read_safetensors(path, REMEDY), path, REMEDY)
    return model, architecture, read_tokenizer(folder, REMEDY)


REMEDY = f"make one with {command_name('vla-pretrain')}"


def num_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
