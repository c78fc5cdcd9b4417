"""RL of a robot policy: branching with its critic, validation, and recordings.

The loop itself is `vla.training.rl_trainer.RLTrainer`, which text shares.
"""

from __future__ import annotations

from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import torch

from vla.config.robot import RobotConfig
from vla.config.training import Adapt
from vla.config.whole_episodes import whole_episodes
from vla.evaluation.evaluate import evaluate_policy
from vla.evaluation.starts import StartManifest
from vla.pipelines.robot.recordings import record_update, term_success_rates
from vla.pipelines.robot.rollout_worker import BRANCHES, RobotWorkerPlan
from vla.policies.robot_policy import RobotPolicy
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.branching import (
    FIRST_FIT,
    BranchCollector,
    BranchingEnvironment,
    BranchSettings,
    ResamplingPolicy,
)
from vla.rl.critic import with_critic
from vla.rl.protocols import Algorithm, Observe, Reference, VectorEnvironment
from vla.rl.state_critic import StateCritic
from vla.statistics import SuccessRate
from vla.training.distributed import SINGLE_PROCESS, Processes
from vla.training.rl_trainer import RLTask, RLTrainer, Sample
from vla.training.rollout_collection import RolloutCollector, SeededStarts, check_rewards
from vla.training.rollout_shards import RolloutWorkers, start_ray_pool
from vla.training.run import Run
from vla.training.seed import derive_seed
from vla.training.synchronization import propagate_errors
from vla.types import Rollout


def train_robot_rl(
    run: Run,
    config: RobotConfig,
    policy: RobotPolicy,
    environment: VectorEnvironment,
    observer: Observe,
    starts: StartManifest,
) -> RLTrainer:
    """Train the policy in place by RL; the trainer after its last iteration.

    Training falls back to whole episodes where the policy or the simulator cannot branch.
    """
    freeze_for_rl(policy, config.rl.adapt)
    rl = config.rl
    if rl.num_branches and rl.num_iterations:
        obstacle = branching_obstacle(policy, environment)
        if obstacle is not None:
            config, note = whole_episodes(config, obstacle)
            run.progress.print_line(note)
    algorithm = make_algorithm(**config.algorithm.model_dump())
    robot_rl = RobotRL(run, config, policy, algorithm, environment, observer, starts)
    trainer = RLTrainer(run, config.rl, algorithm, robot_rl.learner, robot_rl.task())
    with closing(robot_rl.workers) if robot_rl.workers else nullcontext():
        summary = trainer.train()
    if rl.num_iterations:
        run.results["rl"] = summary
    return trainer


def freeze_for_rl(policy: RobotPolicy, adapt: Adapt) -> None:
    """Freeze the parameters that RL does not move (`rl.adapt`).

    `backbone` and `lora` freeze the encoders of images and state, `head` all but the head, and an
    adapter the whole policy below it. `head` falls back to `backbone` where the head runs the
    language model for every draw.
    """
    match adapt:
        case "weights":
            pass
        case "noise" | "residual":
            policy.freeze_for_adapter()
        case "head" if policy.can_train_head:
            policy.freeze_model()
        case "head" | "backbone" | "lora":
            policy.freeze_prefix()


