"""Folders of trained policies and models: runs, exports, LeRobot checkpoints, and hub downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vla.files.reading import read_json
from vla.runtime import is_hub_name

FILES = (
    "README.md",
    "*.json",
    "config.yaml",
    "*.safetensors",
    "*.jinja",
    "tokenizer/*",
    "architecture/*",
)
"""Patterns of the files to download; none of them is executable."""
LAST_TRAINED = "checkpoints/last/pretrained_model"
"""Where `lerobot-train` leaves a policy in its output folder."""
INSIDE = ("", "pretrained_model", LAST_TRAINED)
"""Subfolders that are searched for a checkpoint of LeRobot."""

PolicyKind = Literal["run", "export", "lerobot"]


def split_revision(name: str) -> tuple[str, str | None]:
    """Split `user/name@revision` into name and revision; a path and a bare name have none."""
    repository, at, revision = name.partition("@")
    return (repository, revision) if at and is_hub_name(name) else (name, None)


def hub_folder(name: str, setting: str = "") -> Path:
    """The downloaded folder of `user/name[@revision]`, in the hub's own cache.

    Raises:
        ValueError: the hub cannot be reached, or has no such repository or revision.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repository, revision = split_revision(name)
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ValueError(
            f"{setting}{name} is no local folder, and cannot be downloaded from the hub: {error}"
        ) from None


def find_policy(folder: Path) -> tuple[PolicyKind, Path] | None:
    """(kind, folder of its files) of the policy in `folder`; None where there is none.

    `folder` may be a run, an export, a checkpoint of LeRobot, or the output of `lerobot-train`.
    """
    for inside in INSIDE:
        found = folder / inside
        if (found / "policy.json").is_file() and (found / "config.yaml").is_file():
            return ("export" if is_export(found) else "run"), found
        if (found / "config.json").is_file() and is_lerobot_config(found / "config.json"):
            return "lerobot", found
    return None


def is_export(folder: Path) -> bool:
    """True for an exported policy: its weights stand beside its settings."""
    return (folder / "model.safetensors").is_file()


def is_lerobot_config(path: Path) -> bool:
    """True for the config.json of a policy of LeRobot."""
    return {"type", "input_features"} <= read_json(path, finite=False).keys()


def snapshot_commit(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache (`.../snapshots/COMMIT`), None elsewhere."""
    return folder.name if folder.parent.name == "snapshots" else None
