"""Policies of LeRobot as policies of RL: ACT with a distribution around its chunk.

ACT (Zhao et al. 2023) predicts a chunk and trains by its absolute error. Here the prediction is the
centre of a Laplace or normal distribution in LeRobot's normalised actions, with one scale for every
control step and action dimension. Each number of the chunk is one draw. Greedy decisions are
LeRobot's own.

Shapes: `B` decisions, `H` control steps that are executed before the next decision
(`n_action_steps`), `A` action dimensions, `L = H A` draws, `d` width of ACT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vla.devices import to_device
from vla.finite_checks import check_finite
from vla.models.heads import ValueHead
from vla.policies.regression import draw_laplace
from vla.policies.traits import Cache
from vla.ranges import InstructionLength, Positive, SmallCount, Temperature
from vla.types import ActionScores, Decision, Observation, Trace

IMAGES, STATE = "observation.images.", "observation.state"
MIN_SCALE = 1e-3
"""Least scale of the distribution, in normalised actions."""

Distribution = Literal["laplace", "normal"]


@dataclass(frozen=True)
class LeRobotSettings:
    """Settings of `policy=lerobot`, which `policy.path` chooses for a checkpoint of LeRobot."""

    cache: ClassVar[Cache | None] = "perceived"
    can_guide: ClassVar[bool] = False
    unused: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    chunk: SmallCount
    instruction_length: InstructionLength
    distribution: Distribution
    scale: Positive
    learn_scale: bool
    temperature: Temperature


def encode_text(text: str, length: int) -> np.ndarray:
    """The UTF-8 bytes of a text plus 1, padded with 0 to `length`.

    Raises:
        ValueError: the text is longer.
    """
    data = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) + 1
    if len(data) > length:
        raise ValueError(
            f"policy.instruction_length ({length}) is too small for the {len(data)} bytes of the "
            f"instruction {text!r}: raise it"
        )
    return np.pad(data, (0, length - len(data)))


def decode_text(tokens: Int[Tensor, "n"]) -> str:
    """The text of `encode_text`."""
    return bytes(int(token) - 1 for token in tokens.tolist() if token).decode()


@dataclass(frozen=True)
class TextObserver:
    """Converts observations of a simulator; tokens are the bytes of the instruction, because
    policies of LeRobot tokenize text themselves."""

    length: int

    def __call__(self, rows: Any) -> Observation:
        texts: Sequence[str] = rows.instruction
        tokens = torch.from_numpy(np.stack([encode_text(text, self.length) for text in texts]))
        images = {
            name: torch.from_numpy(np.ascontiguousarray(image))
            for name, image in rows.images.items()
        }
        proprio = torch.from_numpy(np.asarray(rows.proprio, dtype=np.float32))
        return Observation(images, proprio, tokens, tokens > 0)


class ActPolicy(nn.Module):
    """An ACT policy of LeRobot that draws around its chunk, and scores what it drew.

    `before` and `after` are LeRobot's processors. The network always runs in evaluation mode
    (no dropout, latent 0), as LeRobot acts with it: draws are scored as they were made.
    """

    def __init__(
        self, policy: Any, before: Any, after: Any, settings: LeRobotSettings, detach_critic: bool
    ) -> None:
        super().__init__()
        self.policy = policy
        self.before = before
        self.after = after
        self.settings = settings
        self.head: nn.Linear = policy.model.action_head
        num_actions = self.head.out_features
        first = torch.full((settings.chunk, num_actions), math.log(settings.scale))
        self.log_scale = nn.Parameter(first, requires_grad=settings.learn_scale)
        self.value_head = ValueHead(self.head.in_features, detach_critic)
        self.is_head_only = False
        self.train(self.training)

    @property
    def chunk(self) -> int:
        return self.settings.chunk

    @property
    def num_draws(self) -> int:
        return self.log_scale.numel()

    @property
    def temperature(self) -> float:
        return self.settings.temperature

    @property
    def can_train_head(self) -> bool:
        return True

    @property
    def can_redraw(self) -> bool:
        """True if traces hold the features that `redraw` needs."""
        return self.is_head_only

    def train(self, mode: bool = True) -> ActPolicy:
        """Set the mode of the parts that are not LeRobot's."""
        super().train(mode)
        self.policy.eval()
        return self

    def batch(self, observation: Observation) -> dict[str, Any]:
        """The normalised batch that LeRobot's network takes."""
        assert observation.proprio is not None
        images = {
            IMAGES + name: image.movedim(-1, 1).float() / 255
            for name, image in observation.images.items()
        }
        texts = [decode_text(tokens) for tokens in observation.tokens]
        # The processors may not write into the rollout.
        return self.before({**images, STATE: observation.proprio.clone(), "task": texts})  # type: ignore[no-any-return]

    def features(self, observation: Observation) -> Float[Tensor, "B H d"]:
        """Input of the last layer for the control steps that are executed."""
        batch = self.batch(observation)
        if self.policy.config.image_features:
            batch["observation.images"] = [
                batch[name] for name in self.policy.config.image_features
            ]
        seen: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.policy.model(batch)
        finally:
            hook.remove()
        return seen[0][:, : self.chunk]

    @property
    def scale(self) -> Float[Tensor, "H A"]:
        """Scale of the distribution, in normalised actions."""
        return self.log_scale.clamp(min=math.log(MIN_SCALE)).exp() * self.temperature

    def distribution(self, features: Float[Tensor, "B H d"]) -> torch.distributions.Distribution:
        """The distribution of the normalised chunk."""
        means = self.head(features)
        scale = self.scale.expand_as(means)
        if self.settings.distribution == "laplace":
            return torch.distributions.Laplace(means, scale, validate_args=False)
        return torch.distributions.Normal(means, scale, validate_args=False)

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        """Draw a chunk of actions [B, H, A] (physical units); greedy: LeRobot's own."""
        return self._decide(self.features(observation), greedy)

    @torch.no_grad()
    def redraw(self, observation: Observation, trace: Trace, count: int) -> Decision:
        """`count` further decisions for every row; those of a row are adjacent."""
        trace = to_device(trace, self.log_scale.device)
        return self._decide(trace["features"].repeat_interleave(count, 0), greedy=False)

    def _decide(self, features: Float[Tensor, "B H d"], greedy: bool) -> Decision:
        distribution = self.distribution(features)
        means = distribution.mean
        if greedy:
            drawn = means
        elif self.settings.distribution == "laplace":
            drawn = means + self.scale * draw_laplace(means)
        else:
            drawn = means + self.scale * torch.randn_like(means)
        check_finite("actions", drawn)
        actions = self.after(drawn.flatten(0, 1)).float().unflatten(0, drawn.shape[:2])
        logprobs = distribution.log_prob(drawn).flatten(1)
        trace = {"drawn": drawn} | ({"features": features} if self.is_head_only else {})
        mask = torch.ones_like(logprobs, dtype=torch.bool)
        return Decision(actions, trace, logprobs, mask, self._value(features))

    def score(self, observation: Observation, trace: Trace) -> ActionScores:
        """Log-probabilities, entropies [B, L] and values [B] of stored draws."""
        trace = to_device(trace, self.log_scale.device)
        stored = trace.get("features")
        features = self.features(observation) if stored is None else stored
        distribution = self.distribution(features)
        return ActionScores(
            distribution.log_prob(trace["drawn"]).flatten(1),
            distribution.entropy().flatten(1),
            self._value(features),
        )

    def _value(self, features: Float[Tensor, "B H d"]) -> Float[Tensor, "B"]:
        return self.value_head(features.mean(1))  # type: ignore[no-any-return]

    @torch.no_grad()
    def value(self, observation: Observation) -> Float[Tensor, "B"]:
        """The critic's estimate of the return from the observed state."""
        return self._value(self.features(observation))

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that only the critic uses."""
        return self.value_head.parameters()

    def freeze_model(self) -> None:
        """Freeze all but ACT's last layer and the scale; traces store the input of that layer."""
        self.policy.requires_grad_(False)
        self.head.requires_grad_(True)
        self.is_head_only = True

    def freeze_prefix(self) -> None:
        raise ValueError("rl.adapt: a policy of LeRobot takes head or weights")

    freeze_for_adapter = freeze_prefix
