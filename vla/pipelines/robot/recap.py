"""Advantage-conditioned training as a stage (RECAP, pi*0.6): rollouts, a value model, labels, and
the head anew.

Every round adds rollouts of the present policy; value model and head (from SFT's weights) are then
fitted to all of them and the demonstrations, so no round forgets an earlier one. The
vision-language model stands still: what it sees of every frame is computed once a round.
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
NEGATIVE, POSITIVE = 0, 1


@dataclass(frozen=True)
class Experience:
    """Decisions [R] of N trajectories, without labels: what was seen and done, and whether it led
    to success."""

    observation: Observation
    actions: Float[Tensor, "R H A"]
    trajectory: Int[Tensor, "R"]
    success: Bool[Tensor, "N"]


def conditioned_observer(policy: VlaPolicy, observer: Observer, settings: Settings) -> Observer:
    """What a policy acts on after the stage: instructions with the label of good decisions, and
    guidance."""
    if not settings.num_rounds:
        return observer
    policy.guidance = settings.guidance
    return replace(observer, label=settings.positive_label)


class RecapTrainer:
    """The stage; `train` gives back the observer that asks for good decisions."""

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
        self.run, self.config, self.policy, self.environment = run, config, policy, environment
        self.observer, self.starts = observer, starts
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
        """All rounds; of a round that was stopped, what was collected is kept, and its fits begin
        anew."""
        settings, first = (
            self.config.recap,
            {k: v.clone() for k, v in self.policy.state_dict().items()},
        )
        saved, acting, done = self.run.load("recap"), self.observer, 0
        experience: list[Experience] = []
        if saved is not None:
            done, first = saved["round"], saved["first"]
            self.policy.load_state_dict(saved["policy"])
            experience = [
                Experience(Observation(**part.pop("observation")), **part)
                for part in saved["experience"]
            ]
            acting = conditioned_observer(self.policy, self.observer, settings)
        with self.run.progress.bar("RECAP", settings.num_rounds, done) as bar:
            for number in range(done, settings.num_rounds):
                experience.append(self._collect(number, acting))
                metrics = self._learn(number, first, experience)
                acting = conditioned_observer(
                    self.policy, self.observer, settings
                )  # SFT had never seen a label
                metrics["validation_success"] = self._validate(acting)
                self.run.log.write("recap", number + 1, metrics)
                bar.advance(
                    1, **{name: metrics[name] for name in ("rollout_success", "validation_success")}
                )
                kept = [vars(part) | {"observation": vars(part.observation)} for part in experience]
                whole = {
                    "policy": self.policy.state_dict(),
                    "first": first,
                    "round": number + 1,
                    "experience": kept,
                }
                self.run.save("recap", number + 1, whole)
                self.run.results.setdefault("recap", []).append(metrics)
                self.run.check_stop()
        remove_finished_work(self.run, "recap")
        self.run.finish_stage("recap", {"num_rounds": settings.num_rounds})
        return acting

    def _collect(self, number: int, observe: Observer) -> Experience:
        """Sampled episodes of the present policy, the labels it was asked with taken away."""
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
    def _longest(self) -> int:
        """The most decisions that an episode has."""
        return self.config.sim.max_steps // self.policy.chunk

    def _learn(
        self, number: int, first: dict[str, Tensor], experience: list[Experience]
    ) -> dict[str, float]:
        """Value model, labels and head, from all experience so far; what came of it."""
        settings, rollouts = self.config.recap, concat_experience(experience)
        self.policy.load_state_dict(first)
        returns = returns_to_go(rollouts.trajectory, rollouts.success, self._longest)
        values, metrics = self._values(rollouts.observation, returns)
        found = lookahead_advantages(values, returns, rollouts.trajectory, settings.lookahead)
        good = select_positive(found, settings.positive_fraction)
        torch.manual_seed(derive_seed(self.config.train.seed, f"recap {number}") % 2**63)
        self._imitate(rollouts, good)
        in_success = rollouts.success[rollouts.trajectory]
        return metrics | {
            "rollout_success": float(experience[-1].success.float().mean()),
            "positive_in_successes": float(
                good[in_success].float().sum() / in_success.sum().clamp(min=1)
            ),
            "positive_in_failures": float(
                good[~in_success].float().sum() / (~in_success).sum().clamp(min=1)
            ),
            "num_decisions": float(len(good)),
        }

    def _values(
        self, observation: Observation, returns: Float[Tensor, "R"]
    ) -> tuple[Float[Tensor, "R"], dict[str, float]]:
        """What a value model fitted to rollouts and demonstrations expects of each decision of the
        rollouts."""
        settings, model = self.config.recap, self.policy.model
        seen = torch.cat([value_features(model, part) for part in split_rows(observation)])
        shown, goals = self._demonstrated(model)
        head = BinnedValue(seen.shape[1], settings.num_bins)
        bins = nearest_bins(torch.cat([returns, goals]), settings.num_bins)
        loss = fit_values(head, torch.cat([seen, shown]), bins, settings.value_steps)
        with torch.no_grad():
            values = expected_value(head(seen))
        explained = 1 - (returns - values).var() / returns.var().clamp(min=1e-8)
        return values, {"value_loss": loss, "value_explained_variance": float(explained)}

    def _demonstrated(
        self, model: VisionLanguageModel
    ) -> tuple[Float[Tensor, "M f"], Float[Tensor, "M"]]:
        """Features and returns of demonstrations, at as many frames apart as decisions are."""
        data, chunk = self.demonstrations, self.policy.chunk
        frames = np.arange(0, data.num_frames, chunk)
        left = data.columns.episode_end[data.rows[frames]] - 1 - data.rows[frames]
        batches = (
            data.batch(frames[i : i + ROWS_AT_ONCE], chunk)
            for i in range(0, len(frames), ROWS_AT_ONCE)
        )
        features = torch.cat([value_features(model, self.observer(batch)) for batch in batches])
        returns = torch.from_numpy(-left / self.config.sim.max_steps).float().clamp(min=-1)
        return features, returns

    def _imitate(self, rollouts: Experience, good: Bool[Tensor, "R"]) -> None:
        """Train the head on rollouts with their labels and demonstrations, which are all good; some
        without a label."""
        settings = self.config.recap

        def with_labels(observation: Observation, which: Int[Tensor, "B"]) -> Observation:
            keep = torch.rand(len(which)) >= settings.label_dropout
            return with_advantage_token(
                observation, self.labels, torch.where(keep, which, torch.tensor(-1))
            )

        def batches() -> Iterator[tuple[Observation, Tensor, Tensor]]:
            data = self.demonstrations
            for at in range(0, data.num_frames, ROWS_AT_ONCE):
                batch = data.batch(
                    np.arange(at, min(at + ROWS_AT_ONCE, data.num_frames)), self.policy.chunk
                )
                which = torch.full((len(batch.actions),), POSITIVE)
                yield with_labels(self.observer(batch), which), *action_tensors(batch)
            everything = torch.ones(rollouts.actions.shape[:2], dtype=torch.bool)
            parts = (
                split_rows(rollouts.observation),
                rollouts.actions.split(ROWS_AT_ONCE),
                good.long().split(ROWS_AT_ONCE),
            )
            for seen, actions, which in zip(*parts, strict=True):
                yield with_labels(seen, which), actions, everything[: len(actions)]

        features = extract_features(self.policy, batches())
        training = head_settings(self.config, len(features))
        # A stop leaves the run at once: half a head is never kept.
        train_head(self.policy, features, training, lambda step, metrics: self.run.check_stop())

    def _validate(self, acting: Observer) -> float:
        seeds = self.starts.validation.take(self.config.evaluation.num_validation_starts).tolist()
        return float(
            evaluate_policy(
                self.policy, self.environment, seeds, acting, temperature=None
            ).success.mean()
        )


def recap_stage(
    run: Run,
    config: RobotConfig,
    policy: VlaPolicy,
    environment: VectorEnvironment,
    observer: Observer,
    starts: StartManifest,
    demonstrations: Demonstrations,
) -> Observer:
    """The stage where `recap.num_rounds` asks for it; the observer that goes with the policy from
    here on."""
    if not config.recap.num_rounds:
        return observer
    with run.stage("recap"):
        return RecapTrainer(
            run, config, policy, environment, observer, starts, demonstrations
        ).train()


def split_rows(observation: Observation) -> list[Observation]:
    """The observation in parts of `ROWS_AT_ONCE` rows."""
    count = len(observation.tokens)
    return [
        map_rows(observation, lambda t, i=i: t[i : i + ROWS_AT_ONCE])
        for i in range(0, count, ROWS_AT_ONCE)
    ]


def concat_experience(experience: list[Experience]) -> Experience:
    """All rounds as one; trajectories are numbered on."""
    before = np.cumsum([0, *(len(part.success) for part in experience)])
    return Experience(
        concatenate_rows([part.observation for part in experience]),
        torch.cat([part.actions for part in experience]),
        torch.cat([part.trajectory + int(n) for part, n in zip(experience, before)]),
        torch.cat([part.success for part in experience]),
    )
