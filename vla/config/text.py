"""The sections of a text run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vla.config.algorithm import Algorithm
from vla.config.section import Count, CountOrZero, NonNegative, Positive, Section
from vla.config.training import Lora, Rl, Train

OnBadRow = Literal["error", "skip"]
Share = Annotated[float, Field(gt=0, lt=1)]


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
    engine: Literal["own", "vllm"]
    lora: Lora | None
    gradient_checkpointing: bool


class HubLanguageModel(Section):
    name: Literal["hub"]
    repository: str
    engine: Literal["own", "vllm"]
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
    max_oversampling: Annotated[float, Field(ge=1)]
    num_problems: Count | None
    on_bad_row: OnBadRow
    holdout_fraction: Share
    num_evaluation: Count
    num_validation: Count
    num_beams: Count
    num_samples: CountOrZero
    rewards: Annotated[dict[str, float], Field(min_length=1)]
    tool: Literal["calculator"] | None
    max_turns: Count
    system: str | None
    format_steps: CountOrZero
    format_learning_rate: Positive
    max_prompt_tokens: Count
    max_new_tokens: Count | None
    sampling: SamplingSettings
    verifier_timeout_seconds: Positive


class Fit(Section):
    num_steps: CountOrZero
    batch_size: Count
    micro_batch_size: Count
    learning_rate: Positive
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]
    max_grad_norm: Positive


class Prompts(Section):
    path: str | None
    num_train: Count | None
    holdout_fraction: Share
    num_evaluation: Count


class Generation(Section):
    system: str | None
    max_prompt_tokens: Count
    max_new_tokens: Count
    sampling: SamplingSettings


class JudgeSettings(Section):
    name: Literal["gold", "model", "url"]
    noise: Annotated[float, Field(ge=0, lt=0.5)]
    rubric: str | None
    url: str | None
    model: str | None


class TextSft(Section):
    name: Literal["sft"]
    sources: Annotated[tuple[str, ...], Field(min_length=1)]
    weights: tuple[Positive, ...] | None
    holdout_fraction: Share
    row_tokens: Count
    system: str | None
    fit: Fit


class TextPreference(Section):
    name: Literal["preference", "rlaif"]
    comparisons: str | None
    rounds: Count
    samples_per_prompt: Annotated[int, Field(ge=2)]
    keep_fraction: Annotated[float, Field(gt=0, le=1)]
    judge: JudgeSettings
    gold: str
    prompts: Prompts
    generation: Generation
    fit: Fit


class Rlhf(Section):
    name: Literal["rlhf"]
    comparisons: str | None
    samples_per_prompt: Annotated[int, Field(ge=2)]
    demonstrations: CountOrZero
    unfinished_reward: float | None
    judge: JudgeSettings
    gold: str
    prompts: Prompts
    generation: Generation
    sft: Fit
    reward_model: Fit
    head_learning_rate: Positive
    centring: NonNegative


class Rejection(Section):
    name: Literal["rejection"]
    families: Annotated[tuple[str, ...], Field(min_length=1)]
    num_problems: Count | None
    on_bad_row: OnBadRow
    holdout_fraction: Share
    num_evaluation: Count
    rewards: Annotated[dict[str, float], Field(min_length=1)]
    min_reward: float
    rounds: Count
    problems_per_round: Count
    samples_per_prompt: Count
    verifier_timeout_seconds: Positive
    generation: Generation
    fit: Fit


class Control(Section):
    name: Literal["control"]
    levels: Annotated[int, Field(ge=2)]
    discrimination: Annotated[float, Field(ge=0)]
    beta: Positive
    guidance: Positive
    samples_per_prompt: Count
    gold: str
    prompts: Prompts
    generation: Generation
    fit: Fit


class Constitution(Section):
    name: Literal["constitution"]
    constitution: str | None
    rounds: Count
    gold: str
    prompts: Prompts
    generation: Generation
    sft: Fit
    fit: Fit


class Dpo(Section):
    name: Literal["dpo"]
    beta: Positive
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]


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
    Rlvr | TextSft | TextPreference | Rlhf | Rejection | Control | Constitution, Field(discriminator="name")
]
Preference = Annotated[Dpo | Ipo | Kto | PlackettLuce | Orpo | SimPo, Field(discriminator="name")]


class TextConfig(Section):
    """Everything a run of a language model was told."""

    mode: Literal["text"]
    run_dir: str | None
    resume: str | None
    text: TextMode
    language_model: LanguageModel
    algorithm: Algorithm
    preference: Preference
    rl: Rl
    train: Train

    @property
    def name(self) -> str:
        names = {"rlvr": self.algorithm.name, "rlhf": self.algorithm.name, "preference": self.preference.name}
        return "-".join(filter(None, [self.text.name, self.language_model.name, names.get(self.text.name)]))

    @property
    def needs_hub(self) -> bool:
        return self.language_model.name == "hub"
