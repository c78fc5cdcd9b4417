"""The InstructGPT pipeline (Ouyang 2022): SFT, a reward model from preferences, PPO against it with a KL penalty.

Where the gold reward of a synthetic judge is known, every iteration shows it next to the reward model's (Gao 2023).
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
from vla.decoding.causal import plain_model
from vla.rewards.compose import Scores
from vla.rewards.gold import Gold
from vla.rewards.reward_model import RewardModel
from vla.rewards.sample import Sample
from vla.rl.critic import with_critic
from vla.rl.rollout import collect_rollout
from vla.text.environment import TextEnvironment
from vla.text.fitting import in_pieces
from vla.text.open_judging import distinct_pairs
from vla.text.open_run import OpenRun, Steps
from vla.text.preference import read_encoded, sample_comparisons
from vla.text.preferring import Comparison, fit_reward_model, reward_accuracy, rewards_of
from vla.text.problems import Problem
from vla.text.refine import Refinement
from vla.text.rlvr import append_samples, episode_numbers
from vla.text.supervised import Example, fit_examples
from vla.train.progress import Progress
from vla.train.run_folder import RunFolder
from vla.types import Rollout

HELD_OUT = 0.15
"""Share of the comparisons kept for the reward model's accuracy."""


class ProxyReward:
    """The reward model's reward of completions, with the gold reward beside it for the metrics."""

    def __init__(self, model: RewardModel, gold: Gold, unfinished_reward: float | None, rows_at_once: int) -> None:
        self.model, self.gold = model, gold
        self.unfinished_reward, self.rows_at_once = unfinished_reward, rows_at_once

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> Scores:
        """Scores by the ids that were read and drawn; completions cut at the limit get `unfinished_reward`."""

        def scored(rows: Sequence[int]) -> torch.Tensor:
            part = [samples[i] for i in rows]
            return rewards_of(self.model, [list(s.prompt_ids) for s in part], [list(s.completion_ids) for s in part])

        proxy = in_pieces(len(samples), self.rows_at_once, scored).numpy().astype(np.float32)
        gold = np.array([self.gold(s.prompt, s.completion) for s in samples], np.float32)
        total = proxy.copy()
        if self.unfinished_reward is not None:
            total[[not sample.finished for sample in samples]] = self.unfinished_reward
        return Scores(total, {"proxy": proxy, "gold": gold})


