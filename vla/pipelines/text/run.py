"""Text mode: the recipe that `text.name` selects, in its run folder."""

from __future__ import annotations

from typing import Any, assert_never

from vla.config.text import (
    Constitution,
    Control,
    Rejection,
    Rlhf,
    Rlvr,
    TextConfig,
    TextPreference,
    TextSft,
)
from vla.interrupt import stop_on_interrupt
from vla.training.distributed import SINGLE_PROCESS, Processes, init_processes
from vla.training.progress import Progress
from vla.training.run import Run, save_on_exit, start_run
from vla.training.run_folder import RunFolder, open_run
from vla.training.seed import seed_everything


def run_in_folder(
    config: TextConfig,
    folder: RunFolder,
    progress: Progress | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Do what `mode=text` was asked for; the results, which also stand in the folder with report
    and trained model.

    Raises Interrupted where it was asked to stop; what it has by then is saved.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    if config.train.num_threads:
        torch.set_num_threads(config.train.num_threads)
    seed_everything(config.train.seed)
    with stop_on_interrupt() as stop:
        started = start_run(folder, stop, processes, config.train, progress)
        with save_on_exit(started, lambda: folder.path / "report.html"):
            return run_recipe(config, started)


def run_recipe(config: TextConfig, run: Run) -> dict[str, Any]:
    """The recipe of the settings; recipes are loaded only when they run."""
    match config.text:
        case Rlvr():
            from vla.pipelines.text.rlvr import run_rlvr

            return run_rlvr(config, run)
        case TextSft():
            from vla.pipelines.text.sft import run_sft

            return run_sft(config, run)
        case TextPreference():
            from vla.pipelines.text.preference import run_preference

            return run_preference(config, run)
        case Rlhf():
            from vla.pipelines.text.rlhf import run_rlhf

            return run_rlhf(config, run)
        case Rejection():
            from vla.pipelines.text.rejection import run_rejection

            return run_rejection(config, run)
        case Control():
            from vla.pipelines.text.control import run_control

            return run_control(config, run)
        case Constitution():
            from vla.pipelines.text.constitution import run_constitution

            return run_constitution(config, run)
        case other:
            assert_never(other)


def run_text(config: TextConfig) -> dict[str, Any]:
    """Open the run's folder and do what was asked for."""
    processes = init_processes(config.train.device, config.train.precision)
    folder = open_run(config, processes)
    return run_in_folder(config, folder, None, processes)
