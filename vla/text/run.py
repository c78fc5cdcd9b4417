"""Text mode: one function for every kind of run."""

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
from vla.train.distributed import ALONE, Processes, start_processes
from vla.train.progress import Progress
from vla.train.run_folder import RunFolder, open_run
from vla.train.seed import seed_everything


def run(
    config: TextConfig, folder: RunFolder, progress: Progress | None = None, processes: Processes = ALONE
) -> dict[str, Any]:
    """Do what `mode=text` was asked for; the results, which also stand in the folder with report and trained model."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    if config.train.num_threads:
        torch.set_num_threads(config.train.num_threads)
    seed_everything(config.train.seed)
    return _run(config, folder, progress or (Progress() if processes.is_main else Progress.silent()), processes)


def _run(config: TextConfig, folder: RunFolder, progress: Progress, processes: Processes) -> dict[str, Any]:
    match config.text:
        case Rlvr():
            from vla.text.rlvr import run_rlvr

            return run_rlvr(config, folder, progress, processes)
        case TextSft():
            from vla.text.sft import run_sft

            return run_sft(config, folder, progress, processes)
        case TextPreference():
            from vla.text.preference import run_preference

            return run_preference(config, folder, progress)
        case Rlhf():
            from vla.text.rlhf import run_rlhf

            return run_rlhf(config, folder, progress)
        case Rejection():
            from vla.text.rejection import run_rejection

            return run_rejection(config, folder, progress)
        case Control():
            from vla.text.control import run_control

            return run_control(config, folder, progress)
        case Constitution():
            from vla.text.constitution import run_constitution

            return run_constitution(config, folder, progress)
        case other:
            assert_never(other)


def run_text(config: TextConfig) -> dict[str, Any]:
    """Open the run's folder and do what was asked for."""
    processes = start_processes(config.train.device, config.train.precision)
    folder = open_run(config, processes)
    results = run(config, folder, None, processes)
    if processes.is_main:
        print(f"report: {folder.path / 'report.html'}", flush=True)
    return results
