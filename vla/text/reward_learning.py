"""Reward learning of RLHF: SFT on the best samples, reward model, and proxy reward."""

from __future__ import annotations

import copy
from collections.abc import Sequence

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
"""Share of the sampled prompts held out for the reward model's accuracy."""


class ProxyReward:
    """The reward of completions by the reward model; the gold reward is recorded for metrics."""

    def __init__(
        self,
        model: RewardModel,
        gold: GoldReward,
        truncation_reward: float | None,
        rows_per_pass: int,
    ) -> None:
        self.model = model
        self.gold = gold
        self.truncation_reward = truncation_reward
        self.rows_per_pass = rows_per_pass

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> RewardScores:
        """Rewards of the drawn token ids; truncated completions get `truncation_reward`."""

        def score(rows: Sequence[int]) -> torch.Tensor:
            part = [samples[i] for i in rows]
            return completion_rewards(
                self.model,
                [list(s.prompt_ids) for s in part],
                [list(s.completion_ids) for s in part],
            )

        proxy = evaluate_rows(len(samples), self.rows_per_pass, score).numpy().astype(np.float32)
        gold = np.array([self.gold(s.prompt, s.completion) for s in samples], np.float32)
        total = proxy.copy()
        if self.truncation_reward is not None:
            total[[not sample.finished for sample in samples]] = self.truncation_reward
        return RewardScores(total, {"proxy": proxy, "gold": gold})


def fit_demonstrations(open_ended: OpenEndedRun, settings: Rlhf) -> None:
    """SFT on the best of several samples of each prompt, by the gold reward."""
    prompts = open_ended.prompts.train[: settings.demonstrations]
    answers = open_ended.sample_answers("demonstrations", prompts, settings.samples_per_prompt)
    best = [
        max(completions, key=lambda answer: open_ended.gold(answer.prompt, answer.text))
        for completions in answers
    ]
    examples = [Example(answer.prompt_ids, answer.ids) for answer in best]
    fit = example_settings(settings.sft, len(examples), "text.sft")
    with TrainingStage(open_ended.run, "sft", fit.num_steps) as stage:
        fit_examples(open_ended.training_policy, examples, fit, open_ended.run.seed("sft"), stage)


def train_reward_model(
    open_ended: OpenEndedRun, settings: Rlhf, comparisons: Sequence[Comparison]
) -> tuple[RewardModel, dict[str, float | None]]:
    """(reward model on a copy of the policy, its results).

    Its rewards have mean 0 and standard deviation 1 on the compared completions.
    """
    torch.manual_seed(open_ended.run.seed("reward head"))
    base = copy.deepcopy(plain_model(open_ended.parts.model)).requires_grad_(True)
    model = RewardModel(base, open_ended.parts.pad_id, open_ended.parts.autocast)
    train, held_out = split_by_prompt(comparisons, settings.prompts.holdout_fraction, HELD_OUT)
    fit = example_settings(settings.reward_model, len(train), "text.reward_model")
    with TrainingStage(open_ended.run, "reward model", fit.num_steps) as stage:
        fit_reward_model(
            model,
            train,
            fit,
            settings.head_learning_rate,
            settings.reward_centering_weight,
            open_ended.run.seed("reward model"),
            stage,
            open_ended.training_policy.threads,
        )
    num_correct, num_pairs = reward_accuracy(model, held_out, fit.rows_per_pass)
    normalize_rewards(open_ended, model, [*held_out, *train], fit.rows_per_pass)
    model.requires_grad_(False)
    text = f"all {len(train)} rankings have one prompt, so there is no held-out accuracy"
    if num_pairs:
        share = f"{num_correct} of {num_pairs} pairs ({100 * num_correct / num_pairs:.0f} %)"
        text = f"orders {share} of {len(held_out)} held-out rankings correctly"
    open_ended.run.progress.print_line(f"reward model: {text}")
    return model, {
        "rankings": len(train),
        "held-out rankings": len(held_out),
        "held-out pairs": num_pairs,
        "epochs": fit.num_epochs(len(train)),
        "accuracy": num_correct / num_pairs if num_pairs else None,
    }


@torch.no_grad()
def normalize_rewards(
    open_ended: OpenEndedRun,
    model: RewardModel,
    comparisons: Sequence[Comparison],
    rows_per_pass: int,
) -> None:
    """Normalize the rewards to mean 0 and standard deviation 1 on these completions."""
    rows = [(c.prompt, completion) for c in comparisons for completion in c.completions]
    values = evaluate_rows(
        len(rows),
        rows_per_pass,
        lambda part: completion_rewards(
            model, [rows[i][0] for i in part], [rows[i][1] for i in part]
        ),
        open_ended.training_policy.threads,
    )
    model.normalize(values.to(open_ended.parts.device))