def run_rlhf(config: TextConfig, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """SFT, reward model, PPO; gold reward before and after on held-out prompts."""
    settings = config.text
    assert isinstance(settings, Rlhf)
    run = OpenRun.start(config, settings.generation, settings.prompts, settings.gold, folder, progress)
    with run.timer("judge"):
        before = run.judge("before")
    if settings.demonstrations:
        learn_demonstrations(run, settings)
    if settings.comparisons is None:
        comparisons, undecided = sample_comparisons(run, settings.judge, settings.samples_per_prompt, 0, whole=True)
    else:
        read = read_encoded(run, settings.comparisons)
        comparisons, undecided = [row for row in read if isinstance(row, Comparison)], 0
        if not comparisons:
            raise ValueError(
                f"text.comparisons ({settings.comparisons}) holds thumbs; a reward model needs comparisons"
            )
    model, numbers = learn_rewards(run, settings, comparisons)
    run.log.close()
    ended = optimize(run, settings, model)
    more = {"rl": ended, "reward model": {**numbers, "undecided prompts": undecided}}
    return run.finish("RLHF: proxy and gold reward", before, more)


def learn_demonstrations(run: OpenRun, settings: Rlhf) -> None:
    """SFT on the best of several samples of each prompt, by the gold reward."""
    answers = run.say(run.prompts.train[: settings.demonstrations], settings.samples_per_prompt)
    best = [max(completions, key=lambda said: run.gold(said.prompt, said.text)) for completions in answers]
    examples = [Example(said.prompt_ids, said.ids) for said in best]
    with Steps(run, "sft", settings.sft.num_steps) as on_step:
        fit_examples(run.learner, examples, run.fit_settings(settings.sft), run.seed("sft"), on_step)


def learn_rewards(
    run: OpenRun, settings: Rlhf, comparisons: Sequence[Comparison]
) -> tuple[RewardModel, dict[str, Any]]:
    """A reward model on a copy of the policy, with rewards of mean 0 and deviation 1 on the completions compared."""
    torch.manual_seed(run.seed("reward head"))
    base = copy.deepcopy(plain_model(run.parts.model)).requires_grad_(True)
    model = RewardModel(base, run.parts.pad_id, run.parts.autocast)
    count = max(1, int(HELD_OUT * len(comparisons)))
    held_out, train = list(comparisons[:count]), list(comparisons[count:]) or list(comparisons)
    fit = run.fit_settings(settings.reward_model)
    with Steps(run, "reward model", fit.num_steps) as on_step:
        rates = (settings.head_learning_rate, settings.centring)
        fit_reward_model(model, train, fit, *rates, run.seed("reward model"), on_step, run.learner.threads)
    right, pairs = reward_accuracy(model, held_out, fit.micro_batch_size)
    with torch.no_grad():
        everyone = [(c.prompt, completion) for c in held_out + train for completion in c.completions]
        values = in_pieces(
            len(everyone),
            fit.micro_batch_size,
            lambda rows: rewards_of(model, [everyone[i][0] for i in rows], [everyone[i][1] for i in rows]),
            run.learner.threads,
        )
        model.normalize(values.to(run.parts.device))
    model.requires_grad_(False)
    run.progress.say(
        f"reward model: orders {right} of {pairs} pairs ({100 * right / pairs:.0f} %) of {len(held_out)} held-out"
        " rankings right"
    )
    numbers = {"rankings": len(train), "held-out rankings": len(held_out), "held-out pairs": pairs}
    return model, {**numbers, "accuracy": right / pairs}


def optimize(run: OpenRun, settings: Rlhf, model: RewardModel) -> dict[str, Any]:
    """RL against the reward model; what ended it."""
    config, parts = run.config, run.parts
    problems = [Problem(prompt, "", "exact", "open") for prompt in run.prompts.train]
    rewards = ProxyReward(model, run.gold, settings.unfinished_reward, config.rl.micro_batch_rows)
    rows = config.rl.starts_per_iteration * config.rl.group_size
    environment = TextEnvironment(problems, parts.chat, rewards, parts.stop_ids, rows)
    width, learner = settings.generation.max_prompt_tokens, with_critic(run.speaker, config.rl.critic)
    observe = partial(observe_prompts, width=width, pad_id=parts.pad_id, device=parts.device)

    def collect(iteration: int) -> Rollout:
        rng = np.random.default_rng([config.train.seed, iteration])
        count = config.rl.starts_per_iteration
        numbers = rng.choice(len(problems), size=count, replace=count > len(problems)).tolist()
        with run.timer("rollout"):
            return collect_rollout(learner, environment, numbers, config.rl.group_size, observe, version=iteration)

    def watch(iteration: int, rollout: Rollout) -> dict[str, float]:
        episodes = environment.take_episodes()
        append_samples(run.folder, iteration, episodes[:2])
        numbers = episode_numbers(episodes)
        means = {name: numbers.pop(f"reward/{name}") for name in ("proxy", "gold")}
        return {**numbers, **means, "distinct_pairs": distinct_pairs([episode.transcript for episode in episodes])}

    with run.timer("rl"):
        return Refinement(
            learner,
            config,
            run.folder,
            run.progress,
            collect=collect,
            evaluate=lambda iteration: {},
            watch=watch,
            keep={},
            has_adapter=config.language_model.lora is not None and not settings.demonstrations,
            timer=run.timer,
            after_seconds=run.timer.seconds().get("judge", 0.0),
            num_records=run.log.num_records,
        ).run()
