"""The InstructGPT pipeline (Ouyang 2022): SFT, a reward model from preferences, PPO against it with
a KL penalty.

Where the gold reward of a synthetic judge is known, every iteration shows it next to the reward
model's (Gao 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from vla.config.text import Rlhf, TextConfig
from vla.data.chat import observe_prompts
from vla.data.rows import RowReader
from vla.decoding.causal import plain_model
from vla.rewards.compose import Scores
from vla.rewards.gold import Gold
from vla.rewards.reward_model import RewardModel
from vla.rewards.sample import Sample
from vla.rl.critic import with_critic
from vla.rl.rollout import collect_rollout
from vla.sft.examples import evaluate_rows, example_settings
from vla.sft.stage import TrainingStage
from vla.text.comparison_rows import read_comparisons, split_by_prompt
from vla.text.comparison_sources import encode_read, sample_comparisons
from vla.text.environment import TextEnvironment
from vla.text.open_ended_evaluation import distinct_pairs
from vla.text.open_mode import OpenMode
from vla.text.preferring import Comparison, fit_reward_model, reward_accuracy, rewards_of
from vla.text.problem_evaluation import rows_of_rollout
from vla.text.problems import Problem
from vla.text.refine import Refinement
from vla.text.rlvr import append_samples, episode_numbers
from vla.text.supervised import Example, fit_examples
from vla.train.pieces import Pieces
from vla.train.run import Run
from vla.types import Rollout

HELD_OUT = 0.15
"""Share of the sampled prompts kept for the reward model's accuracy."""


class ProxyReward:
    """The reward model's reward of completions, with the gold reward beside it for the metrics."""

    def __init__(
        self, model: RewardModel, gold: Gold, unfinished_reward: float | None, rows_at_once: int
    ) -> None:
        self.model, self.gold = model, gold
        self.unfinished_reward, self.rows_at_once = unfinished_reward, rows_at_once

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> Scores:
        """Scores by the ids that were read and drawn; completions cut at the limit get
        `unfinished_reward`."""

        def scored(rows: Sequence[int]) -> torch.Tensor:
            part = [samples[i] for i in rows]
            return rewards_of(
                self.model,
                [list(s.prompt_ids) for s in part],
                [list(s.completion_ids) for s in part],
            )

        proxy = evaluate_rows(len(samples), self.rows_at_once, scored).numpy().astype(np.float32)
        gold = np.array([self.gold(s.prompt, s.completion) for s in samples], np.float32)
        total = proxy.copy()
        if self.unfinished_reward is not None:
            total[[not sample.finished for sample in samples]] = self.unfinished_reward
        return Scores(total, {"proxy": proxy, "gold": gold})


def run_rlhf(config: TextConfig, run: Run) -> dict[str, Any]:
    """SFT, reward model, PPO; gold reward before and after on held-out prompts."""
    settings = config.text
    assert isinstance(settings, Rlhf)
    reader, read = RowReader(settings.on_bad_row), None
    if settings.comparisons is not None:
        read = read_comparisons(
            settings.comparisons, None, settings.prompts.holdout_fraction, None, reader
        )
    mode = OpenMode.start(config, run, settings.generation, settings.prompts, settings.gold, reader)
    given = None if read is None else encode_read(mode, settings.comparisons, read)
    before = mode.evaluate("before")
    if settings.demonstrations:
        learn_demonstrations(mode, settings)
    comparisons, undecided = given, 0
    if comparisons is None:
        comparisons, undecided = sample_comparisons(
            mode, settings.judge, settings.samples_per_prompt, 0, whole=True
        )
    model, numbers = learn_rewards(mode, settings, comparisons)
    ended = optimize(mode, settings, model)
    more = {"rl": ended, "reward model": {**numbers, "undecided prompts": undecided}}
    return mode.finish("RLHF: proxy and gold reward", before, more, of=ended["num_iterations"])


def learn_demonstrations(mode: OpenMode, settings: Rlhf) -> None:
    """SFT on the best of several samples of each prompt, by the gold reward."""
    prompts = mode.prompts.train[: settings.demonstrations]
    answers = mode.answers("demonstrations", prompts, settings.samples_per_prompt)
    best = [
        max(completions, key=lambda said: mode.gold(said.prompt, said.text))
        for completions in answers
    ]
    examples = [Example(said.prompt_ids, said.ids) for said in best]
    fit = example_settings(settings.sft, len(examples), "text.sft")
    with TrainingStage(mode.run, "sft", fit.num_steps) as stage:
        fit_examples(mode.learner, examples, fit, mode.run.seed("sft"), stage)


