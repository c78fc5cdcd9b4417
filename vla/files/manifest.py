"""Manifests: sizes and sha256 checksums of the files of a folder, which reveal damage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from vla.files.reading import KEYS, DamagedFile, read_json
from vla.files.writing import write_json

MANIFEST = "manifest.json"
FORMAT = 1


class FileRecord(TypedDict):
    """The size and the checksum of a file."""

    bytes: int
    sha256: str


class Manifest(TypedDict):
    """The content of manifest.json."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    format: int
    files: dict[str, FileRecord]


def write_manifest(folder: Path, files: Iterable[Path], **more: object) -> None:
    """Write `folder/manifest.json` for files under it, with the further keys `more`."""
    records = {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": file_sha256(file),
        }
        for file in files
    }
    write_json(
        folder / MANIFEST, {"format": FORMAT, **more, "files": dict(sorted(records.items()))}
    )


def find_fault(folder: Path) -> str | None:
    """The first difference between a folder's files and its manifest; None where they agree."""
    try:
        manifest = read_json(folder / MANIFEST, Manifest)
    except DamagedFile as error:
        return f"{MANIFEST} cannot be read ({error.fault})"
    if manifest["format"] != FORMAT:
        return f"{MANIFEST} has format {manifest['format']}, this version reads {FORMAT}"
    for name, record in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != record["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, {record['bytes']} were written"
        if file_sha256(file) != record["sha256"]:
            return f"{name} does not have the checksum that was written"
    return None


def file_sha256(file: Path) -> str:
    """The sha256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
