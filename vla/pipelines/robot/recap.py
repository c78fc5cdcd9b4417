"""Advantage-conditioned training as a stage of a robot run (RECAP; pi*0.6, 2025).

Every round adds rollouts of the present policy. A value model and the head, which starts from SFT's
weights, are then fitted to all rollouts and the demonstrations. The vision-language model is
frozen: its features of every frame are computed once a round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.config.robot import Recap as Settings
from vla.config.robot import RobotConfig
from vla.data.advantage_tokens import with_advantage_token, without_advantage_token
from vla.data.demonstrations import Demonstrations
from vla.data.observations import Observer
from vla.evaluation.evaluate import evaluate_policy
from vla.evaluation.starts import StartManifest
from vla.models.heads import BinnedValue
from vla.models.vlm import VisionLanguageModel
from vla.pipelines.robot.imitation import action_tensors
from vla.pipelines.robot.sft import head_settings
from vla.policies.vla_policy import VlaPolicy
from vla.rl.protocols import VectorEnvironment
from vla.rl.rollout import collect_rollout
from vla.sft.advantage_conditioning import (
    expected_value,
    fit_values,
    lookahead_advantages,
    nearest_bins,
    returns_to_go,
    select_positive,
    value_features,
)
from vla.sft.head_pretraining import extract_features, train_head
from vla.training.resumable_work import ResumableWork, remove_finished_work
from vla.training.rollout_collection import SeededStarts, check_rewards
from vla.training.run import Run
from vla.training.seed import derive_seed
from vla.types import Observation, concatenate_rows, map_rows

ROWS_AT_ONCE = 128
POSITIVE = 1


@dataclass(frozen=True)
class Experience:
    """Decisions [R] of N trajectories, without advantage labels, and the trajectories' success."""

    observation: Observation
    actions: Float[Tensor, "R H A"]
    trajectory: Int[Tensor, "R"]
    success: Bool[Tensor, "N"]


def conditioned_observer(policy: VlaPolicy, observer: Observer, settings: Settings) -> Observer:
    """The observer of a policy after RECAP, which adds the positive label to instructions.

    Sets the policy's guidance. Without rounds, `observer` itself.
    """
    if not settings.num_rounds:
        return observer
    policy.guidance = settings.guidance
    return replace(observer, label=settings.positive_label)