def learn_rewards(
    mode: OpenMode, settings: Rlhf, comparisons: Sequence[Comparison]
) -> tuple[RewardModel, dict[str, Any]]:
    """A reward model on a copy of the policy, with rewards of mean 0 and deviation 1 on the
    completions compared."""
    torch.manual_seed(mode.run.seed("reward head"))
    base = copy.deepcopy(plain_model(mode.parts.model)).requires_grad_(True)
    model = RewardModel(base, mode.parts.pad_id, mode.parts.autocast)
    train, held_out = split_by_prompt(comparisons, settings.prompts.holdout_fraction, HELD_OUT)
    fit = example_settings(settings.reward_model, len(train), "text.reward_model")
    with TrainingStage(mode.run, "reward model", fit.num_steps) as stage:
        rates = (settings.head_learning_rate, settings.centring)
        fit_reward_model(
            model, train, fit, *rates, mode.run.seed("reward model"), stage, mode.learner.threads
        )
    right, pairs = reward_accuracy(model, held_out, fit.rows_per_pass)
    with torch.no_grad():
        everyone = [
            (c.prompt, completion) for c in held_out + train for completion in c.completions
        ]
        values = evaluate_rows(
            len(everyone),
            fit.rows_per_pass,
            lambda rows: rewards_of(
                model, [everyone[i][0] for i in rows], [everyone[i][1] for i in rows]
            ),
            mode.learner.threads,
        )
        model.normalize(values.to(mode.parts.device))
    model.requires_grad_(False)
    said = f"all {len(train)} rankings have one prompt, so none is held out to judge it by"
    if pairs:
        share = f"{right} of {pairs} pairs ({100 * right / pairs:.0f} %)"
        said = f"orders {share} of {len(held_out)} held-out rankings right"
    mode.run.progress.say(f"reward model: {said}")
    numbers = {"rankings": len(train), "held-out rankings": len(held_out), "held-out pairs": pairs}
    numbers["epochs"] = fit.num_epochs(len(train))
    return model, {**numbers, "accuracy": right / pairs if pairs else None}


def optimize(mode: OpenMode, settings: Rlhf, model: RewardModel) -> dict[str, Any]:
    """RL against the reward model; what ended it."""
    config, parts = mode.config, mode.parts
    asked = {prompt: tuple(mode.prompts.asked(prompt)) for prompt in mode.prompts.train}
    problems = [
        Problem(prompt, "", "exact", "open", messages=messages)
        for prompt, messages in asked.items()
    ]
    rewards = ProxyReward(model, mode.gold, settings.unfinished_reward, config.rl.micro_batch_rows)
    num_rows, room = (
        config.rl.starts_per_iteration * config.rl.group_size,
        settings.generation.max_new_tokens,
    )
    rows = rows_of_rollout(
        num_rows, config.rl.group_size, settings.generation.max_prompt_tokens, room
    )
    environment = TextEnvironment(problems, parts.chat, rewards, parts.stop_ids, rows)
    width, learner = (
        settings.generation.max_prompt_tokens,
        with_critic(mode.speaker, config.rl.critic),
    )
    observe = partial(observe_prompts, width=width, pad_id=parts.pad_id, device=parts.device)

    def collect(iteration: int, pieces: Pieces) -> Rollout:
        rng = np.random.default_rng([config.train.seed, iteration])
        count = config.rl.starts_per_iteration
        numbers = rng.choice(len(problems), size=count, replace=count > len(problems)).tolist()
        with mode.run.timer("rollout"):
            return pieces.take_rollout(
                lambda: collect_rollout(
                    learner,
                    environment,
                    numbers,
                    config.rl.group_size,
                    observe,
                    version=iteration,
                    keeper=pieces,
                )
            )

    def watch(iteration: int, rollout: Rollout) -> dict[str, float]:
        episodes = environment.take_episodes()
        append_samples(mode.run, iteration, episodes[:2])
        numbers = episode_numbers(episodes)
        means = {name: numbers.pop(f"reward/{name}") for name in ("proxy", "gold")}
        return {
            **numbers,
            **means,
            "distinct_pairs": distinct_pairs([episode.transcript for episode in episodes]),
        }

    with mode.run.stage("rl"):
        return Refinement(
            learner,
            config,
            mode.run,
            collect=collect,
            evaluate=lambda iteration: {},
            watch=watch,
            under_way={"environment": environment},
            keep={},
            has_adapter=config.language_model.lora is not None and not settings.demonstrations,
        ).train()
