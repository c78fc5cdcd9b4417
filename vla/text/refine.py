"""The shared RL loop on a text policy: optimizer, schedule, reference, metrics, checkpoints, a clock and Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

import torch

from vla.command_line import as_yaml
from vla.config.text import TextConfig
from vla.config.training import Rl
from vla.decoding.recall import ENOUGH_BYTES
from vla.interrupt import Interrupted, stop_on_interrupt
from vla.policies.text import TextPolicy
from vla.rl.catalogue import check_run, make_algorithm
from vla.rl.critic import ActorCritic
from vla.rl.loop import LoopSettings, LoopState, train
from vla.rl.protocols import Algorithm
from vla.rl.reference import AdapterOff, Cached, FrozenCopy, make_reference
from vla.rl.update import UpdateSettings
from vla.train.agreement import failing_together, from_main, main_seconds, shared
from vla.train.checkpoint import last_checkpoint, load_checkpoint, save_checkpoint
from vla.train.distributed import ALONE, Processes
from vla.train.metrics import open_log
from vla.train.optim import Schedule, make_optimizer
from vla.train.progress import Progress
from vla.train.run_folder import RunFolder
from vla.train.seed import derive_seed, restore_rng, rng_state
from vla.train.timing import Timer
from vla.types import Rollout

STAGE = "rl"


@runtime_checkable
class Stateful(Protocol):
    """What a checkpoint keeps besides weights and optimizer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def algorithm_of(config: TextConfig) -> Algorithm:
    """The algorithm that the settings name."""
    return make_algorithm(**config.algorithm.model_dump())


def take(kind: type[Any], rl: Rl) -> Any:
    """A settings dataclass of the core, filled from the fields of the same names."""
    return kind(**{field.name: getattr(rl, field.name) for field in fields(kind)})


