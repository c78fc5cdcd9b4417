"""The sections of a robot run: simulator, model, policy, demonstrations, SFT, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from vla.config.algorithm import Algorithm
from vla.config.section import Count, CountOrZero, Even, Fraction, NonNegative, Positive, Schedule, Section
from vla.config.training import Evaluation, Lora, Rl, Train


class Sim(Section):
    task: str | Annotated[tuple[str, ...], Field(min_length=1)]
    robot: Literal["panda", "gantry"]
    num_envs: Count
    cameras: Annotated[tuple[str, ...], Field(min_length=1)]
    image_size: Count
    max_steps: Count
    renderer: Literal["auto", "egl", "warp"]
    num_threads: CountOrZero
    num_distractors: CountOrZero
    perturbation: Literal["none", "camera", "light", "texture", "wording", "start"]
    reward: Annotated[dict[str, float], Field(min_length=1)]
    randomization: dict[str, Any]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that take turns."""
        return (self.task,) if isinstance(self.task, str) else self.task

    @property
    def label(self) -> str:
        """The tasks in one word."""
        return "+".join(self.tasks)


class GymSim(Section):
    id: str
    make: dict[str, Any]
    robot: str
    num_envs: Count
    cameras: Annotated[tuple[str, ...], Field(min_length=1, max_length=1)]
    image_size: Count
    max_steps: Count
    renderer: Literal["auto", "egl"]
    instruction: str
    success: tuple[str, ...]
    success_return: float | None
    proprio: tuple[str, ...]
    proprio_size: Count | None
    reward: Annotated[dict[str, float], Field(min_length=1)]

    @property
    def task(self) -> str:
        """What it is called where a task has a name."""
        return self.label

    @property
    def tasks(self) -> tuple[str, ...]:
        """There is one."""
        return (self.label,)

    @property
    def label(self) -> str:
        """The environment in one word, fit for the name of a folder."""
        return "-".join([self.id, *(str(v) for k, v in self.make.items() if k == "env_name")]).replace("/", "-")


def kind_of_sim(value: Any) -> str:
    """Which of the two a section is: the ones of gymnasium have an id."""
    return "gym" if "id" in (value if isinstance(value, dict) else vars(value)) else "tabletop"


AnySim = Annotated[Annotated[Sim, Tag("tabletop")] | Annotated[GymSim, Tag("gym")], Discriminator(kind_of_sim)]


class SmallVision(Section):
    name: Literal["small"]
    width: Count
    depth: Count
    num_heads: Count
    stem_channels: Annotated[tuple[Count, ...], Field(min_length=1)]


class HubVision(Section):
    name: Literal["hub"]
    repository: str
    pretrained: bool


class OwnVision(Section):
    """The vision half of the vision-language model that `backbone` names."""

    name: Literal["own"]


class SmallBackbone(Section):
    name: Literal["small"]
    vocabulary_size: Count
    width: Count
    depth: Count
    num_heads: Count
    intermediate: Count


class SmolLM2Backbone(Section):
    name: Literal["smollm2"]


class HubBackbone(Section):
    name: Literal["hub"]
    repository: str


class VlmBackbone(Section):
    """A vision-language model of transformers, by hub name or folder."""

    name: Literal["vlm"]
    repository: str


class Model(Section):
    checkpoint: str | None
    vision: Annotated[SmallVision | HubVision | OwnVision, Field(discriminator="name")]
    backbone: Annotated[SmallBackbone | SmolLM2Backbone | HubBackbone | VlmBackbone, Field(discriminator="name")]
    freeze_vision: bool
    freeze_backbone: bool
    lora: Lora | None
    gradient_checkpointing: bool
    detach_critic: bool
    freeze_in_rl: Literal["nothing", "prefix", "all"]


class TokenPolicy(Section):
    name: Literal["token"]
    chunk: Count
    num_bins: Annotated[int, Field(ge=2)]
    binning: Literal["quantile", "uniform"]
    decoding: Literal["parallel", "autoregressive"]
    temperature: Positive
    instruction_length: Count


