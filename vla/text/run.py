"""Text mode: one function for every kind of run."""

from __future__ import annotations

from typing import Any

from vla.config.text import TextConfig
from vla.text.rlvr import run_rlvr
from vla.train.progress import Progress
from vla.train.run_folder import RunFolder, open_run
from vla.train.seed import seed_everything


def run(config: TextConfig, folder: RunFolder, progress: Progress | None = None) -> dict[str, Any]:
    """Do what `mode=text` was asked for; the results, which also stand in the folder with report and trained model."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    if config.train.num_threads:
        torch.set_num_threads(config.train.num_threads)
    seed_everything(config.train.seed)
    progress = progress or Progress()
    return run_rlvr(config, folder, progress)


def run_text(config: TextConfig) -> dict[str, Any]:
    """Open the run's folder and do what was asked for."""
    folder = open_run(config)
    results = run(config, folder)
    print(f"report: {folder.path / 'report.html'}", flush=True)
    return results