class Refinement:
    """A policy on its way through the iterations of `vla.rl.loop.train`.

    `collect(iteration)` makes a rollout. `evaluate(iteration)` gives numbers to log every `rl.evaluate_every`
    iterations; `watch(iteration, rollout)` gives numbers to log on every one. `keep` are further parts of a
    checkpoint. `has_adapter`: the reference is the model with its adapter off, which nothing has trained yet. The run
    ends after its iterations, after `rl.max_seconds`, or when asked to stop; then it is saved.
    Of many processes each collects a rollout of its own; what `watch` and `evaluate` do, all do.
    """

    def __init__(
        self,
        policy: TextPolicy | ActorCritic,
        config: TextConfig,
        folder: RunFolder,
        progress: Progress,
        *,
        collect: Callable[[int], Rollout],
        evaluate: Callable[[int], dict[str, float]],
        watch: Callable[[int, Rollout], dict[str, float]],
        keep: Mapping[str, Stateful],
        has_adapter: bool,
        timer: Timer,
        num_records: int = 0,
        processes: Processes = ALONE,
    ) -> None:
        rl = config.rl
        self.policy, self.config, self.folder, self.progress = policy, config, folder, progress
        self.processes, self.timer = processes, timer
        self.actor: TextPolicy = policy.actor if isinstance(policy, ActorCritic) else policy
        self.collect, self.evaluate, self.watch = collect, evaluate, watch
        self.algorithm = algorithm_of(config)
        self.update, self.loop = take(UpdateSettings, rl), take(LoopSettings, rl)
        self.optimizer = make_optimizer(
            policy, rl.optimizer, rl.learning_rate, rl.weight_decay, rl.muon_learning_rate,
            dict.fromkeys(("value_head", "critic.value_head"), rl.critic_learning_rate),
        )  # fmt: skip
        self.elapsed_seconds = 0.0
        self.schedule = Schedule(
            self.optimizer, rl.schedule, rl.num_iterations, rl.num_warmup_iterations, lambda: self.elapsed_share
        )
        self.reference = self._make_reference(has_adapter) if self.algorithm.needs_reference else None
        self.state = LoopState(torch.Generator().manual_seed(derive_seed(config.train.seed, "minibatches")))
        self.keep: dict[str, Any] = {"optimizer": self.optimizer, "schedule": self.schedule, "loop": self.state, **keep}
        if self.reference is not None:
            self.keep["reference"] = self.reference
        done = self._resume() if config.resume else num_records
        self.log = open_log(folder.path, done, config.train, processes.is_main)
        check_run(
            self.algorithm,
            self.update,
            group_size=rl.group_size,
            has_critic=self.actor.value_head is not None,
            has_reference=self.reference is not None,
        )

    @property
    def elapsed_share(self) -> float:
        """The share of `rl.max_seconds` that is used up; 0 without a limit."""
        limit = self.config.rl.max_seconds
        return 0.0 if limit is None else self.elapsed_seconds / limit

    def _make_reference(self, has_adapter: bool) -> FrozenCopy | AdapterOff | Cached:
        model: Any = self.actor.model
        without_adapter = model.disable_adapter if has_adapter else None
        rl = self.config.rl
        return make_reference(rl.reference, self.actor, rl.micro_batch_rows, without_adapter)

    def run(self) -> None:
        """Iterate to the end, or until the clock or a signal says stop."""
        started = time.monotonic() - self.elapsed_seconds
        total = self.config.rl.num_iterations
        stage_of_run = self.progress.stage(STAGE, total, self.state.iteration)
        with stop_on_interrupt() as own_stop, stage_of_run as stage, self.actor.recalling(ENOUGH_BYTES):
            stop = shared(own_stop, self.processes)

            def on_iteration(iteration: int, rollout: Rollout, metrics: dict[str, float]) -> bool:
                self.elapsed_seconds = main_seconds(time.monotonic() - started, self.processes)
                numbers = {**metrics, **self.watch(iteration, rollout), "seconds": self.elapsed_seconds}
                if iteration % self.config.rl.evaluate_every == 0:
                    numbers |= self.evaluate(iteration)
                self.log.write(STAGE, iteration, numbers)
                stage.advance(**{k: numbers[k] for k in ("return_mean", "success", "kl_trajectory") if k in numbers})
                limit = self.config.rl.max_seconds
                ends = stop.requested or (limit is not None and self.elapsed_seconds >= limit)
                if ends or iteration % self.config.train.checkpoint_every == 0:
                    self.save(iteration)
                return ends

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
                timed=self.timer,
            )
        self.log.close()
        if stop.requested:
            self.progress.say(f"stopped; continue with resume={self.folder.path}")
            raise Interrupted(stop.number)

    def _collect(self, iteration: int) -> Rollout:
        """This process's rollout."""
        with failing_together(self.processes), self.processes.own_draws("rollout", iteration):
            return self.collect(iteration)

    def save(self, iteration: int) -> None:
        """Write a checkpoint."""
        if not self.processes.is_main:
            return
        state = {
            "policy": self.policy.state_dict(),
            **{name: part.state_dict() for name, part in self.keep.items()},
            "rng": rng_state(),
            "run": {"num_records": self.log.num_records, "elapsed_seconds": self.elapsed_seconds},
        }
        settings = {"config.yaml": as_yaml(self.config)}
        number = self.config.train.keep_checkpoints
        save_checkpoint(self.folder.checkpoints, iteration, state, keep=number, texts=settings)

    def _resume(self) -> int:
        """Put everything back to the last checkpoint; the number of metric records it had reached."""
        path = from_main(last_checkpoint(self.folder.checkpoints), self.processes)
        if path is None:
            return 0
        state = load_checkpoint(path)
        self.policy.load_state_dict(state["policy"])
        self.elapsed_seconds = state["run"]["elapsed_seconds"]
        for name, part in self.keep.items():
            part.load_state_dict(state[name])
        restore_rng(state["rng"])
        return int(state["run"]["num_records"])