class FastPolicy(Section):
    name: Literal["fast"]
    chunk: Count
    instruction_length: Count
    num_tokens: Annotated[int, Field(ge=2, le=256)]
    scale: Positive
    temperature: Positive


class FlowPolicy(Section):
    name: Literal["flow"]
    chunk: Count
    instruction_length: Count
    num_steps: Count
    exploration: Literal["one_step", "all_steps", "learned_noise", "matching"]
    drawn_steps: Count
    noise_level: Positive
    min_noise: Positive
    max_noise: Positive
    width: Even
    intermediate: Count
    samples: Count
    time_alpha: Positive
    time_beta: Positive
    insulate: bool
    token_weight: NonNegative
    num_tokens: Annotated[int, Field(ge=2, le=256)]
    token_scale: Positive


class DiffusionPolicy(Section):
    name: Literal["diffusion"]
    chunk: Count
    instruction_length: Count
    num_steps: Count
    num_train_steps: Count
    prediction: Literal["epsilon", "sample", "v_prediction"]
    drawn_steps: Count
    min_std: Positive
    clip: Positive
    width: Even
    intermediate: Count
    samples: Count
    insulate: bool
    token_weight: NonNegative
    num_tokens: Annotated[int, Field(ge=2, le=256)]
    token_scale: Positive


class RegressionPolicy(Section):
    name: Literal["regression"]
    chunk: Count
    instruction_length: Count
    min_scale: Positive
    temperature: Positive


Policy = Annotated[
    TokenPolicy | FastPolicy | FlowPolicy | DiffusionPolicy | RegressionPolicy, Field(discriminator="name")
]


class Data(Section):
    path: str | None
    sentence: str | None
    num_demonstrations: Annotated[int, Field(ge=2)]
    image_format: Literal["images", "video"]
    burst_probability: Fraction
    question_weight: NonNegative
    question_scenes: Count
    question_batch_size: Count
    questions_per_scene: Count
    texts: tuple[str, ...]
    text_weight: NonNegative
    text_batch_size: Count
    text_tokens: Count
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)]


class Augment(Section):
    shift_pixels: CountOrZero
    light: Fraction


class Sft(Section):
    probe_steps: CountOrZero
    probe_passes: Count | None
    probe_batch_size: Count
    probe_learning_rate: Positive
    probe_only: bool
    num_steps: CountOrZero
    batch_size: Count
    learning_rate: Positive
    optimizer: Literal["adamw", "muon"]
    muon_learning_rate: Positive
    weight_decay: NonNegative
    warmup_fraction: Fraction
    schedule: Schedule
    max_grad_norm: Positive
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    evaluate_every: Count
    log_every: Count
    max_seconds: Positive | None
    augment: Augment


class Grounding(Section):
    num_steps: CountOrZero
    max_seconds: Positive | None
    batch_size: Count
    questions_per_scene: Count
    pool_size: Count
    fresh_per_step: CountOrZero
    sighting_share: Fraction
    sighting_weight: NonNegative
    plan_share: Fraction
    learning_rate: Positive
    muon_learning_rate: Positive
    weight_decay: NonNegative
    light: Fraction


class Recap(Section):
    num_rounds: CountOrZero
    starts_per_round: Count
    num_bins: Annotated[int, Field(ge=2)]
    value_steps: Count
    lookahead: Count | None
    positive_share: Annotated[float, Field(gt=0, lt=1)]
    label_dropout: Fraction
    positive: str
    negative: str
    guidance: Positive


class RobotConfig(Section):
    """Everything a run of a robot policy was told."""

    mode: Literal["robot"]
    run_dir: str | None
    resume: str | None
    sim: AnySim
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
    def needs_hub(self) -> bool:
        """Whether something is named that only the hub, or its local cache, can hold."""
        names = {self.model.vision.name, self.model.backbone.name}
        named = isinstance(self.model.backbone, VlmBackbone) and not Path(self.model.backbone.repository).exists()
        return "hub" in names or named or (self.data.path is not None and not Path(self.data.path).exists())
