"""The sections of a text run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vla.config.algorithm import Algorithm
from vla.config.section import Section
from vla.config.training import Lora, Rl, Train
from vla.ranges import (
    BelowHalf,
    BelowOne,
    Count,
    CountOrZero,
    Depth,
    Few,
    FewOrZero,
    Integer,
    LearningRate,
    Name,
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
    SomeNames,
    Temperature,
    Tokens,
    Weights,
)

Epochs = Annotated[Positive, Field(le=10**4)]
Samples = Annotated[Integer, Field(ge=2, le=10**4)]
MoreTokens = Annotated[Integer, Field(ge=1, le=10**6)]
Timeout = Annotated[float, Field(gt=0, ge=0.1, le=3600)]
"""Seconds; a process takes some hundredths to answer."""


class TinyLanguageModel(Section):
    name: Literal["tiny"]
    vocabulary_size: MoreTokens
    width: Size
    depth: Depth
    num_heads: Size
    lora: Lora | None
    gradient_checkpointing: bool


class SmolLM2(Section):
    name: Literal["smollm2"]
    engine: Literal["own", "vllm"]
    lora: Lora | None
    gradient_checkpointing: bool


class HubLanguageModel(Section):
    name: Literal["hub"]
    repository: Name
    engine: Literal["own", "vllm"]
    lora: Lora | None
    gradient_checkpointing: bool


LanguageModel = Annotated[
    TinyLanguageModel | SmolLM2 | HubLanguageModel, Field(discriminator="name")
]


class SamplingSettings(Section):
    temperature: Temperature
    top_k: CountOrZero
    top_p: PositiveFraction


class Rlvr(Section):
    name: Literal["rlvr"]
    families: SomeNames
    advance_at: Share | None
    max_oversampling: Annotated[float, Field(ge=1, le=100)]
    num_problems: Count | None
    on_bad_row: OnBadRow
    holdout_fraction: Share
    num_evaluation: Count
    num_validation: Count
    num_beams: Few
    num_samples: FewOrZero
    rewards: Weights
    tool: Literal["calculator"] | None
    max_turns: Few
    system: Name | None
    format_steps: CountOrZero
    format_learning_rate: LearningRate
    max_prompt_tokens: Tokens
    max_new_tokens: MoreTokens | None
    mask_truncated_completions: bool
    sampling: SamplingSettings
    verifier_timeout_seconds: Timeout


class Fit(Section):
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
    path: Name | None
    num_train: Count | None
    holdout_fraction: Share
    num_evaluation: Count


class Generation(Section):
    system: Name | None
    max_prompt_tokens: Tokens
    max_new_tokens: MoreTokens
    sampling: SamplingSettings


class JudgeSettings(Section):
    name: Literal["gold", "model", "url"]
    noise: BelowHalf
    rubric: Name | None
    url: Name | None
    model: Name | None


class TextSft(Section):
    name: Literal["sft"]
    sources: SomeNames
    weights: tuple[Positive, ...] | None
    on_bad_row: OnBadRow
    holdout_fraction: Share
    row_tokens: Tokens
    system: Name | None
    fit: Fit


class TextPreference(Section):
    name: Literal["preference", "rlaif"]
    comparisons: Name | None
    rounds: Few
    samples_per_prompt: Samples
    keep_fraction: PositiveFraction | None
    judge: JudgeSettings
    gold: Name
    on_bad_row: OnBadRow
    prompts: Prompts
    generation: Generation
    fit: Fit


class Rlhf(Section):
    name: Literal["rlhf"]
    comparisons: Name | None
    samples_per_prompt: Samples
    demonstrations: CountOrZero
    unfinished_reward: Number | None
    judge: JudgeSettings
    gold: Name
    on_bad_row: OnBadRow
    prompts: Prompts
    generation: Generation
    sft: Fit
    reward_model: Fit
    head_learning_rate: LearningRate
    centring: NonNegative


class Rejection(Section):
    name: Literal["rejection"]
    families: SomeNames
    num_problems: Count | None
    on_bad_row: OnBadRow
    holdout_fraction: Share
    num_evaluation: Count
    rewards: Weights
    min_reward: Number
    rounds: Few
    problems_per_round: Rows
    samples_per_prompt: Few
    verifier_timeout_seconds: Timeout
    generation: Generation
    fit: Fit


class Control(Section):
    name: Literal["control"]
    levels: Annotated[Integer, Field(ge=2, le=100)]
    discrimination: NonNegative
    beta: Positive
    guidance: Positive
    samples_per_prompt: Few
    gold: Name
    on_bad_row: OnBadRow
    prompts: Prompts
    generation: Generation
    fit: Fit


class Constitution(Section):
    name: Literal["constitution"]
    constitution: Name | None
    rounds: Few
    gold: Name
    on_bad_row: OnBadRow
    prompts: Prompts
    generation: Generation
    sft: Fit
    fit: Fit


class Dpo(Section):
    name: Literal["dpo"]
    beta: Positive
    label_smoothing: BelowHalf


class Ipo(Section):
    name: Literal["ipo"]
    beta: Positive
    per_token: bool


class Kto(Section):
    name: Literal["kto"]
    beta: Positive
    balance: bool


class PlackettLuce(Section):
    name: Literal["plackett_luce"]
    beta: Positive


class Orpo(Section):
    name: Literal["orpo"]
    weight: Positive


class SimPo(Section):
    name: Literal["simpo"]
    beta: Positive
    target_margin: NonNegative


TextMode = Annotated[
    Rlvr | TextSft | TextPreference | Rlhf | Rejection | Control | Constitution,
    Field(discriminator="name"),
]
Preference = Annotated[Dpo | Ipo | Kto | PlackettLuce | Orpo | SimPo, Field(discriminator="name")]


class TextConfig(Section):
    """Everything a run of a language model was told."""

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