class RecapTrainer:
    """Runs the rounds of RECAP on a policy."""

    def __init__(
        self,
        run: Run,
        config: RobotConfig,
        policy: VlaPolicy,
        environment: VectorEnvironment,
        observer: Observer,
        starts: StartManifest,
        demonstrations: Demonstrations,
    ):
        self.run = run
        self.config = config
        self.policy = policy
        self.environment = environment
        self.observer = observer
        self.starts = starts
        self.demonstrations, _ = demonstrations.split(
            config.data.holdout_fraction, config.train.seed
        )
        self.labels = [
            observer.words(config.recap.negative_label),
            observer.words(config.recap.positive_label),
        ]
        self.seeds = SeededStarts(
            starts.train.first, starts.train.last, derive_seed(config.train.seed, "recap") % 2**32
        )

    def train(self) -> Observer:
        """Run all rounds; the observer of the trained policy.

        A resumed run keeps the finished rounds and the rollouts of the current one.
        """
        settings = self.config.recap
        sft_weights = {name: value.clone() for name, value in self.policy.state_dict().items()}
        saved = self.run.load("recap")
        acting = self.observer
        num_done = 0
        experience: list[Experience] = []
        if saved is not None:
            num_done = saved["round"]
            sft_weights = saved["first"]
            self.policy.load_state_dict(saved["policy"])
            experience = [
                Experience(Observation(**part.pop("observation")), **part)
                for part in saved["experience"]
            ]
            acting = conditioned_observer(self.policy, self.observer, settings)
        with self.run.progress.bar("RECAP", settings.num_rounds, num_done) as bar:
            for number in range(num_done, settings.num_rounds):
                experience.append(self._collect(number, acting))
                metrics = self._learn(number, sft_weights, experience)
                # The first round acts without a label: SFT trains without labels.
                acting = conditioned_observer(self.policy, self.observer, settings)
                metrics["validation_success"] = self._validate(acting)
                self.run.log.write("recap", number + 1, metrics)
                bar.advance(
                    1, **{name: metrics[name] for name in ("rollout_success", "validation_success")}
                )
                state = {
                    "policy": self.policy.state_dict(),
                    "first": sft_weights,
                    "round": number + 1,
                    "experience": [
                        vars(part) | {"observation": vars(part.observation)} for part in experience
                    ],
                }
                self.run.save("recap", number + 1, state)
                self.run.results.setdefault("recap", []).append(metrics)
                self.run.check_stop()
        remove_finished_work(self.run, "recap")
        self.run.finish_stage("recap", {"num_rounds": settings.num_rounds})
        return acting

    def _collect(self, number: int, observe: Observer) -> Experience:
        """Sample episodes of the present policy; their labels are removed."""
        seeds = self.seeds.draw(number, 0, self.config.recap.starts_per_round)
        pieces = ResumableWork(self.run, "recap", number)
        rollout = pieces.next_rollout(
            lambda: collect_rollout(
                self.policy, self.environment, seeds, 1, observe, version=number, saver=pieces
            )
        )
        check_rewards(number, rollout)
        assert rollout.action is not None
        assert rollout.success is not None
        return Experience(
            without_advantage_token(rollout.observation),
            rollout.action,
            rollout.trajectory,
            rollout.success > 0.5,
        )

    @property
    def _max_decisions(self) -> int:
        """Most decisions of an episode."""
        return self.config.sim.max_steps // self.policy.chunk

    def _learn(
        self, number: int, sft_weights: dict[str, Tensor], experience: list[Experience]
    ) -> dict[str, float]:
        """Fit value model and head to all experience so far; metrics of the round."""
        settings = self.config.recap
        rollouts = concat_experience(experience)
        self.policy.load_state_dict(sft_weights)
        returns = returns_to_go(rollouts.trajectory, rollouts.success, self._max_decisions)
        values, metrics = self._values(rollouts.observation, returns)
        advantages = lookahead_advantages(values, returns, rollouts.trajectory, settings.lookahead)
        positive = select_positive(advantages, settings.positive_fraction)
        torch.manual_seed(derive_seed(self.config.train.seed, f"recap {number}") % 2**63)
        self._imitate(rollouts, positive)
        in_success = rollouts.success[rollouts.trajectory]
        return metrics | {
            "rollout_success": float(experience[-1].success.float().mean()),
            "positive_in_successes": float(
                positive[in_success].float().sum() / in_success.sum().clamp(min=1)
            ),
            "positive_in_failures": float(
                positive[~in_success].float().sum() / (~in_success).sum().clamp(min=1)
            ),
            "num_decisions": float(len(positive)),
        }

    def _values(
        self, observation: Observation, returns: Float[Tensor, "R"]
    ) -> tuple[Float[Tensor, "R"], dict[str, float]]:
        """Values of the rollouts' decisions, by a model fitted to rollouts and demonstrations."""
        settings = self.config.recap
        model = self.policy.model
        features = torch.cat([value_features(model, part) for part in split_rows(observation)])
        demonstration_features, demonstration_returns = self._demonstration_values(model)
        head = BinnedValue(features.shape[1], settings.num_bins)
        loss = fit_values(
            head,
            torch.cat([features, demonstration_features]),
            nearest_bins(torch.cat([returns, demonstration_returns]), settings.num_bins),
            settings.value_steps,
        )
        with torch.no_grad():
            values = expected_value(head(features))
        explained = 1 - (returns - values).var() / returns.var().clamp(min=1e-8)
        return values, {"value_loss": loss, "value_explained_variance": float(explained)}

    def _demonstration_values(
        self, model: VisionLanguageModel
    ) -> tuple[Float[Tensor, "M f"], Float[Tensor, "M"]]:
        """Features and returns of demonstrations, at every `chunk`-th frame."""
        data = self.demonstrations
        chunk = self.policy.chunk
        frames = np.arange(0, data.num_frames, chunk)
        num_left = data.columns.episode_end[data.rows[frames]] - 1 - data.rows[frames]
        batches = (
            data.batch(frames[start : start + ROWS_AT_ONCE], chunk)
            for start in range(0, len(frames), ROWS_AT_ONCE)
        )
        features = torch.cat([value_features(model, self.observer(batch)) for batch in batches])
        returns = torch.from_numpy(-num_left / self.config.sim.max_steps).float().clamp(min=-1)
        return features, returns

    def _imitate(self, rollouts: Experience, positive: Bool[Tensor, "R"]) -> None:
        """Train the head on labelled rollouts, and on demonstrations, which are all positive.

        `recap.label_dropout` of the rows have no label.
        """
        settings = self.config.recap

        def with_labels(observation: Observation, labels: Int[Tensor, "B"]) -> Observation:
            is_labelled = torch.rand(len(labels)) >= settings.label_dropout
            return with_advantage_token(
                observation, self.labels, torch.where(is_labelled, labels, torch.tensor(-1))
            )

        def batches() -> Iterator[tuple[Observation, Tensor, Tensor]]:
            data = self.demonstrations
            for start in range(0, data.num_frames, ROWS_AT_ONCE):
                frames = np.arange(start, min(start + ROWS_AT_ONCE, data.num_frames))
                batch = data.batch(frames, self.policy.chunk)
                labels = torch.full((len(batch.actions),), POSITIVE)
                actions, action_mask = action_tensors(batch)
                yield with_labels(self.observer(batch), labels), actions, action_mask
            for observation, actions, labels in zip(
                split_rows(rollouts.observation),
                rollouts.actions.split(ROWS_AT_ONCE),
                positive.long().split(ROWS_AT_ONCE),
                strict=True,
            ):
                every_step = torch.ones(actions.shape[:2], dtype=torch.bool)
                yield with_labels(observation, labels), actions, every_step

        features = extract_features(self.policy, batches())
        training = head_settings(self.config.sft, len(features))
        # A stop leaves the run at once: a head that is half trained is not saved.
        train_head(self.policy, features, training, lambda step, metrics: self.run.check_stop())

    def _validate(self, acting: Observer) -> float:
        """Greedy success rate on the validation starts."""
        seeds = self.starts.validation.take(self.config.evaluation.num_validation_starts)
        result = evaluate_policy(
            self.policy, self.environment, seeds.tolist(), acting, temperature=None
        )
        return float(result.success.mean())


