"""Datasets of the hub: `user/name` where a folder could stand."""

from __future__ import annotations

from pathlib import Path

from vla.runtime import is_hub_name


def local_dataset(name: str) -> Path:
    """The folder of that name, or what the hub holds under it, in the hub's own cache.

    Raises ValueError when there is neither.
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

    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ValueError(
            f"data.path={name} is no folder here, and the hub does not give it: {error}"
        ) from None