class RobotRL:
    """RL of a robot for `RLTrainer`: rollouts are episodes from training starts, or branches.

    Its checkpointed state belongs to branching: the critic, and the number of warm-up rollouts.
    """

    def __init__(
        self,
        run: Run,
        config: RobotConfig,
        policy: RobotPolicy,
        algorithm: Algorithm,
        environment: VectorEnvironment,
        observer: Observe,
        starts: StartManifest,
    ) -> None:
        self.run = run
        self.config = config
        self.processes = run.processes
        self.policy = policy
        self.algorithm = algorithm
        self.environment = environment
        self.observer = observer
        self.starts = starts
        rl = config.rl
        self.learner = with_critic(policy, rl.critic)
        self.branches: BranchCollector | None = None
        if rl.num_iterations and rl.num_branches:
            self.branches = make_branch_collector(config, policy, environment, run.processes)
        self.num_warmed = 0
        seeds = SeededStarts(
            starts.train.first, starts.train.last, config.train.seed, run.processes
        )
        num_starts = rl.num_start_states // run.processes.num_processes
        self.workers = self._make_workers() if rl.workers and rl.num_iterations else None
        self.collector = RolloutCollector(
            self.learner,
            environment,
            observer,
            seeds.draw,
            lambda: num_starts,
            rl.group_size,
            rl.max_resamples,
            check_rewards,
            None if self.branches is None else self.branches.before_step,
            self.is_greedy,
            self.workers,
            rl.num_iterations if rl.async_rollouts else 0,
        )

    def _make_workers(self) -> RolloutWorkers:
        """Workers with copies of the policy, the observer and the simulator."""
        settings = self.config
        branches = self.branches
        plan = RobotWorkerPlan(
            settings.sim.model_dump(mode="json"),
            self.learner,
            self.observer,
            settings.rl.group_size,
            None if branches is None else (branches.settings, branches.seed),
        )
        return RolloutWorkers(
            partial(start_ray_pool, settings.rl, plan, self.run.progress.print_line),
            self.learner,
            {} if branches is None else {BRANCHES: branches},
            settings.rl.workers,
            settings.train.seed,
        )

    def task(self) -> RLTask:
        """The callbacks and settings for `RLTrainer`."""
        branches = {} if self.branches is None else {"branches": self.branches}
        return RLTask(
            sample=self.collector.collect,
            metrics=self.metrics,
            group_size=self.config.rl.num_branches or self.config.rl.group_size,
            minibatch_seed="rl",
            evaluation_timer="evaluation_before",
            validate=self.validate,
            validate_ends=True,
            record=self.record,
            collect=self.collect,
            checkpoint_parts={} if self.branches is None else {"branches": self},
            rollout_parts=branches,
        )

    def is_greedy(self, iteration: int) -> bool:
        """True where episodes of an iteration are greedy, and branches start from their states.

        Greedy decisions get stuck in states that sampled ones seldom reach.
        """
        every = self.config.rl.greedy_branching_every
        return self.branches is not None and every is not None and iteration % every == 0

    def collect(self, iteration: int, sample: Sample) -> Rollout:
        """Collect episodes, or branches from their states; `self.episodes` holds the episodes."""
        if self.branches is None:
            with self.run.timer("rollout"):
                self.episodes = sample(iteration)
            return self.episodes
        if not self.branches.critic.ready:
            self._fit_critic(self.branches, sample)
        with self.run.timer("rollout"):
            self.branches.start(iteration)
            self.episodes = sample(iteration)
        with self.run.timer("critic"):
            branches = self.branches.rollout(self.episodes)
        assert branches is not None, "the critic is fitted"
        return branches

    def _fit_critic(self, branches: BranchCollector, sample: Sample) -> None:
        """Fit the critic to warm-up rollouts, from starts that no iteration uses."""
        rl = self.config.rl
        with self.run.timer("critic"):
            first = rl.num_iterations
            for number in range(first + self.num_warmed, first + rl.num_branch_warmup_iterations):
                self.run.check_stop()
                branches.start(number)
                branches.rollout(sample(number))
                self.num_warmed += 1
            branches.critic.fit(FIRST_FIT)

    def metrics(self, iteration: int, rollout: Rollout) -> dict[str, float]:
        """Success over all processes, metrics of the critic, and rates of the task's terms."""
        episodes = self.episodes
        reduce_sum = self.processes.reduce_sum
        assert episodes.success is not None
        greedy = self.is_greedy(iteration - 1)
        num_episodes = reduce_sum(torch.tensor(float(len(episodes.success))))
        success = float(reduce_sum(episodes.success.sum()) / num_episodes)
        metrics = {} if self.branches is None else dict(self.branches.fit)
        metrics["greedy_success" if greedy else "success"] = success
        metrics["num_episodes"] = float(num_episodes)
        return metrics if greedy else metrics | term_success_rates(episodes, reduce_sum)

    def validate(self) -> SuccessRate:
        """Greedy success on the validation starts."""
        seeds = self.starts.validation.take(self.config.evaluation.num_validation_starts)
        result = evaluate_policy(
            self.policy,
            self.environment,
            seeds.tolist(),
            self.observer,
            temperature=None,
            processes=self.processes,
        )
        return result.success_rate

    def record(self, iteration: int, reference: Reference | None) -> None:
        """Record some sampled episodes of the main process, for `vla-view`."""
        if self.is_greedy(iteration - 1):
            return
        with self.run.timer("recordings"), propagate_errors(self.processes):
            if not self.processes.is_main:
                return
            record_update(
                self.run.folder.path / "recordings",
                self.config.sim,
                self.policy,
                self.algorithm,
                reference,
                self.episodes,
                iteration,
                self.config.rl.micro_batch_rows,
            )

    def state_dict(self) -> dict[str, Any]:
        assert self.branches is not None
        return {"num_warmed": self.num_warmed, "critic": self.branches.critic.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self.branches is not None
        self.num_warmed = state["num_warmed"]
        self.branches.critic.load_state_dict(state["critic"])


def make_branch_collector(
    config: RobotConfig,
    policy: RobotPolicy,
    environment: VectorEnvironment,
    processes: Processes = SINGLE_PROCESS,
) -> BranchCollector:
    """Make the collector that samples `rl.num_branches` decisions from a state."""
    rl = config.rl
    assert isinstance(policy, ResamplingPolicy)
    assert isinstance(environment, BranchingEnvironment)
    settings = BranchSettings(rl.num_branches, rl.branch_fraction, rl.branch_discount)
    critic = StateCritic(derive_seed(config.train.seed, "state critic"))
    seed_names = ("branches", processes.rank) if processes.rank else ("branches",)
    return BranchCollector(
        policy,
        environment,
        settings,
        critic,
        derive_seed(config.train.seed, *seed_names),
        processes.gather,
    )


def branching_obstacle(policy: RobotPolicy, environment: VectorEnvironment) -> str | None:
    """The reason why policy or simulator cannot branch, None where they can.

    `vla.config.whole_episodes` finds the reasons that the settings alone decide.
    """
    if not isinstance(environment, BranchingEnvironment):
        return "the simulator cannot be put back into an earlier state"
    if not isinstance(policy, ResamplingPolicy) or not policy.can_redraw:
        return "the policy cannot draw again from what it has perceived"
    return None
