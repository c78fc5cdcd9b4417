"""RL trainer of robots and text: optimizer, schedule, limits, best weights, checkpoints, stop.

The core (`vla.rl.loop.train_rl`) collects rollouts, updates the policy and adapts the KL
coefficient. The trainer adds optimizer, schedule, reference, limits, final weights, checkpoints,
stop requests and several processes. A robot or text pipeline passes an `RLTask` with its functions
to collect, validate and log, and its state to save.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

import torch

from vla.config.training import Rl
from vla.generation.activation_cache import DEFAULT_BYTES, ActivationCache
from vla.rl.algorithm_factory import check_run
from vla.rl.budget import Budget, Limits
from vla.rl.critic import ActorCritic
from vla.rl.loop import LoopSettings, LoopState, train_rl
from vla.rl.protocols import Algorithm, Reference
from vla.rl.reference import make_reference
from vla.rl.update import UpdateSettings
from vla.statistics import SuccessRate
from vla.threads import SINGLE_THREAD, Threads
from vla.training.optim import EMA, Schedule, copy_weights, load_weights, make_optimizer
from vla.training.progress import ProgressBar
from vla.training.resumable_work import ResumableWork, remove_finished_work
from vla.training.run import Run, Stateful
from vla.training.seed import torch_generator
from vla.training.synchronization import main_process_seconds, propagate_errors
from vla.types import Rollout, StateDict

STAGE = "rl"
PROGRESS_METRICS = (
    "success",
    "greedy_success",
    "return_mean",
    "validation_success",
    "kl_trajectory",
    "entropy",
)
"""Metrics shown beside the progress bar where an iteration has them."""
CRITIC_PREFIXES = ("value_head", "critic.value_head")
"""Name prefixes of parameters trained at `rl.critic_learning_rate`."""
LAYOUT = 2
"""Version of the checkpoint layout; older ones cannot be resumed."""

Weights = dict[str, torch.Tensor]
Sample = Callable[[int], Rollout]


@dataclass(frozen=True)
class RLTask:
    """The task-specific functions, settings and state of an `RLTrainer`.

    Args:
        sample: collects this process's rollout of an iteration, in pieces.
        metrics: metrics to log after an iteration, from its rollout.
        group_size: number of trajectories per group.
        minibatch_seed: purpose of the seed that shuffles minibatches.
        evaluation_timer: timer of the evaluation before RL; the one after RL takes about as long.
        validate: success of the present weights on held-out starts; None: no validation.
        validate_ends: validate the first and the last weights even where `rl.load_best_at_end` is
            off.
        record: called after a validation with the actor's own weights, e.g. to record episodes.
        collect: composes an iteration's rollout of calls of `sample`; None: a single call.
        checkpoint_parts: further parts of a checkpoint.
        rollout_parts: parts whose state changes while a rollout is collected.
        without_adapter: context in which the actor is its base model; None: the reference is a
            copy.
        threads: micro-batches scored at once.
    """

    sample: Callable[[int, ResumableWork], Rollout]
    metrics: Callable[[int, Rollout], dict[str, float]]
    group_size: int
    minibatch_seed: str
    evaluation_timer: str
    validate: Callable[[], SuccessRate] | None = None
    validate_ends: bool = False
    record: Callable[[int, Reference | None], None] | None = None
    collect: Callable[[int, Sample], Rollout] | None = None
    checkpoint_parts: Mapping[str, Stateful] = field(default_factory=dict)
    rollout_parts: Mapping[str, Stateful] = field(default_factory=dict)
    without_adapter: Callable[[], AbstractContextManager[object]] | None = None
    threads: Threads = SINGLE_THREAD


@runtime_checkable
class ActivationReusingPolicy(Protocol):
    """A policy that reuses activations of the rollout in the update
    (`vla.generation.activation_cache`)."""

    activation_cache: ActivationCache | None

    def reuse_activations(self, max_bytes: int) -> AbstractContextManager[None]: ...


def settings_from[T](kind: type[T], rl: Rl) -> T:
    """Make a settings dataclass of the core from the `rl` settings of the same names."""
    return kind(**{f.name: getattr(rl, f.name) for f in fields(kind)})  # type: ignore[arg-type]


class RLTrainer:
    """RL training of a policy until a limit of `vla.rl.budget` or a stop request.

    The actor ends with the best weights on validation starts where `rl.load_best_at_end` is on; the
    weights before RL are a candidate. Otherwise it ends with the averaged weights (`rl.ema_decay`)
    or the last ones. Each process samples its own rollout, all processes validate together, and the
    main process writes.

    Args:
        learner: the policy, or an `ActorCritic` around it.

    Raises:
        ValueError: for an algorithm that this task does not support, or a checkpoint of an older
            layout.
    """

    def __init__(self, run: Run, rl: Rl, algorithm: Algorithm, learner: Any, task: RLTask) -> None:
        self.run = run
        self.rl = rl
        self.algorithm = algorithm
        self.learner = learner
        self.task = task
        self.actor = learner.actor if isinstance(learner, ActorCritic) else learner
        self.processes = run.processes
        self.update_settings = settings_from(UpdateSettings, rl)
        self.loop_settings = settings_from(LoopSettings, rl)
        self.optimizer = make_optimizer(
            learner,
            rl.optimizer,
            rl.learning_rate,
            rl.weight_decay,
            rl.muon_learning_rate,
            dict.fromkeys(CRITIC_PREFIXES, rl.critic_learning_rate),
        )
        self.reference: Reference | None = None
        if algorithm.needs_reference:
            self.reference = make_reference(
                rl.reference, self.actor, rl.micro_batch_rows, task.without_adapter
            )
        self.loop = LoopState(torch_generator(run.train.seed, task.minibatch_seed))
        self.budget = Budget(
            settings_from(Limits, rl),
            main_process_seconds(run.stage_seconds(task.evaluation_timer), self.processes),
        )
        self.schedule = Schedule(
            self.optimizer,
            rl.schedule,
            rl.num_iterations,
            rl.num_warmup_iterations,
            lambda: self.budget.share_of_seconds,
        )
        self.average = None if rl.ema_decay is None else EMA(self.actor, rl.ema_decay)
        keeps_best = rl.load_best_at_end and task.validate is not None
        self.best: Weights | None = copy_weights(self.actor) if keeps_best else None
        self.validations: list[tuple[int, int, int]] = []
        """(iteration, successes, starts) of every validation."""
        self._num_rollouts = 0
        self._saved_at: int | None = None
        self._restore()
        self._started = run.timer.clock() - self.budget.spent.seconds
        check_run(
            algorithm,
            self.update_settings,
            group_size=task.group_size,
            has_critic=getattr(self.actor, "value_head", None) is not None,
            has_reference=self.reference is not None,
        )

    @property
    def num_iterations(self) -> int:
        """Iterations done, over all sessions."""
        return self.loop.iteration

    @property
    def over(self) -> bool:
        """True once a limit is reached."""
        return self.budget.ended_by(self.loop.iteration) is not None

    @property
    def validation_curve(self) -> list[tuple[float, SuccessRate]]:
        """Greedy success on validation starts by iteration."""
        return [
            (iteration, SuccessRate(successes, num_starts, None))
            for iteration, successes, num_starts in self.validations
        ]

    def train(self) -> StateDict:
        """Train to the end; return `Budget.summary`."""
        run = self.run
        with self._reusing_activations():
            if self._validates_ends and not self.validations and not self.over:
                self._validate(0)  # the weights before RL are the first candidate
            if not self.over:
                name = f"RL ({type(self.algorithm).__name__})"
                with run.progress.bar(name, self.rl.num_iterations, self.loop.iteration) as bar:
                    self._iterate(bar)
        run.check_stop()
        remove_finished_work(run, STAGE)
        ending = self._ending_weights()
        if ending is not None:
            load_weights(ending, self.actor)
        return self._summary()

    def _iterate(self, bar: ProgressBar) -> None:
        train_rl(
            self.learner,
            self.algorithm,
            self._collect,
            self.optimizer,
            self.update_settings,
            self.loop_settings,
            self.loop,
            reference=self.reference,
            scheduler=self.schedule,
            on_iteration=lambda iteration, rollout, metrics: self._finish_iteration(
                bar, iteration, rollout, metrics
            ),
            reduce_sum=self.processes.reduce_sum,
            threads=self.task.threads,
            timed=self.run.timer,
        )

    def _collect(self, iteration: int) -> Rollout:
        if self.task.collect is not None:
            return self.task.collect(iteration, self._sample)
        with self.run.timer("rollout"):
            return self._sample(iteration)

    def _sample(self, number: int) -> Rollout:
        """Collect this process's rollout `number`, saving its pieces."""
        parts = dict(self.task.rollout_parts)
        cache = (
            self.actor.activation_cache if isinstance(self.actor, ActivationReusingPolicy) else None
        )
        if cache is not None:
            # Clear also where the last update changed no weight: a resumed run starts with an
            # empty cache, and both must draw the same.
            cache.clear()
            parts["recall"] = cache
        key: object = self._num_rollouts
        if self.rl.workers:  # the shards of other workers are drawn from other seeds
            key = [self._num_rollouts, self.rl.workers]
        pieces = ResumableWork(self.run, STAGE, key, parts, self._save_before)
        with propagate_errors(self.processes), self.processes.process_rng("rollout", number):
            rollout = self.task.sample(number, pieces)
        self._num_rollouts += 1
        return rollout

    def _reusing_activations(self) -> AbstractContextManager[None]:
        if isinstance(self.actor, ActivationReusingPolicy):
            return self.actor.reuse_activations(DEFAULT_BYTES)
        return nullcontext()

    def _finish_iteration(
        self, bar: ProgressBar, iteration: int, rollout: Rollout, metrics: dict[str, float]
    ) -> bool:
        """Average, validate, log and save after an iteration; return True to stop."""
        critic_only = iteration <= self.rl.num_critic_warmup_iterations
        self.budget.note_iteration(metrics, self._seconds(), critic_only)
        if self.average is not None:
            self.average.update(self.actor)
        numbers = {
            **metrics,
            **self.task.metrics(iteration, rollout),
            "seconds": self.budget.spent.seconds,
        }
        is_best = False
        if self._validates_after(iteration):
            success, is_best = self._validate(iteration)
            numbers["validation_success"] = success.rate
            numbers["validation_starts"] = float(success.num_starts)
            if self.task.record is not None:
                self.task.record(iteration, self.reference)
        self.run.log.write(STAGE, iteration, numbers)
        bar.set_total(self._expected_iterations(iteration))
        bar.advance(1, **{name: numbers[name] for name in PROGRESS_METRICS if name in numbers})
        stop = self.run.stop.requested or self.over
        if stop or is_best or self.run.checkpoint_due(iteration):
            self._save(numbers.get("validation_success"))
        return stop

    @property
    def _validates_ends(self) -> bool:
        """True where the first and the last weights are validated."""
        return self.best is not None or self.task.validate_ends

    def _validates_after(self, iteration: int) -> bool:
        if self.task.validate is None:
            return False
        return iteration % self.rl.evaluate_every == 0 or (self._validates_ends and self.over)

    def _validate(self, iteration: int) -> tuple[SuccessRate, bool]:
        """Success on validation starts, and True where no earlier validation was better.

        Averaged weights are validated in place of the actor's own where `rl.ema_decay` is set.
        """
        assert self.task.validate is not None
        averaged = nullcontext() if self.average is None else self.average.use_average(self.actor)
        with self.run.timer("validation"), averaged:
            success = self.task.validate()
        self.validations.append((iteration, success.successes, success.num_starts))
        is_best = self.budget.note_validation(success.rate, self._seconds(), counts=iteration > 0)
        if is_best and self.best is not None:
            self.best = self._candidate_weights()
        return success, is_best

    def _candidate_weights(self) -> Weights:
        """A copy of the trained weights that a validation evaluates."""
        if self.average is None:
            return copy_weights(self.actor)
        return self.average.averaged_weights(self.actor)

    def _ending_weights(self) -> Weights | None:
        """The final trained weights if training ended now; None: the actor's own."""
        if self.best is not None:
            return self.best
        return None if self.average is None else self._candidate_weights()

    def _seconds(self) -> float:
        """Seconds since the first iteration, over all sessions, by the main process's clock."""
        return main_process_seconds(self.run.timer.clock() - self._started, self.processes)

    def _expected_iterations(self, done: int) -> int:
        """Expected number of iterations: all, or as many as fit in `rl.max_seconds` at this
        pace."""
        if self.over:
            return done
        share = self.budget.share_of_seconds
        if not share:
            return self.rl.num_iterations
        return min(self.rl.num_iterations, max(done + 1, round(done / share)))

    def _summary(self) -> StateDict:
        """The reason for the end of training and its counts; prints the reason."""
        summary = self.budget.summary(self.loop.iteration)
        if self.rl.num_iterations:
            for line in (summary["text"], summary.get("nothing_learned")):
                if line:
                    self.run.progress.print_line(f"  {line}")
        return summary

    def _parts(self) -> dict[str, Stateful]:
        """The parts of a checkpoint by name."""
        parts: dict[str, Stateful] = {
            "policy": self.actor,
            "optimizer": self.optimizer,
            "loop": self.loop,
            "budget": self.budget,
        }
        if isinstance(self.learner, ActorCritic):
            parts["value_model"] = self.learner.critic
        if self.average is not None:
            parts["average"] = self.average
        if self.reference is not None:
            parts["reference"] = self.reference
        return parts | {f"task_{name}": part for name, part in self.task.checkpoint_parts.items()}

    def _save_before(self, rng: StateDict) -> None:
        """Save the trainer's state before a rollout; `rng` is from before its start."""
        if self._saved_at != self._num_rollouts:
            self._save(rng=rng)

    def _save(self, score: float | None = None, rng: StateDict | None = None) -> None:
        """Write a checkpoint; the one with the highest score is kept besides the last ones."""
        state: StateDict = {name: part.state_dict() for name, part in self._parts().items()}
        state["trainer"] = {
            "layout": LAYOUT,
            "num_rollouts": self._num_rollouts,
            "validations": self.validations,
        }
        ending = self._ending_weights()
        if ending is not None:
            state["best"] = ending
        self.run.save(STAGE, self.loop.iteration, state, score, rng=rng)
        self._saved_at = self._num_rollouts

    def _restore(self) -> None:
        """Restore the last checkpoint, if there is one."""
        state = self.run.load(STAGE)
        if state is None:
            return
        if state.get("trainer", {}).get("layout") != LAYOUT:
            raise ValueError(
                f"{self.run.checkpoint_folder(STAGE)} holds checkpoints of an older layout, which "
                "RL "
                "cannot resume: start a new run"
            )
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.schedule.resume(self.loop.iteration)
        self.validations = [tuple(entry) for entry in state["trainer"]["validations"]]
        self._num_rollouts = state["trainer"]["num_rollouts"]
        if self.best is not None:
            self.best = state["best"]
        self._saved_at = self._num_rollouts