def recap_stage(
    run: Run,
    config: RobotConfig,
    policy: VlaPolicy,
    environment: VectorEnvironment,
    observer: Observer,
    starts: StartManifest,
    demonstrations: Demonstrations,
) -> Observer:
    """Run RECAP where `recap.num_rounds` is above 0; the observer for the policy afterwards."""
    if not config.recap.num_rounds:
        return observer
    with run.stage("recap"):
        return RecapTrainer(
            run, config, policy, environment, observer, starts, demonstrations
        ).train()


def split_rows(observation: Observation) -> list[Observation]:
    """The observation in parts of `ROWS_AT_ONCE` rows."""

    def part(start: int) -> Observation:
        return map_rows(observation, lambda tensor: tensor[start : start + ROWS_AT_ONCE])

    return [part(start) for start in range(0, len(observation.tokens), ROWS_AT_ONCE)]


def concat_experience(experience: list[Experience]) -> Experience:
    """The experience of all rounds as one; trajectories are numbered consecutively."""
    offsets = np.cumsum([0, *(len(part.success) for part in experience)])
    return Experience(
        concatenate_rows([part.observation for part in experience]),
        torch.cat([part.actions for part in experience]),
        torch.cat([part.trajectory + int(offset) for part, offset in zip(experience, offsets)]),
        torch.cat([part.success for part in experience]),
    )
