"""Datasets of the Hugging Face Hub: a name `user/name[@revision]` in the place of a folder."""

from __future__ import annotations

from pathlib import Path

from vla.files.policy_folders import split_revision
from vla.runtime import is_hub_name


def local_dataset(name: str) -> Path:
    """The folder of a dataset: `name` itself, or the hub's download in the hub's own cache.

    Raises ValueError where there is neither.
    """
    folder = Path(name)
    if folder.exists():
        return folder
    if not is_hub_name(name):
        raise ValueError(
            f"data.path={name} is neither a folder nor the name of a dataset on the hub (user/name)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repository, revision = split_revision(name)
    try:
        return Path(snapshot_download(repository, revision=revision, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ValueError(
            f"data.path={name} is no local folder, and its download from the hub failed: {error}"
        ) from None
