"""The sections of a text run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vla.config.algorithm import Algorithm
from vla.config.section import Count, CountOrZero, Positive, Section
from vla.config.training import Rl, Train

Share = Annotated[float, Field(gt=0, lt=1)]


class Lora(Section):
    rank: Count
    alpha: Positive


class TinyLanguageModel(Section):
    name: Literal["tiny"]
    vocabulary_size: Count
    width: Count
    depth: Count
    num_heads: Count
    lora: Lora | None
    gradient_checkpointing: bool


class SmolLM2(Section):
    name: Literal["smollm2"]
    lora: Lora | None
    gradient_checkpointing: bool


class HubLanguageModel(Section):
    name: Literal["hub"]
    repository: str
    lora: Lora | None
    gradient_checkpointing: bool


LanguageModel = Annotated[TinyLanguageModel | SmolLM2 | HubLanguageModel, Field(discriminator="name")]


class SamplingSettings(Section):
    temperature: Positive
    top_k: CountOrZero
    top_p: Annotated[float, Field(gt=0, le=1)]


class Rlvr(Section):
    name: Literal["rlvr"]
    families: Annotated[tuple[str, ...], Field(min_length=1)]
    advance_at: Share | None
    num_problems: Count
    holdout_fraction: Share
    num_evaluation: Count
    num_validation: Count
    rewards: Annotated[dict[str, float], Field(min_length=1)]
    tool: Literal["calculator"] | None
    max_turns: Count
    system: str | None
    format_steps: CountOrZero
    format_learning_rate: Positive
    max_prompt_tokens: Count
    max_new_tokens: Count
    sampling: SamplingSettings
    verifier_timeout_seconds: Positive


class TextConfig(Section):
    """Everything a run of a language model was told."""

    mode: Literal["text"]
    run_dir: str | None
    resume: str | None
    text: Rlvr
    language_model: LanguageModel
    algorithm: Algorithm
    rl: Rl
    train: Train

    @property
    def name(self) -> str:
        return f"{self.text.name}-{self.language_model.name}-{self.algorithm.name}"

    @property
    def needs_hub(self) -> bool:
        return self.language_model.name == "hub"
