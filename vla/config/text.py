"""The sections of a text run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vla.config.algorithm import Algorithm
from vla.config.preference import Preference
from vla.config.section import Section
from vla.config.training import Lora, Rl, Train
from vla.ranges import (
    BelowHalf,
    BelowOne,
    Count,
    CountOrZero,
    Depth,
    Integer,
    LearningRate,
    Name,
    NonEmptyNames,
    NonNegative,
    Number,
    OnBadRow,
    Positive,
    PositiveFraction,
    Rows,
    Schedule,
    Seconds,
    Share,
    Size,
    SmallCount,
    SmallCountOrZero,
    Temperature,
    Tokens,
    Url,
    Weights,
)

Epochs = Annotated[Positive, Field(le=10**4)]
Samples = Annotated[Integer, Field(ge=2, le=10**4)]
MoreTokens = Annotated[Integer, Field(ge=1, le=10**6)]
Timeout = Annotated[float, Field(gt=0, ge=0.1, le=3600)]
"""Seconds; a verifier process answers within hundredths of a second."""


class ServedLanguageModel(Section):
    """The engine that draws a model's completions: this process, or an inference server."""

    engine: Literal["own", "vllm", "sglang"]
    engine_url: Url | None
    engine_transfer: Literal["folder", "nccl"]
    engine_folder: Name | None
    engine_timeout: Annotated[Positive, Field(ge=1)]


class TinyLanguageModel(Section):
    """A tiny Llama with random weights and a tokenizer of its own, for tests."""

    name: Literal["tiny"]
    vocabulary_size: MoreTokens
    width: Size
    depth: Depth
    num_heads: Size
    lora: Lora | None
    gradient_checkpointing: bool


class SmolLM2(ServedLanguageModel):
    """SmolLM2-135M-Instruct."""

    name: Literal["smollm2"]
    lora: Lora | None
    gradient_checkpointing: bool


class HubLanguageModel(ServedLanguageModel):
    """A causal language model with a chat template, by hub name or folder."""

    name: Literal["hub"]
    path: Name | None
    repository: Name
    lora: Lora | None
    gradient_checkpointing: bool


LanguageModel = Annotated[
    TinyLanguageModel | SmolLM2 | HubLanguageModel, Field(discriminator="name")
]


class SamplingSettings(Section):
    """Sampling of completions."""

    temperature: Temperature
    top_k: CountOrZero
    top_p: PositiveFraction


class Rlvr(Section):
    """Reinforcement learning on verified rewards."""

    name: Literal["rlvr"]
    families: NonEmptyNames
    curriculum_threshold: Share | None
    max_batch_growth: Annotated[float, Field(ge=1, le=100)]
    num_problems: Count | None
    on_bad_row: OnBadRow
    holdout_fraction: Share
    num_evaluation: Count
    num_validation: Count
    num_beams: SmallCount
    num_samples: SmallCountOrZero
    rewards: Weights
    tool: Literal["calculator"] | None
    max_turns: SmallCount
    system: Name | None
    format_sft_steps: CountOrZero
    format_sft_learning_rate: LearningRate
    max_prompt_tokens: Tokens
    max_new_tokens: MoreTokens | None
    mask_truncated_completions: bool
    sampling: SamplingSettings
    verifier_timeout_seconds: Timeout


class Fit(Section):
    """A supervised fit: its length, batches and learning rate."""

    num_steps: CountOrZero | None
    num_epochs: Epochs | None
    batch_size: Rows
    micro_batch_size: Rows
    learning_rate: LearningRate
    warmup_fraction: BelowOne
    max_grad_norm: Positive
    schedule: Schedule
    max_seconds: Seconds | None
    ema_decay: Share | None


class Prompts(Section):
    """Prompts without reference answers, split into training and evaluation."""

    path: Name | None
    num_train: Count | None
    holdout_fraction: Share
    num_evaluation: Count


class Generation(Section):
    """Chat template, limits and sampling of completions."""

    system: Name | None
    max_prompt_tokens: Tokens
    max_new_tokens: MoreTokens
    sampling: SamplingSettings


class JudgeSettings(Section):
    """The judge that compares completions: a synthetic reward, the model, or a server."""

    name: Literal["gold", "model", "url"]
    noise: BelowHalf
    rubric: Name | None
    url: Name | None
    model: Name | None


class TextSft(Section):
    """Supervised fine-tuning on conversations."""

    name: Literal["sft"]
    sources: NonEmptyNames
    weights: tuple[Positive, ...] | None
    on_bad_row: OnBadRow
    holdout_fraction: Share
    row_tokens: Tokens
    system: Name | None
    fit: Fit


class TextPreference(Section):
    """Preference optimization on stored or judged comparisons."""

    name: Literal["preference", "rlaif"]
    comparisons: Name | None
    rounds: SmallCount
    samples_per_prompt: Samples
    keep_fraction: PositiveFraction | None
    judge: JudgeSettings
    gold: Name
    on_bad_row: OnBadRow
    prompts: Prompts
    generation: Generation
    fit: Fit


class Rlhf(Section):
    """A reward model fitted to preferences, then RL against it."""

    name: Literal["rlhf"]
    comparisons: Name | None
    samples_per_prompt: Samples
    demonstrations: CountOrZero
    truncation_reward: Number | None
    judge: JudgeSettings
    gold: Name
    on_bad_row: OnBadRow
    prompts: Prompts
    generation: Generation
    sft: Fit
    reward_model: Fit
    head_learning_rate: LearningRate
    reward_centering_weight: NonNegative


class Rejection(Section):
    """Fine-tuning on verified samples of the model itself, in rounds (RAFT)."""

    name: Literal["rejection"]
    families: NonEmptyNames
    num_problems: Count | None
    on_bad_row: OnBadRow
    holdout_fraction: Share
    num_evaluation: Count
    rewards: Weights
    min_reward: Number
    rounds: SmallCount
    problems_per_round: Rows
    samples_per_prompt: SmallCount
    verifier_timeout_seconds: Timeout
    generation: Generation
    fit: Fit


class Control(Section):
    """Control codes: completions labelled by quality, then steered by the label."""

    name: Literal["control"]
    levels: Annotated[Integer, Field(ge=2, le=100)]
    discrimination: NonNegative
    beta: Positive
    guidance: Positive
    samples_per_prompt: SmallCount
    gold: Name
    on_bad_row: OnBadRow
    prompts: Prompts
    generation: Generation
    fit: Fit


class Constitution(Section):
    """Constitutional AI: the model criticizes and revises its own answers."""

    name: Literal["constitution"]
    constitution: Name | None
    rounds: SmallCount
    gold: Name
    on_bad_row: OnBadRow
    prompts: Prompts
    generation: Generation
    sft: Fit
    fit: Fit


TextMode = Annotated[
    Rlvr | TextSft | TextPreference | Rlhf | Rejection | Control | Constitution,
    Field(discriminator="name"),
]


class TextConfig(Section):
    """All settings of a text run."""

    mode: Literal["text"]
    run_dir: Name | None
    resume: Name | None
    text: TextMode
    language_model: LanguageModel
    algorithm: Algorithm
    preference: Preference
    rl: Rl
    train: Train

    @property
    def name(self) -> str:
        names = {
            "rlvr": self.algorithm.name,
            "rlhf": self.algorithm.name,
            "preference": self.preference.name,
        }
        return "-".join(
            filter(None, [self.text.name, self.language_model.name, names.get(self.text.name)])
        )

    @property
    def needs_hub(self) -> bool:
        return self.language_model.name == "hub"
