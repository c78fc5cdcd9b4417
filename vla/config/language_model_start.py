"""`language_model.path`: the language model that a text run starts from.

A finished text run, its export, a folder of transformers or of peft adapters, or a model of the
hub. It becomes `language_model=hub` with the model's folder as `repository`; adapters stay in
`path`, and `repository` is their base.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vla.config.errors import ConfigError
from vla.files.base_models import BaseRecord, find_base
from vla.files.folder_kinds import ADAPTER, TEXT_MODEL, describe_folder
from vla.files.policy_folders import hub_folder
from vla.files.reading import DamagedFile, read_json, read_yaml
from vla.runtime import is_hub_name

SETTING = "language_model.path"
REPOSITORY = "language_model.repository"
BASE = "base.json"
"""File beside an adapter with the record of its base."""


def with_language_model(given: Mapping[str, str], name: str) -> dict[str, str]:
    """The user's settings with the model that `language_model.path` names.

    Raises:
        ConfigError: `name` holds no language model, or a setting contradicts it.
    """
    if given.get("mode", "robot") != "text":
        raise ConfigError(
            f"{SETTING}={name} starts a text run: add mode=text (policy.path starts a robot run)"
        )
    chosen = given.get("language_model", "hub")
    if chosen != "hub":
        raise ConfigError(
            f"language_model={chosen} contradicts {SETTING}={name}, which brings its own model: "
            "leave it out"
        )
    try:
        folder = find_model(name)
        if folder is None or not (folder / ADAPTER).is_file():
            if REPOSITORY in given:
                raise ConfigError(
                    f"{REPOSITORY}={given[REPOSITORY]} contradicts {SETTING}={name}, which is a "
                    "whole model: leave one of them out"
                )
            repository = name if folder is None else str(folder)
        else:
            repository = find_adapter_base(folder, given.get(REPOSITORY, ""))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    path = name if folder is None else str(folder)
    return {
        **given,
        "language_model": "hub",
        SETTING: quoted(path),
        REPOSITORY: quoted(repository),
    }


def quoted(value: str) -> str:
    """A value in Hydra's grammar."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def find_model(name: str) -> Path | None:
    """The folder of the model that `name` means; None for a whole model of the hub.

    Raises:
        ConfigError: there is no such folder, or it holds no language model.
    """
    folder = Path(name)
    if not folder.exists():
        if not is_hub_name(name):
            raise ConfigError(
                f"{SETTING}={name} is neither a folder nor user/name[@revision] of the hub: give "
                "a finished text run, its export or a model of transformers"
            )
        if not has_adapter(name):
            return None
        return hub_folder(name, f"{SETTING}=")
    if folder.is_dir():
        inside = folder / TEXT_MODEL
        is_run = (folder / "config.yaml").is_file()
        if is_run and read_yaml(folder / "config.yaml").get("mode") == "text":
            if is_model(inside):
                return inside
            raise ConfigError(
                f"{SETTING}={name} is a run that has no model yet: finish it by resume={name}"
            )
        if not is_run and is_model(folder) and "input_features" not in model_config(folder):
            return folder
    what, remedy = describe_folder(folder)
    raise ConfigError(f"{SETTING}={name} is {what}, which holds no language model: {remedy}")


def is_model(folder: Path) -> bool:
    """True for a folder with a model of transformers or an adapter of peft."""
    return (folder / "config.json").is_file() or (folder / ADAPTER).is_file()


def model_config(folder: Path) -> Mapping[str, object]:
    """The config.json of a model; empty for an adapter."""
    path = folder / "config.json"
    return read_json(path, finite=False) if path.is_file() else {}


def has_adapter(name: str) -> bool:
    """True where a hub name is an adapter of peft; its file is fetched, or read from the cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repository, _, revision = name.partition("@")
    try:
        hf_hub_download(repository, ADAPTER, revision=revision or None)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError):
        return False
    return True


def find_adapter_base(folder: Path, repository: str) -> str:
    """The folder or hub name of the base of an adapter; `repository` is the given setting.

    Raises:
        ValueError: it is named nowhere, or not here.
    """
    saved = str(read_json(folder / ADAPTER, finite=False).get("base_model_name_or_path") or "")
    if (folder / BASE).is_file():
        record: BaseRecord = read_json(folder / BASE)  # type: ignore[assignment]
        named = repository or (saved if Path(saved).is_dir() else record["name"])
        return find_base(record, named, folder, REPOSITORY)
    named = repository or saved
    if not named:
        raise DamagedFile(
            folder / ADAPTER, "it does not name the model of the adapter", f"give {REPOSITORY}"
        )
    if not Path(named).exists() and not is_hub_name(named):
        raise ConfigError(
            f"{SETTING} ({folder}) is an adapter of {Path(named).name}, which is not here: give "
            f"its folder by {REPOSITORY}=FOLDER"
        )
    return named
