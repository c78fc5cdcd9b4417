"""RL from verifiable rewards (RLVR), evaluated on the same held-out problems before and after."""

from __future__ import annotations

from itertools import chain
from typing import Any

from vla.config.text import Rlvr, TextConfig
from vla.data.rows import RowReader
from vla.rewards.compose import CORRECT, Rewards
from vla.rewards.verifier_process import VerifierProcess
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.critic import with_critic
from vla.rl.dynamic_sampling import mask_trajectories
from vla.text.adaptive_batch_size import AdaptiveBatchSize
from vla.text.environment import ENDED_ITSELF
from vla.text.episode_metrics import append_samples, episode_metrics
from vla.text.format_warmup import train_format
from vla.text.problem_evaluation import check_scorable, pair_answers
from vla.text.rlvr_evaluation import (
    evaluate_sampled,
    evaluate_validation,
    load_or_evaluate,
    rlvr_results,
    verifier_failures,
)
from vla.text.rlvr_setup import RlvrSetup, set_up_rlvr
from vla.text.text_report import finish_run
from vla.training.rl_trainer import RLTask, RLTrainer
from vla.training.rollout_collection import RolloutCollector
from vla.training.run import Run
from vla.types import Rollout


def run_rlvr(config: TextConfig, run: Run) -> dict[str, object]:
    """Evaluate, train and evaluate again; results, report and model go into the run folder."""
    settings = config.text
    assert isinstance(settings, Rlvr)
    reader = RowReader(settings.on_bad_row)
    with VerifierProcess(settings.verifier_timeout_seconds) as process:
        rewards = Rewards({CORRECT: 0.0, **settings.rewards}, process)
        setup = set_up_rlvr(run, config, reader, rewards)
        before = load_or_evaluate(run, setup, "before")
        check_scorable(before, verifier_failures(process, run.processes))
        run.progress.print_line(f"before: {before} on held-out problems")
        formatted = train_format(run, setup)
        with run.stage("rl"):
            summary = train_rlvr(run, config, setup)
        after = load_or_evaluate(run, setup, "after", of=summary["num_iterations"])
        sampled = evaluate_sampled(run, setup, of=summary["num_iterations"])
        results = rlvr_results(before, after, setup, verifier_failures(process, run.processes))
    results |= {**formatted, **reader.results(), "rl": summary}
    results |= {"after, sampled": sampled} if sampled else {}
    run.progress.print_line(f"after:  {after} on the same problems")
    run.progress.print_line(f"change: {results['comparison']}")
    title = "Verified rewards: " + ", ".join(settings.families)
    pairs = pair_answers(before, after, setup.sets.evaluation)
    return finish_run(run, title, results, pairs, setup.parts)


def train_rlvr(run: Run, config: TextConfig, setup: RlvrSetup) -> dict[str, Any]:
    """Run the RL iterations; returns the summary of the trainer."""
    rl = config.rl
    settings = setup.settings
    processes = run.processes
    environment = setup.training
    learner = with_critic(setup.policy, rl.critic)
    batch_size = AdaptiveBatchSize(rl.num_start_states, settings.max_batch_growth)

    def num_problems() -> int:
        total = rl.num_start_states if rl.max_resamples else batch_size.count
        return total // processes.num_processes

    def mask_truncated(iteration: int, rollout: Rollout) -> Rollout:
        if not settings.mask_truncated_completions:
            return rollout
        return mask_trajectories(rollout, rollout.episodes[ENDED_ITSELF] > 0.5)

    def metrics(iteration: int, rollout: Rollout) -> dict[str, float]:
        # all episodes count: dynamic sampling leaves only groups with differing returns
        episodes = list(chain(*processes.gather(environment.take_episodes())))
        if not rl.max_resamples:
            batch_size.update(rollout, processes.reduce_sum)
        success = sum(episode.success for episode in episodes) / len(episodes)
        setup.curriculum.update(success)
        append_samples(run, iteration, episodes[: 2 * rl.group_size : rl.group_size])
        return {
            **episode_metrics(episodes),
            "success": success,
            "episodes": float(len(episodes)),
            "open_families": float(setup.curriculum.num_open),
        }

    collector = RolloutCollector(
        learner,
        environment,
        setup.observe,
        setup.draw_problems,
        num_problems,
        rl.group_size,
        rl.max_resamples,
        mask_truncated,
    )
    base: Any = setup.policy.model
    adapter_is_new = config.language_model.lora is not None and not settings.format_sft_steps
    task = RLTask(
        sample=collector.collect,
        metrics=metrics,
        validate=lambda: evaluate_validation(run, setup),
        group_size=rl.group_size,
        minibatch_seed="minibatches",
        evaluation_timer="evaluation",
        checkpoint_parts={"curriculum": setup.curriculum, "oversampling": batch_size},
        rollout_parts={"environment": environment},
        without_adapter=base.disable_adapter if adapter_is_new else None,
        threads=setup.policy.threads,
    )
    algorithm = make_algorithm(**config.algorithm.model_dump())
    return RLTrainer(run, rl, algorithm, learner, task).train()
