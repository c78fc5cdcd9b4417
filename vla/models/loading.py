"""Loading models and tokenizers of transformers by hub name or folder, with checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla.files.manifest import MANIFEST, find_fault
from vla.files.policy_folders import split_revision
from vla.files.reading import DamagedFile, short_message
from vla.spelling import nearest_name

BACKBONE = "model.backbone.repository"
ARCHITECTURE = "architecture"
"""Name of a folder with the configuration of a model, whose weights are elsewhere."""
REMEDY = "copy or fetch it again, or give another one"


def load_pretrained(kind: Any, name: str, setting: str, **options: Any) -> Any:
    """Load a hub name or folder by `kind.from_pretrained` (`kind` is an Auto class).

    A name may end with a revision, `user/name@revision`. A folder `ARCHITECTURE` without weights
    gives a model with random ones; its tokenizer is in the folder `tokenizer` beside it.

    Raises:
        ValueError: nothing has that name, a file is damaged, or weights are missing. The message
            names the setting.
    """
    check_manifest(Path(name), setting)
    is_model = "Model" in kind.__name__
    repository, revision = split_revision(name)
    if revision is not None:
        options["revision"] = revision
    is_architecture = Path(name).name == ARCHITECTURE and not any(Path(name).glob("*.safe*"))
    if is_architecture and "Tokenizer" in kind.__name__:
        repository = str(Path(name).parent / "tokenizer")
    try:
        if is_model and is_architecture:
            from transformers import AutoConfig

            return kind.from_config(AutoConfig.from_pretrained(name), **options)
        loaded = kind.from_pretrained(
            repository, **options, **({"output_loading_info": True} if is_model else {})
        )
    except Exception as error:  # readers of every format raise errors of their own
        raise ValueError(
            f"{setting} ({name}) cannot be loaded: {short_message(error)}; {REMEDY}"
        ) from error
    if not is_model:
        return loaded
    model, info = loaded
    if info["missing_keys"]:
        raise ValueError(
            f"{setting} ({name}) lacks the weights {min(info['missing_keys'])}; {REMEDY}"
        )
    return model


def check_folder(name: str, setting: str) -> None:
    """Check that a name is a folder, or has the form of a hub name.

    Raises:
        ValueError: no such folder (with the nearest name beside it).
    """
    path = Path(name)
    if path.is_file():
        raise ValueError(f"{setting} ({name}) is a file: give the folder that it is in")
    # A hub name is user/name; anything else is meant as a folder.
    if path.is_dir() or not (path.is_absolute() or name.startswith(".") or name.count("/") > 1):
        return
    beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    near = nearest_name(path.name, beside)
    hint = "" if near is None else f"; did you mean {path.parent / near}?"
    raise ValueError(f"{setting} ({name}): there is no such folder{hint}")


def check_manifest(folder: Path, setting: str) -> None:
    """Compare a folder that a run wrote with its checksums.

    Raises:
        DamagedFile: a file is missing or has changed.
    """
    if (folder / MANIFEST).is_file() and (fault := find_fault(folder)) is not None:
        raise DamagedFile(folder, f"{fault} ({setting})", REMEDY)


def plain_model(model: Any) -> Any:
    """The transformers model inside a peft wrapper (its adapters stay active), or the model
    itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
