"""Reinforcement learning as a stage of a run: resumable, choosing its best weights on validation
starts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from vla.config.robot import RobotConfig
from vla.config.training import Rl
from vla.config.whole_episodes import whole_episodes
from vla.data.observations import Observer
from vla.evaluate.starts import StartManifest
from vla.evaluate.success import SuccessRate
from vla.evaluation.evaluate import evaluate_policy
from vla.rl.branching import (
    FIRST_FIT,
    Branches,
    BranchingEnvironment,
    BranchSettings,
    RedrawingPolicy,
)
from vla.rl.budget import Budget, Limits
from vla.rl.catalogue import make_algorithm
from vla.rl.critic import ActorCritic, with_critic
from vla.rl.loop import LoopSettings, LoopState, train
from vla.rl.protocols import VectorEnvironment
from vla.rl.reference import make_reference
from vla.rl.state_critic import StateCritic
from vla.rl.update import UpdateSettings
from vla.sft.protocols import ImitablePolicy, ProbedPolicy
from vla.stages.recordings import reached, record_update
from vla.stages.refinement import DynamicSampling, Starts, make_collector
from vla.train.agreement import failing_together, main_seconds
from vla.train.distributed import ALONE, Processes
from vla.train.optim import EMA, Schedule, make_optimizer, weights_of
from vla.train.pieces import Pieces, forget_pieces
from vla.train.progress import Stage
from vla.train.run import Run
from vla.train.seed import derive_seed, torch_generator
from vla.types import Rollout

Weights = dict[str, torch.Tensor]


@dataclass
class RlState:
    """What the stage remembers beside the loop and the budget: the curve of success on validation
    starts, and how many rollouts the critic of branches has seen before it was fitted.
    """

    num_warmed: int = 0
    validation: list[tuple[int, int, int]] = field(default_factory=list)

    def curve(self) -> list[tuple[float, SuccessRate]]:
        """Greedy success on validation starts by iteration."""
        return [(i, SuccessRate(successes, n, None)) for i, successes, n in self.validation]


def freeze(policy: ImitablePolicy, what: Literal["nothing", "prefix", "all"]) -> None:
    """Leave out of RL what reads pictures (`prefix`), or all but the head where a policy has one
    apart (`all`)."""
    if what == "all" and isinstance(policy, ProbedPolicy) and policy.can_probe:
        policy.freeze_model()
    elif what != "nothing":
        policy.freeze_prefix()


class Reinforcement:
    """One stage of reinforcement learning: what it needs, and how it collects, judges itself, saves
    and goes on."""

    def __init__(
        self,
        run: Run,
        config: RobotConfig,
        policy: ImitablePolicy,
        environment: VectorEnvironment,
        observer: Observer,
        starts: StartManifest,
    ):
        freeze(policy, config.model.freeze_in_rl)
        lack = (
            without_branches(policy, environment)
            if config.rl.num_branches and config.rl.num_iterations
            else None
        )
        if lack is not None:
            config, note = whole_episodes(config, lack)
            run.progress.say(note)
        self.run, self.config, self.policy = run, config, policy
        self.processes = run.processes
        self.environment, self.observer, self.starts = environment, observer, starts
        rl, settings = config.rl, config.algorithm.model_dump()
        self.algorithm = make_algorithm(settings.pop("name"), **settings)
        self.learner = with_critic(policy, rl.critic)
        self.optimizer = make_optimizer(
            self.learner,
            rl.optimizer,
            rl.learning_rate,
            rl.weight_decay,
            rl.muon_learning_rate,
            dict.fromkeys(("value_head", "critic.value_head"), rl.critic_learning_rate),
        )
        wanted = self.algorithm.needs_reference
        self.reference = (
            make_reference(rl.reference, policy, rl.micro_batch_rows) if wanted else None
        )
        self.loop, self.state = LoopState(torch_generator(config.train.seed, "rl")), RlState()
        self.budget = Budget(
            limits_of(rl), main_seconds(run.seconds_of("evaluation_before"), self.processes)
        )
        self.schedule = Schedule(
            self.optimizer,
            rl.schedule,
            rl.num_iterations,
            rl.num_warmup_iterations,
            lambda: self.budget.share_of_seconds,
        )
        self.best = weights_of(policy)
        self.average = None if rl.average_decay is None else EMA(policy, rl.average_decay)
        self.branches = (
            make_branches(config, policy, environment, self.processes)
            if rl.num_iterations
            else None
        )
        self._saved_at: tuple[int, int] | None = None
        self._restore()
        self._started = run.timer.clock() - self.budget.spent.seconds
        dynamic = DynamicSampling(rl.max_refills, None, None) if rl.max_refills else None
        seeds = Starts(starts.train.first, starts.train.last, config.train.seed, self.processes)
        own_starts = rl.starts_per_iteration // self.processes.num_processes
        self._collector = make_collector(
            self.learner,
            environment,
            observer,
            seeds,
            own_starts,
            rl.group_size,
            dynamic,
            lambda ended: None,
            None if self.branches is None else self.branches.before_step,
            self.is_greedy,
        )

    def train(self) -> RlState:
        """Run until a limit of `vla.rl.budget` ends it, and say which. With `rl.load_best_at_end`
        the policy ends with the weights that did best on validation starts, those it began with
        among them.
        """
        rl = self.config.rl
        update = UpdateSettings(
            rl.epochs,
            rl.num_minibatches,
            rl.micro_batch_rows,
            rl.max_grad_norm,
            rl.target_kl,
            rl.step_kl,
            rl.importance_cap,
            rl.importance_level,
        )
        settings = LoopSettings(
            rl.num_iterations,
            rl.critic_warmup_iterations,
            rl.reference_every,
            rl.kl_target,
            rl.kl_horizon,
            rl.normalize_rewards,
        )
        name = f"RL ({self.config.algorithm.name})"
        if not self.state.validation and not self.over:
            self._validate(
                0
            )  # so that a run never ends with weights that did worse than those it began with
        if not self.over:
            with self.run.progress.stage(name, rl.num_iterations, self.loop.iteration) as bar:
                train(
                    self.learner,
                    self.algorithm,
                    self._collect,
                    self.optimizer,
                    update,
                    settings,
                    self.loop,
                    reference=self.reference,
                    scheduler=self.schedule,
                    on_iteration=lambda iteration, rollout, metrics: self._after(
                        bar, iteration, rollout, metrics
                    ),
                    reduce_sum=self.processes.reduce_sum,
                    timed=self.run.timer,
                )
            self.run.check_stop()
            self._save()
            forget_pieces(self.run, "rl")
        self.policy.load_state_dict(self.best)
        self._tell_end()
        return self.state

    def _tell_end(self) -> None:
        """What ended the iterations, on the console and in results.json."""
        if self.config.rl.num_iterations == 0:
            return
        told = self.budget.summary(self.loop.iteration)
        self.run.results["rl"] = told
        for line in (told["text"], told.get("nothing_learned")):
            if line:
                self.run.progress.say(f"  {line}")

    @property
    def over(self) -> bool:
        """Whether a limit is reached."""
        return self.budget.ended_by(self.loop.iteration) is not None

    def _expected_iterations(self, done: int) -> int:
        """How many iterations there will be: all, or as many as the seconds allow at the pace of
        those done."""
        share, most = self.budget.share_of_seconds, self.config.rl.num_iterations
        return (
            done if self.over else min(most, max(done + 1, round(done / share))) if share else most
        )

    def _seconds(self) -> float:
        """Since the first iteration, over all sessions; the main process's."""
        return main_seconds(self.run.timer.clock() - self._started, self.processes)

    def is_greedy(self, iteration: int) -> bool:
        """Whether branches start from where greedy decisions lead: draws seldom come to where those
        get stuck."""
        every = self.config.rl.greedy_every
        return self.branches is not None and every is not None and iteration % every == 0

    @property
    def _position(self) -> tuple[int, int]:
        """Which rollout comes next: the updates made, and the critic's own rollouts."""
        return self.loop.iteration, self.state.num_warmed

    def _sample(self, iteration: int) -> Rollout:
        """Episodes from this process's starts, groups whole. What is collected of them is kept
        where it takes long."""
        parts = {} if self.branches is None else {"branches": self.branches}
        pieces = Pieces(self.run, "rl", self._position, parts, self._save_before)
        with failing_together(self.processes), self.processes.own_draws("rollout", iteration):
            return self._collector(iteration, pieces)

    def _collect(self, iteration: int) -> Rollout:
        """Episodes, or what was tried in branches of them: `self._episodes` are the episodes in any
        case."""
        if self.branches is None:
            with self.run.timer("rollout"):
                self._episodes = self._sample(iteration)
            return self._episodes
        if not self.branches.critic.ready:
            self._fit_critic(self.branches)
        with self.run.timer("rollout"):
            self.branches.start(iteration)
            self._episodes = self._sample(iteration)
        with self.run.timer("critic"):
            tried = self.branches.rollout(self._episodes)
        assert tried is not None, "the critic is fitted"
        return tried

    def _fit_critic(self, branches: Branches) -> None:
        """Some rollouts for the critic alone, from starts that no iteration draws."""
        with self.run.timer("critic"):
            for extra in range(self.state.num_warmed, self.config.rl.branch_warmup):
                self.run.check_stop()
                branches.start(self.config.rl.num_iterations + extra)
                branches.rollout(self._sample(self.config.rl.num_iterations + extra))
                self.state.num_warmed += 1
            branches.critic.fit(FIRST_FIT)

    def _validate(self, iteration: int) -> float:
        with self.run.timer("validation"):
            seeds = self.starts.validation.take(self.config.evaluation.num_quick_starts)
            with nullcontext() if self.average is None else self.average.swapped(self.policy):
                episodes = evaluate_policy(
                    self.policy,
                    self.environment,
                    seeds.tolist(),
                    self.observer,
                    temperature=None,
                    processes=self.processes,
                )
                judged = weights_of(self.policy)
        self.state.validation.append((iteration, int(episodes.success.sum()), len(seeds)))
        rate = float(episodes.success.mean())
        as_good = self.budget.note_validation(rate, self._seconds(), counts=iteration > 0)
        if not self.config.rl.load_best_at_end or as_good:
            self.best = judged
        return rate

    def _after(
        self, bar: Stage, iteration: int, rollout: Rollout, metrics: dict[str, float]
    ) -> bool:
        """Log, judge and save after an iteration; whether to stop."""
        episodes, reduce_sum = self._episodes, self.processes.reduce_sum
        assert episodes.success is not None
        critic_only = iteration <= self.config.rl.critic_warmup_iterations
        self.budget.note_iteration(metrics, self._seconds(), critic_only)
        if self.average is not None:
            self.average.update(self.policy)
        greedy, num_episodes = (
            self.is_greedy(iteration - 1),
            reduce_sum(torch.tensor(float(len(episodes.success)))),
        )
        success = float(reduce_sum(episodes.success.sum()) / num_episodes)
        fit = {} if self.branches is None else self.branches.fit
        numbers = {**metrics, **fit, "greedy_success" if greedy else "success": success}
        numbers |= {"num_episodes": float(num_episodes), "seconds": self.budget.spent.seconds}
        if not greedy:
            numbers |= reached(episodes, reduce_sum)
        if iteration % self.config.rl.evaluate_every == 0 or self.over:
            numbers["validation_success"] = self._validate(iteration)
            if not greedy:  # what is kept tells of draws
                self._keep_episodes(iteration, episodes)
        self.run.log.write("rl", iteration, numbers)
        shown = ("success", "greedy_success", "validation_success", "entropy")
        bar.expect(self._expected_iterations(iteration))
        bar.advance(1, **{k: numbers[k] for k in shown if k in numbers})
        stop = self.run.stop.requested or self.over
        if stop or self.run.due(iteration):
            self._save()
        return stop

    def _keep_episodes(self, iteration: int, rollout: Rollout) -> None:
        """Some of the main process's rollout for `vla-view`."""
        with self.run.timer("recordings"), failing_together(self.processes):
            if not self.processes.is_main:
                return
            record_update(
                self.run.folder.path / "recordings",
                self.config.sim,
                self.policy,
                self.algorithm,
                self.reference,
                rollout,
                iteration,
                self.config.rl.micro_batch_rows,
            )

    def _save_before(self, rng: Mapping[str, Any]) -> None:
        """Save what a rollout under way belongs to; `rng` is from before it began."""
        if self._saved_at != self._position:
            self._save(rng)

    def _save(self, rng: Mapping[str, Any] | None = None) -> None:
        whole: dict[str, Any] = {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loop": self.loop.state_dict(),
            "state": vars(self.state),
            "budget": self.budget.state_dict(),
            "best": self.best,
        }
        if self.average is not None:
            whole["average"] = self.average.state_dict()
        if self.branches is not None:
            whole["critic"] = self.branches.critic.state_dict()
        if self.reference is not None:
            whole["reference"] = self.reference.state_dict()
        if isinstance(self.learner, ActorCritic):
            whole["value_model"] = self.learner.critic.state_dict()
        self.run.save("rl", self.loop.iteration, whole, rng=rng)
        self._saved_at = self._position

    def _restore(self) -> None:
        saved = self.run.load("rl")
        if saved is None:
            return
        self.policy.load_state_dict(saved["policy"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.loop.load_state_dict(saved["loop"])
        vars(self.state).update(saved["state"])
        self.budget.load_state_dict(saved["budget"])
        self.schedule.resume(self.loop.iteration)
        self.best = saved["best"]
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        if self.branches is not None:
            self.branches.critic.load_state_dict(saved["critic"])
        if self.reference is not None:
            self.reference.load_state_dict(saved["reference"])
        if isinstance(self.learner, ActorCritic):
            self.learner.critic.load_state_dict(saved["value_model"])
        self._saved_at = self._position


def make_branches(
    config: RobotConfig,
    policy: ImitablePolicy,
    environment: VectorEnvironment,
    processes: Processes = ALONE,
) -> Branches | None:
    """What tries several decisions from a state, where `rl.num_branches` asks for it."""
    rl = config.rl
    if not rl.num_branches:
        return None
    assert isinstance(policy, RedrawingPolicy)
    assert isinstance(environment, BranchingEnvironment)
    settings = BranchSettings(rl.num_branches, rl.branch_share, rl.branch_discount)
    critic = StateCritic(derive_seed(config.train.seed, "state critic"))
    own = ("branches", processes.rank) if processes.rank else ("branches",)
    return Branches(
        policy,
        environment,
        settings,
        critic,
        derive_seed(config.train.seed, *own),
        processes.gather,
    )


def without_branches(policy: ImitablePolicy, environment: VectorEnvironment) -> str | None:
    """What policy or simulator lacks for branches; the settings alone tell of ours
    (`vla.config.whole_episodes`)."""
    if not isinstance(environment, BranchingEnvironment):
        return "the simulator cannot be put back into an earlier state"
    if not isinstance(policy, RedrawingPolicy) or not policy.can_redraw:
        return "the policy cannot draw again from what it has perceived"
    return None


def limits_of(rl: Rl) -> Limits:
    """What ends the iterations."""
    return Limits(
        rl.num_iterations,
        rl.max_decisions,
        rl.max_seconds,
        rl.target_success,
        rl.patience,
        rl.max_idle_iterations,
    )
