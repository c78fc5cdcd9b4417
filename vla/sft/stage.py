"""Supervised training as a stage of a run, with progress bar, log, checkpoints and resume."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import Tensor

from vla.sft.loop import SupervisedTrainer
from vla.training.run import Run


class TrainingStage:
    """A stage of `num_steps` training steps.

    with TrainingStage(run, "sft", 40) as stage:
        train_on_examples(policy, num_examples, compute_loss, settings, seed, stage)

    A resumed run loads the weights of its last checkpoint. `constants` are the tensors of
    `checkpointed_constant`.

    Raises:
        ValueError: the checkpoint is of an earlier version, in another format.
    """

    def __init__(self, run: Run, name: str, num_steps: int) -> None:
        self.run = run
        self.name = name
        self.num_steps = num_steps
        self._run_stage = run.stage(name)

    def __enter__(self) -> TrainingStage:
        self._run_stage.__enter__()
        self.saved = self.run.load(self.name)
        if self.saved is not None and "state" not in self.saved:
            raise ValueError(
                f"{self.run.checkpoint_folder(self.name)} was written by an earlier version, in "
                "another form: start the run anew, without resume"
            )
        self.constants: dict[str, Tensor] = {} if self.saved is None else self.saved["constants"]
        done = 0 if self.saved is None else self.saved["state"]["step"]
        self._bar_context = self.run.progress.bar(self.name, self.num_steps, done)
        self._bar = self._bar_context.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar_context.__exit__(kind, error, trace)
        self._run_stage.__exit__(kind, error, trace)

    def resume(self, trainer: SupervisedTrainer) -> None:
        """Load the last checkpoint into the trainer and its module."""
        self._trainer = trainer
        if self.saved is not None:
            trainer.module.load_state_dict(self.saved["module"])
            trainer.load_state_dict(self.saved)

    def record_step(self, step: int, loss: float) -> None:
        """Log a finished step, save where a checkpoint is due, and raise Interrupted on a stop."""
        self.run.log.write(self.name, step, {"loss": loss})
        self._bar.advance(loss=loss)
        is_over = self._trainer.is_over
        stop = self.run.stop.requested
        if is_over or stop or self.run.checkpoint_due(step):
            self._save(is_over)
        if stop:
            self.run.check_stop()

    def _save(self, is_over: bool) -> None:
        state: dict[str, Any] = {
            "module": self._trainer.module.state_dict(),
            "constants": self.constants,
            **self._trainer.state_dict(),
        }
        if is_over:  # no further step needs the optimizer
            del state["optimizer"]
        self.run.save(self.name, self._trainer.step, state, keep=1 if is_over else None)


def checkpointed_constant(
    stage: TrainingStage | None, name: str, make: Callable[[], Tensor]
) -> Tensor:
    """A tensor computed from the initial weights: made once, saved in every checkpoint of the
    stage.

    Without a stage, `make()`.
    """
    if stage is None:
        return make()
    if name not in stage.constants:
        stage.constants[name] = make()
    return stage.constants[name]
