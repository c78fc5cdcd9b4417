"""The learned reward of RLHF: SFT on the best samples, the reward model, and the reward that RL
climbs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vla.config.text import Rlhf
from vla.models.loading import plain_model
from vla.rewards.compose import RewardScores
from vla.rewards.gold_rewards import GoldReward
from vla.rewards.reward_model import RewardModel
from vla.rewards.sample import Sample
from vla.sft.examples import evaluate_rows, example_settings
from vla.sft.stage import TrainingStage
from vla.text.comparison_rows import split_by_prompt
from vla.text.open_ended_run import OpenEndedRun
from vla.text.preference_training import (
    Comparison,
    completion_rewards,
    fit_reward_model,
    reward_accuracy,
)
from vla.text.sft_losses import Example, fit_examples

HELD_OUT = 0.15
"""Share of the sampled prompts kept for the reward model's accuracy."""


class ProxyReward:
    """The reward model's reward of completions, with the gold reward beside it for the metrics."""

    def __init__(
        self,
        model: RewardModel,
        gold: GoldReward,
        truncation_reward: float | None,
        rows_at_once: int,
    ) -> None:
        self.model, self.gold = model, gold
        self.truncation_reward, self.rows_at_once = truncation_reward, rows_at_once

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> RewardScores:
        """Scores by the ids that were read and drawn; completions cut at the limit get
        `truncation_reward`."""

        def scored(rows: Sequence[int]) -> torch.Tensor:
            part = [samples[i] for i in rows]
            return completion_rewards(
                self.model,
                [list(s.prompt_ids) for s in part],
                [list(s.completion_ids) for s in part],
            )

        proxy = evaluate_rows(len(samples), self.rows_at_once, scored).numpy().astype(np.float32)
        gold = np.array([self.gold(s.prompt, s.completion) for s in samples], np.float32)
        total = proxy.copy()
        if self.truncation_reward is not None:
            total[[not sample.finished for sample in samples]] = self.truncation_reward
        return RewardScores(total, {"proxy": proxy, "gold": gold})


def fit_demonstrations(mode: OpenEndedRun, settings: Rlhf) -> None:
    """SFT on the best of several samples of each prompt, by the gold reward."""
    prompts = mode.prompts.train[: settings.demonstrations]
    answers = mode.sample_answers("demonstrations", prompts, settings.samples_per_prompt)
    best = [
        max(completions, key=lambda said: mode.gold(said.prompt, said.text))
        for completions in answers
    ]
    examples = [Example(said.prompt_ids, said.ids) for said in best]
    fit = example_settings(settings.sft, len(examples), "text.sft")
    with TrainingStage(mode.run, "sft", fit.num_steps) as stage:
        fit_examples(mode.training_policy, examples, fit, mode.run.seed("sft"), stage)


def train_reward_model(
    mode: OpenEndedRun, settings: Rlhf, comparisons: Sequence[Comparison]
) -> tuple[RewardModel, dict[str, Any]]:
    """A reward model on a copy of the policy, with rewards of mean 0 and deviation 1 on the
    completions compared; its results."""
    torch.manual_seed(mode.run.seed("reward head"))
    base = copy.deepcopy(plain_model(mode.parts.model)).requires_grad_(True)
    model = RewardModel(base, mode.parts.pad_id, mode.parts.autocast)
    train, held_out = split_by_prompt(comparisons, settings.prompts.holdout_fraction, HELD_OUT)
    fit = example_settings(settings.reward_model, len(train), "text.reward_model")
    with TrainingStage(mode.run, "reward model", fit.num_steps) as stage:
        fit_reward_model(
            model,
            train,
            fit,
            settings.head_learning_rate,
            settings.reward_centering_weight,
            mode.run.seed("reward model"),
            stage,
            mode.training_policy.threads,
        )
    right, pairs = reward_accuracy(model, held_out, fit.rows_per_pass)
    normalize_rewards(mode, model, [*held_out, *train], fit.rows_per_pass)
    model.requires_grad_(False)
    text = f"all {len(train)} rankings have one prompt, so none is held out to judge it by"
    if pairs:
        share = f"{right} of {pairs} pairs ({100 * right / pairs:.0f} %)"
        text = f"orders {share} of {len(held_out)} held-out rankings right"
    mode.run.progress.print_line(f"reward model: {text}")
    return model, {
        "rankings": len(train),
        "held-out rankings": len(held_out),
        "held-out pairs": pairs,
        "epochs": fit.num_epochs(len(train)),
        "accuracy": right / pairs if pairs else None,
    }


@torch.no_grad()
def normalize_rewards(
    mode: OpenEndedRun, model: RewardModel, comparisons: Sequence[Comparison], rows_per_pass: int
) -> None:
    """Scale the rewards to mean 0 and deviation 1 on these completions."""
    rows = [(c.prompt, completion) for c in comparisons for completion in c.completions]
    values = evaluate_rows(
        len(rows),
        rows_per_pass,
        lambda part: completion_rewards(
            model, [rows[i][0] for i in part], [rows[i][1] for i in part]
        ),
        mode.training_policy.threads,
    )
    model.normalize(values.to(mode.parts.device))
