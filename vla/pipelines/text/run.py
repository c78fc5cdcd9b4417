"""Text mode: runs the recipe that `text.name` selects, in its run folder."""

from __future__ import annotations

from vla.config.text import (
    Constitution,
    Control,
    HubLanguageModel,
    Rejection,
    Rlhf,
    Rlvr,
    TextConfig,
    TextPreference,
    TextSft,
)
from vla.files.base_models import describe_base
from vla.files.reading import read_json
from vla.files.writing import write_json
from vla.interrupt import stop_on_interrupt
from vla.plugins import load_target
from vla.training.distributed import SINGLE_PROCESS, Processes, init_processes
from vla.training.progress import Progress
from vla.training.run import Run, save_on_exit, start_run
from vla.training.run_folder import RunFolder, open_run
from vla.training.seed import seed_everything

RECIPES: dict[type, str] = {
    Rlvr: "vla.pipelines.text.rlvr:run_rlvr",
    TextSft: "vla.pipelines.text.sft:run_sft",
    TextPreference: "vla.pipelines.text.preference:run_preference",
    Rlhf: "vla.pipelines.text.rlhf:run_rlhf",
    Rejection: "vla.pipelines.text.rejection:run_rejection",
    Control: "vla.pipelines.text.control:run_control",
    Constitution: "vla.pipelines.text.constitution:run_constitution",
}
"""The function that runs each section `text`; its module is imported when it runs."""


def run_text(config: TextConfig) -> dict[str, object]:
    """Open the run folder of the settings and run their recipe in it; the results."""
    processes = init_processes(config.train.device)
    folder = open_run(config, processes)
    return run_in_folder(config, folder, None, processes)


def run_in_folder(
    config: TextConfig,
    folder: RunFolder,
    progress: Progress | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> dict[str, object]:
    """Run the recipe of the settings in an open folder.

    Returns the results. They also stand in the folder, with the report and the trained model.

    Raises:
        Interrupted: the run was stopped from outside; its state is saved.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    if config.train.num_threads:
        torch.set_num_threads(config.train.num_threads)
    seed_everything(config.train.seed)
    with stop_on_interrupt() as stop:
        started = start_run(folder, stop, processes, config.train, progress)
        record_start(config, started)
        with save_on_exit(started, lambda: folder.path / "report.html"):
            return run_recipe(config, started)


def record_start(config: TextConfig, run: Run) -> None:
    """Write the origin of the weights into start.json; a resumed run is held against it.

    Raises:
        ValueError: the folder or revision holds other weights than at the start of the run.
    """
    settings = config.language_model
    if not isinstance(settings, HubLanguageModel):
        return
    name = settings.repository if settings.path is None else settings.path
    record = dict(describe_base(name))
    path = run.folder.path / "start.json"
    if not path.exists():
        if run.processes.is_main:
            write_json(path, record)
        return
    before = read_json(path)
    if any(before[key] != record[key] for key in ("revision", "sha256") if before[key] is not None):
        raise ValueError(
            f"language_model ({name}) holds other weights than when the run started: restore them, "
            "or start a new run"
        )


def run_recipe(config: TextConfig, run: Run) -> dict[str, object]:
    """The results of the recipe of the settings, from `RECIPES`."""
    recipe = load_target(RECIPES[type(config.text)])
    results: dict[str, object] = recipe(config, run)
    return results
