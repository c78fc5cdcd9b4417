"""RLHF (InstructGPT, Ouyang 2022): SFT, a reward model from preferences, then PPO against it.

Every iteration records the synthetic gold reward beside the reward model's (Gao 2023).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vla.config.text import Rlhf, TextConfig
from vla.data.chat import observe_prompts
from vla.data.rows import RowReader
from vla.rewards.reward_model import RewardModel
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.critic import with_critic
from vla.text.comparison_rows import read_rankings
from vla.text.comparison_sources import encode_file_rows, sample_comparisons
from vla.text.environment import TextEnvironment
from vla.text.episode_metrics import append_samples, episode_metrics
from vla.text.open_ended_evaluation import distinct_pairs
from vla.text.open_ended_run import OpenEndedRun
from vla.text.problem import Problem
from vla.text.problem_evaluation import rollout_batch_size
from vla.text.reward_learning import ProxyReward, fit_demonstrations, train_reward_model
from vla.training.rl_trainer import RLTask, RLTrainer
from vla.training.rollout_collection import RolloutCollector
from vla.training.run import Run
from vla.types import Rollout


def run_rlhf(config: TextConfig, run: Run) -> dict[str, object]:
    """SFT, reward model, PPO; returns the results with the gold reward before and after."""
    settings = config.text
    assert isinstance(settings, Rlhf)
    reader = RowReader(settings.on_bad_row)
    path = settings.comparisons
    rows = None
    if path is not None:  # faults of the file are reported before the model is loaded
        rows = read_rankings(path, settings.prompts.holdout_fraction, reader)
    open_ended = OpenEndedRun.start(
        config, run, settings.generation, settings.prompts, settings.gold, reader
    )
    comparisons = None
    if path is not None and rows is not None:
        comparisons = encode_file_rows(open_ended, path, rows)
    before = open_ended.evaluate("before")
    if settings.demonstrations:
        fit_demonstrations(open_ended, settings)
    undecided = 0
    if comparisons is None:
        comparisons, undecided = sample_comparisons(
            open_ended, settings.judge, settings.samples_per_prompt, 0, whole=True
        )
    model, numbers = train_reward_model(open_ended, settings, comparisons)
    with run.stage("rl"):
        summary = train_rlhf(open_ended, settings, model)
    more = {"rl": summary, "reward model": {**numbers, "undecided prompts": undecided}}
    return open_ended.finish(
        "RLHF: proxy and gold reward", before, more, of=summary["num_iterations"]
    )


def train_rlhf(open_ended: OpenEndedRun, settings: Rlhf, model: RewardModel) -> dict[str, Any]:
    """RL against the reward model; returns the summary of the trainer."""
    config = open_ended.config
    parts = open_ended.parts
    rl = config.rl
    width = settings.generation.max_prompt_tokens
    prompts = open_ended.prompts
    problems = [
        Problem(prompt, "", "exact", "open", messages=tuple(prompts.messages_for(prompt)))
        for prompt in prompts.train
    ]
    rewards = ProxyReward(model, open_ended.gold, settings.truncation_reward, rl.micro_batch_rows)
    num_rows = rl.num_start_states * rl.group_size
    max_new_tokens = settings.generation.max_new_tokens
    batch_size = rollout_batch_size(num_rows, rl.group_size, width, max_new_tokens)
    environment = TextEnvironment(problems, parts.chat, rewards, parts.stop_ids, batch_size)
    learner = with_critic(open_ended.sampling_policy, rl.critic)

    def draw_prompts(iteration: int, attempt: int, count: int) -> list[int]:
        rng = np.random.default_rng([config.train.seed, iteration])
        return rng.choice(len(problems), size=count, replace=count > len(problems)).tolist()

    def metrics(iteration: int, rollout: Rollout) -> dict[str, float]:
        episodes = environment.take_episodes()
        append_samples(open_ended.run, iteration, episodes[:2])
        values = episode_metrics(episodes)
        means = {name: values.pop(f"reward/{name}") for name in ("proxy", "gold")}
        distinct = distinct_pairs([episode.transcript for episode in episodes])
        return {**values, **means, "distinct_pairs": distinct}

    collector = RolloutCollector(
        learner,
        environment,
        partial(observe_prompts, width=width, pad_id=parts.pad_id, device=parts.device),
        draw_prompts,
        lambda: rl.num_start_states,
        rl.group_size,
    )
    base: Any = open_ended.sampling_policy.model
    adapter_is_new = config.language_model.lora is not None and not settings.demonstrations
    task = RLTask(
        sample=collector.collect,
        metrics=metrics,
        group_size=rl.group_size,
        minibatch_seed="minibatches",
        evaluation_timer="evaluation",
        rollout_parts={"environment": environment},
        without_adapter=base.disable_adapter if adapter_is_new else None,
        threads=open_ended.sampling_policy.threads,
    )
    algorithm = make_algorithm(**config.algorithm.model_dump())
    return RLTrainer(open_ended.run, rl, algorithm, learner, task).train()
