"""The base model of adapters: the record that names it, and where it is on this machine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TypedDict

from vla.files.manifest import file_sha256
from vla.files.policy_folders import snapshot_commit, split_revision

WEIGHT_FILES = ("*.safetensors", "*.bin")
FOLDERS = "VLA_BASE_MODELS"
"""Environment variable with folders of base models, separated as in PATH."""


class BaseRecord(TypedDict):
    """A base model: name without folders, hub revision, or hash of the weights of a folder."""

    name: str
    revision: str | None
    sha256: str | None


def describe_base(repository: str) -> BaseRecord:
    """The record of a hub name or a folder; a folder is named without its path."""
    if Path(repository).is_dir():
        return BaseRecord(
            name=Path(repository).resolve().name,
            revision=None,
            sha256=folder_sha256(Path(repository)),
        )
    name, revision = split_revision(repository)
    return BaseRecord(name=name, revision=cached_commit(name, revision) or revision, sha256=None)


def cached_commit(name: str, revision: str | None) -> str | None:
    """The commit of a hub model in the local cache; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return snapshot_commit(Path(found).parent) if isinstance(found, str) else None


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the weight files of a folder, in the order of their names."""
    digest = hashlib.sha256()
    files = [file for pattern in WEIGHT_FILES for file in folder.glob(pattern)]
    for file in sorted(files):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def base_name(record: BaseRecord) -> str:
    """The name of a base, with its revision of the hub."""
    revision = record["revision"]
    return record["name"] if revision is None else f"{record['name']}@{revision}"


def find_base(record: BaseRecord, repository: str, policy: Path, setting: str) -> str:
    """The name or folder to load the base of the policy in `policy` from.

    `repository` is the value of `setting`. A base of the hub is read from there (its cache), or
    from that folder. A base that was a folder is known by its hash: where `repository` is no
    folder, it is searched beside the policy, in the working directory and in the folders of
    VLA_BASE_MODELS.

    Raises:
        ValueError: the folder holds other weights, or none is found.
    """
    sha256 = record["sha256"]
    if sha256 is None:
        return repository if Path(repository).is_dir() else base_name(record)
    if Path(repository).is_dir():
        found = folder_sha256(Path(repository))
        if found == sha256:
            return repository
        raise ValueError(
            f"{setting} ({repository}) holds weights with the hash {found[:12]}, but the policy in "
            f"{policy} was trained on the base {record['name']} with the hash {sha256[:12]}: give "
            "that one"
        )
    listed = [Path(each) for each in os.environ.get(FOLDERS, "").split(os.pathsep) if each]
    parents = [policy, policy.parent, Path(), *listed]
    for folder in [*listed, *(parent / record["name"] for parent in parents)]:
        if (folder / "config.json").is_file() and folder_sha256(folder) == sha256:
            return str(folder)
    raise ValueError(
        f"the policy in {policy} holds adapters of the base {record['name']} (hash {sha256[:12]}), "
        f"which is not here: give its folder by {setting}=FOLDER or by the variable {FOLDERS}, or "
        "export the policy with --merge"
    )
