"""The shared RL loop on a text policy: optimizer, schedule, reference, metrics, checkpoints, a
clock and Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch

from vla.config.text import TextConfig
from vla.config.training import Rl
from vla.decoding.recall import ENOUGH_BYTES
from vla.policies.text import TextPolicy
from vla.rl.budget import Budget, Limits
from vla.rl.catalogue import check_run, make_algorithm
from vla.rl.critic import ActorCritic
from vla.rl.loop import LoopSettings, LoopState, train
from vla.rl.protocols import Algorithm
from vla.rl.reference import AdapterOff, Cached, FrozenCopy, make_reference
from vla.rl.update import UpdateSettings
from vla.train.agreement import failing_together, main_seconds
from vla.train.optim import Schedule, make_optimizer, weights_of
from vla.train.pieces import Pieces, forget_pieces
from vla.train.run import Run, Stateful
from vla.train.seed import derive_seed
from vla.types import Rollout

STAGE = "rl"


def algorithm_of(config: TextConfig) -> Algorithm:
    """The algorithm that the settings name."""
    return make_algorithm(**config.algorithm.model_dump())


def take(kind: type[Any], rl: Rl) -> Any:
    """A settings dataclass of the core, filled from the fields of the same names."""
    return kind(**{field.name: getattr(rl, field.name) for field in fields(kind)})


class Refinement:
    """A policy on its way through the iterations of `vla.rl.loop.train`.

    `collect(iteration)` makes a rollout. `evaluate(iteration)` gives numbers to log every
    `rl.evaluate_every` iterations; `watch(iteration, rollout)` gives numbers to log on every one.
    `keep` are further parts of a checkpoint, `under_way` of what is kept of a rollout.
    `has_adapter`: the reference is the model with its adapter off, which nothing has trained yet.
    The run ends where `vla.rl.budget` says, or when asked to stop; then it is saved. With
    `rl.load_best_at_end` the policy ends with the weights of the best `validation_success`, those
    it began with among them. Of many processes each collects a rollout of its own; what `watch` and
    `evaluate` do, all do.
    """

    def __init__(
        self,
        policy: TextPolicy | ActorCritic,
        config: TextConfig,
        run: Run,
        *,
        collect: Callable[[int, Pieces], Rollout],
        evaluate: Callable[[int], dict[str, float]],
        watch: Callable[[int, Rollout], dict[str, float]],
        under_way: Mapping[str, Stateful],
        keep: Mapping[str, Stateful],
        has_adapter: bool,
    ) -> None:
        rl = config.rl
        self.policy, self.config, self.run, self.processes = policy, config, run, run.processes
        self.actor: TextPolicy = policy.actor if isinstance(policy, ActorCritic) else policy
        self.collect, self.evaluate, self.watch, self.under_way = (
            collect,
            evaluate,
            watch,
            under_way,
        )
        self.algorithm = algorithm_of(config)
        self.update, self.loop = take(UpdateSettings, rl), take(LoopSettings, rl)
        self.optimizer = make_optimizer(
            policy,
            rl.optimizer,
            rl.learning_rate,
            rl.weight_decay,
            rl.muon_learning_rate,
            dict.fromkeys(("value_head", "critic.value_head"), rl.critic_learning_rate),
        )
        self.budget = Budget(take(Limits, rl), main_seconds(run.seconds_of("judge"), run.processes))
        self.best = weights_of(policy) if rl.load_best_at_end else None
        self.schedule = Schedule(
            self.optimizer,
            rl.schedule,
            rl.num_iterations,
            rl.num_warmup_iterations,
            lambda: self.budget.share_of_seconds,
        )
        self.reference = (
            self._make_reference(has_adapter) if self.algorithm.needs_reference else None
        )
        self.state = LoopState(
            torch.Generator().manual_seed(derive_seed(config.train.seed, "minibatches"))
        )
        self.keep: dict[str, Any] = {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "loop": self.state,
            "budget": self.budget,
            **keep,
        }
        if self.reference is not None:
            self.keep["reference"] = self.reference
        self._saved_at: int | None = None
        self._resume()
        check_run(
            self.algorithm,
            self.update,
            group_size=rl.group_size,
            has_critic=self.actor.value_head is not None,
            has_reference=self.reference is not None,
        )

    def _make_reference(self, has_adapter: bool) -> FrozenCopy | AdapterOff | Cached:
        model: Any = self.actor.model
        without_adapter = model.disable_adapter if has_adapter else None
        rl = self.config.rl
        return make_reference(rl.reference, self.actor, rl.micro_batch_rows, without_adapter)

    def train(self) -> dict[str, Any]:
        """Iterate until a limit or a signal says stop; what ended it."""
        rl, started = self.config.rl, time.monotonic() - self.budget.spent.seconds
        run, shown = (
            self.run,
            self.run.progress.stage(STAGE, rl.num_iterations, self.state.iteration),
        )
        with shown as stage, self.actor.recalling(ENOUGH_BYTES):

            def seconds() -> float:
                return main_seconds(time.monotonic() - started, self.processes)

            def on_iteration(iteration: int, rollout: Rollout, metrics: dict[str, float]) -> bool:
                self.budget.note_iteration(
                    metrics, seconds(), iteration <= rl.critic_warmup_iterations
                )
                numbers = {
                    **metrics,
                    **self.watch(iteration, rollout),
                    "seconds": self.budget.spent.seconds,
                }
                is_best = False
                if iteration % rl.evaluate_every == 0 or (
                    rl.load_best_at_end and self._is_over(iteration)
                ):
                    numbers |= self.evaluate(iteration)
                    is_best = self._note_validation(numbers, seconds())
                run.log.write(STAGE, iteration, numbers)
                stage.advance(
                    **{
                        k: numbers[k]
                        for k in ("return_mean", "success", "kl_trajectory")
                        if k in numbers
                    }
                )
                ends = run.stop.requested or self._is_over(iteration)
                if ends or is_best or run.due(iteration):
                    self.save(iteration, numbers.get("validation_success"))
                return ends

            if self.state.iteration == 0 and rl.num_iterations and self.best is not None:
                self._note_validation(self.evaluate(0), seconds())
            if not self._is_over(self.state.iteration):
                train(
                    self.policy,
                    self.algorithm,
                    self._collect,
                    self.optimizer,
                    self.update,
                    self.loop,
                    self.state,
                    reference=self.reference,
                    scheduler=self.schedule,
                    on_iteration=on_iteration,
                    reduce_sum=self.processes.reduce_sum,
                    threads=self.actor.threads,
                    timed=run.timer,
                )
        run.check_stop()
        forget_pieces(run, STAGE)
        return self._end()

    def _is_over(self, iteration: int) -> bool:
        return self.budget.ended_by(iteration) is not None

    def _note_validation(self, numbers: Mapping[str, float], seconds: float) -> bool:
        """Whether the weights did as well as any before on held-out prompts; then they are kept
        where they are asked for.
        """
        if "validation_success" not in numbers:
            return False
        is_best = self.budget.note_validation(
            numbers["validation_success"], seconds, counts=self.state.iteration > 0
        )
        if is_best and self.best is not None:
            self.best = weights_of(self.policy)
        return is_best

    def _end(self) -> dict[str, Any]:
        """What ended the iterations, said and told; the weights are those that the run ends
        with."""
        if self.best is not None:
            self.policy.load_state_dict(self.best)
        told = self.budget.summary(self.state.iteration)
        for line in (told["text"], told.get("nothing_learned")):
            if line:
                self.run.progress.say(line)
        return told

    def _collect(self, iteration: int) -> Rollout:
        """This process's rollout. What is collected of it is kept where it takes long."""
        parts = dict(self.under_way)
        if self.actor.recall is not None:
            self.actor.recall.forget()  # also where the last update changed no weight: so it is in a resumed run
            parts["recall"] = self.actor.recall
        pieces = Pieces(self.run, STAGE, iteration, parts, self._save_before)
        with failing_together(self.processes), self.processes.own_draws("rollout", iteration):
            return self.collect(iteration, pieces)

    def _save_before(self, rng: Mapping[str, Any]) -> None:
        """Save what a rollout under way belongs to; `rng` is from before it began."""
        if self._saved_at != self.state.iteration:
            self.save(self.state.iteration, rng=rng)

    def save(
        self, iteration: int, score: float | None = None, rng: Mapping[str, Any] | None = None
    ) -> None:
        """Write a checkpoint; the one of the highest score is kept besides the last ones."""
        parts = {name: part.state_dict() for name, part in self.keep.items()}
        state = {"policy": self.policy.state_dict(), **parts}
        if self.best is not None:
            state["best"] = self.best
        self.run.save(STAGE, iteration, state, score, rng=rng)
        self._saved_at = iteration

    def _resume(self) -> None:
        """Put everything back to the last checkpoint, if there is one."""
        state = self.run.load(STAGE)
        if state is None:
            return
        self.policy.load_state_dict(state["policy"])
        if self.best is not None:
            self.best = state["best"]
        for name, part in self.keep.items():
            part.load_state_dict(state[name])
        self._saved_at = self.state.iteration
