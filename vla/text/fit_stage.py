"""A supervised fit as a stage of a run: shown, timed, logged, and saved on the way, so that it goes
on where it was."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from vla.train.optim import Schedule, Together
from vla.train.run import Run


class FitStage:
    """Watches a fit of `num_steps` steps.

    with FitStage(run, "sft", 40) as stage:
        fit_examples(policy, examples, settings, seed, stage)

    A run that was stopped within the fit, or after it, loads the weights it had. `constants`: see
    `constant`.
    """

    def __init__(self, run: Run, name: str, num_steps: int) -> None:
        self.run, self.name, self.num_steps = run, name, num_steps
        self._within = run.stage(name)

    def __enter__(self) -> FitStage:
        self._within.__enter__()
        self.saved = self.run.load(self.name)
        self.constants: dict[str, Tensor] = {} if self.saved is None else self.saved["constants"]
        self._shown = self.run.progress.stage(
            self.name, self.num_steps, self.saved["step"] if self.saved else 0
        )
        self._bar = self._shown.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shown.__exit__(kind, error, trace)
        self._within.__exit__(kind, error, trace)

    def begin(self, module: nn.Module, optimizer: Together, schedule: Schedule) -> int:
        """Put everything back to the last checkpoint; the steps that were done by then."""
        self._module, self._optimizer, self._schedule = module, optimizer, schedule
        if self.saved is None:
            return 0
        module.load_state_dict(self.saved["module"])
        if self.saved["step"] < self.num_steps:
            optimizer.load_state_dict(self.saved["optimizer"])
            schedule.load_state_dict(self.saved["schedule"])
        return self.saved["step"]

    def after(self, step: int, loss: float) -> None:
        """Note a step that was made, save where it is time to, and leave where someone asked to
        stop."""
        self.run.log.write(self.name, step, {"loss": loss})
        self._bar.advance(loss=loss)
        over, stop = step == self.num_steps, self.run.stop.requested
        if over or stop or self.run.due(step):
            state: dict[str, Any] = {
                "module": self._module.state_dict(),
                "step": step,
                "constants": self.constants,
            }
            if not over:
                state |= {
                    "optimizer": self._optimizer.state_dict(),
                    "schedule": self._schedule.state_dict(),
                }
            self.run.save(self.name, step, state, keep=1 if over else None)
        if stop:
            self.run.check_stop()


def constant(stage: FitStage | None, name: str, make: Callable[[], Tensor]) -> Tensor:
    """What follows from the weights that a fit begins with: made once, kept beside every checkpoint
    of its stage."""
    if stage is None:
        return make()
    if name not in stage.constants:
        stage.constants[name] = make()
    return stage.constants[name]
