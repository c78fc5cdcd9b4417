"""The sections of a robot run: simulator, model, policy, demonstrations, SFT, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vla.config.algorithm import Algorithm
from vla.config.policy import Policy
from vla.config.section import Section
from vla.config.simulation import AnySimulation, Pixels
from vla.config.training import Evaluation, Lora, Rl, Train
from vla.ranges import (
    Bins,
    Count,
    CountOrZero,
    Depth,
    Fraction,
    Integer,
    LearningRate,
    Name,
    Names,
    NonNegative,
    OnBadRow,
    Positive,
    Rows,
    Schedule,
    Seconds,
    Share,
    Size,
    SmallCount,
    SmallCountOrZero,
    Tokens,
    WeightDecay,
)

Vocabulary = Annotated[Integer, Field(ge=1, le=10**6)]
ImageTokens = Annotated[Integer, Field(ge=1, le=10**4)]
Scenes = Annotated[Integer, Field(ge=1, le=10**6)]


class SmallVision(Section):
    """A small vision transformer, trained from random weights; sizes in channels."""

    name: Literal["small"]
    width: Size
    depth: Depth
    num_heads: Size
    stem_channels: Annotated[tuple[Size, ...], Field(min_length=1, max_length=8)]


class HubVision(Section):
    """A vision encoder of timm, by its name there."""

    name: Literal["hub"]
    repository: Name
    pretrained: bool
    image_size: Pixels | None
    num_tokens: ImageTokens | None


class OwnVision(Section):
    """The vision half of the vision-language model that `backbone` names."""

    name: Literal["own"]
    image_size: Pixels | None
    num_tokens: ImageTokens | None


class SmallBackbone(Section):
    """A small Llama decoder, trained from random weights."""

    name: Literal["small"]
    vocabulary_size: Vocabulary
    width: Size
    depth: Depth
    num_heads: Size
    intermediate: Size


class SmolLM2Backbone(Section):
    """SmolLM2-135M-Instruct as the language backbone."""

    name: Literal["smollm2"]


class HubBackbone(Section):
    """A causal language model of transformers, by hub name or folder."""

    name: Literal["hub"]
    repository: Name


class VlmBackbone(Section):
    """A vision-language model of transformers, by hub name or folder."""

    name: Literal["vlm"]
    repository: Name
    native_layout: bool


class Model(Section):
    """The vision-language model: vision encoder, language backbone, and what of them trains."""

    checkpoint: Name | None
    vision: Annotated[SmallVision | HubVision | OwnVision, Field(discriminator="name")]
    backbone: Annotated[
        SmallBackbone | SmolLM2Backbone | HubBackbone | VlmBackbone, Field(discriminator="name")
    ]
    freeze_vision: bool
    freeze_backbone: bool
    lora: Lora | None
    gradient_checkpointing: bool
    detach_critic: bool


class Data(Section):
    """Demonstrations, and the questions and texts of co-training."""

    path: Name | None
    sentence: Name | None
    failures: Literal["keep", "drop"]
    max_outside_limits: Fraction
    num_demonstrations: Annotated[Integer, Field(ge=2, le=10**5)]
    image_format: Literal["images", "video"]
    expert_perturbation_probability: Fraction
    question_weight: NonNegative
    num_question_scenes: Scenes
    question_batch_size: Rows
    questions_per_scene: SmallCount
    texts: Names
    text_weight: NonNegative
    text_batch_size: Rows
    text_tokens: Tokens
    on_bad_row: OnBadRow
    holdout_fraction: Share


class Augment(Section):
    """Random changes of the images that SFT trains on."""

    shift_pixels: SmallCountOrZero
    light: Fraction


class Sft(Section):
    """Supervised fine-tuning on demonstrations: first the head alone, then the whole policy."""

    head_steps: CountOrZero
    max_head_epochs: SmallCount | None
    head_batch_size: Rows
    head_learning_rate: LearningRate
    head_only: bool
    num_steps: CountOrZero
    batch_size: Rows
    micro_batch_size: Rows | None
    learning_rate: LearningRate
    optimizer: Literal["adamw", "muon"]
    muon_learning_rate: LearningRate
    weight_decay: WeightDecay
    warmup_fraction: Fraction
    schedule: Schedule
    max_grad_norm: Positive
    ema_decay: Share | None
    evaluate_every: Count
    log_every: Count
    max_seconds: Seconds | None
    augment: Augment


class Grounding(Section):
    """Pretraining of a vision-language model on questions about rendered scenes."""

    num_steps: CountOrZero
    max_seconds: Seconds | None
    batch_size: Rows
    questions_per_scene: SmallCount
    pool_size: Scenes
    num_new_scenes_per_step: SmallCountOrZero
    detection_fraction: Fraction
    detection_weight: NonNegative
    plan_fraction: Fraction
    learning_rate: LearningRate
    muon_learning_rate: LearningRate
    weight_decay: WeightDecay
    light: Fraction


class Recap(Section):
    """Advantage-conditioned training between SFT and RL (RECAP)."""

    num_rounds: SmallCountOrZero
    starts_per_round: Rows
    num_bins: Bins
    value_steps: Count
    lookahead: SmallCount | None
    positive_fraction: Share
    label_dropout: Fraction
    positive_label: str
    negative_label: str
    guidance: Positive


class RobotConfig(Section):
    """All settings of a robot run."""

    mode: Literal["robot"]
    run_dir: Name | None
    resume: Name | None
    sim: AnySimulation
    model: Model
    policy: Policy
    data: Data
    grounding: Grounding
    sft: Sft
    recap: Recap
    algorithm: Algorithm
    rl: Rl
    evaluation: Evaluation
    train: Train

    @property
    def name(self) -> str:
        return f"{self.sim.label}-{self.policy.name}-{self.algorithm.name}"

    @property
    def needs_demonstrations(self) -> bool:
        """True where a stage reads demonstrations: always, except for RL from a policy alone."""
        return (
            self.policy.path is None
            or self.sft.num_steps > 0
            or self.sft.head_steps > 0
            or self.recap.num_rounds > 0
            or self.policy.statistics == "data"
        )

    @property
    def needs_hub(self) -> bool:
        """True where a model or dataset is on the hub or in its local cache."""
        names = {self.model.vision.name, self.model.backbone.name}
        named = (
            isinstance(self.model.backbone, VlmBackbone)
            and not Path(self.model.backbone.repository).exists()
        )
        return (
            "hub" in names
            or named
            or any(
                path is not None and not Path(path).exists()
                for path in (self.data.path, self.policy.path)
            )
        )
