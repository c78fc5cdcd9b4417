"""A trained language model as a folder of transformers, or of peft with the name of its base."""

from __future__ import annotations

import shutil
from pathlib import Path

from vla.config.language_model_start import BASE, find_adapter_base
from vla.files.base_models import base_name
from vla.files.folder_kinds import ADAPTER, TEXT_MODEL
from vla.files.manifest import write_manifest
from vla.files.reading import read_json, read_yaml
from vla.files.writing import write_json
from vla.models.loading import check_manifest, load_pretrained


def is_text_run(run: Path) -> bool:
    """True for a run of a language model."""
    settings = run / "config.yaml"
    return settings.is_file() and read_yaml(settings).get("mode") == "text"


def export_language_model(run: Path, folder: Path, *, merge: bool) -> Path:
    """Write the model that a text run ended with into `folder`.

    An adapter stays one and names its base without a path; with `merge` it is added to its base.

    Raises:
        ValueError: the run has no model, the folder holds other files, or the base is not here.
    """
    model = run / TEXT_MODEL
    if not model.is_dir():
        raise ValueError(f"{run} holds no model: finish it by resume={run}")
    if folder.exists() and any(folder.iterdir()) and not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds other files: choose an empty folder")
    check_manifest(model, "the model of the run")
    is_adapter = (model / ADAPTER).is_file()
    shutil.rmtree(folder, ignore_errors=True)
    if merge and is_adapter:
        write_merged(model, folder)
        return folder
    if merge:
        print(f"{run}: nothing to merge, its model is one already")
    shutil.copytree(model, folder)
    if is_adapter:
        named = base_name(read_json(folder / BASE))  # type: ignore[arg-type]
        settings = dict(read_json(folder / ADAPTER, finite=False))
        write_json(folder / ADAPTER, {**settings, "base_model_name_or_path": named})
        card = folder / "README.md"  # peft writes the path of the base into it
        card.write_text(f"---\nlibrary_name: peft\n---\n\n# An adapter of `{named}`\n")
        write_manifest(
            folder, [each for each in folder.rglob("*") if each.is_file() and each != card]
        )
    return folder


def write_merged(model: Path, folder: Path) -> None:
    """Write the adapter in `model` and its base as one model."""
    from transformers import AutoTokenizer

    from vla.text.language_model import load_from_folder, merge_adapter

    base, _ = load_from_folder(find_adapter_base(model, ""))
    merge_adapter(base, model).save_pretrained(folder)
    load_pretrained(AutoTokenizer, str(model), "the run's model").save_pretrained(folder)
    write_manifest(folder, [each for each in folder.rglob("*") if each.is_file()])
