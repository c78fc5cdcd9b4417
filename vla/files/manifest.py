"""A manifest: the sizes and sha256 checksums of the files of a folder, by which damage is found
when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from vla.files.reading import KEYS, DamagedFile, read_json
from vla.files.writing import write_json

MANIFEST = "manifest.json"
FORMAT = 1


class FileRecord(TypedDict):
    """What was written into a file."""

    bytes: int
    sha256: str


class Manifest(TypedDict):
    """What a manifest holds."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    format: int
    files: dict[str, FileRecord]


def write_manifest(folder: Path, files: Iterable[Path], **more: Any) -> None:
    """Write `folder/manifest.json` about files under it; `more` stands beside."""
    written = {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": file_sha256(file),
        }
        for file in files
    }
    write_json(
        folder / MANIFEST, {"format": FORMAT, **more, "files": dict(sorted(written.items()))}
    )


def find_fault(folder: Path) -> str | None:
    """What is wrong with the files that the manifest of a folder names, or None."""
    try:
        manifest = read_json(folder / MANIFEST, Manifest)
    except DamagedFile as error:
        return f"{MANIFEST} cannot be read ({error.fault})"
    if manifest["format"] != FORMAT:
        return f"{MANIFEST} says format {manifest['format']}, this version reads {FORMAT}"
    for name, written in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != written["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, {written['bytes']} were written"
        if file_sha256(file) != written["sha256"]:
            return f"{name} does not have the checksum that was written"
    return None


def file_sha256(file: Path) -> str:
    """The sha256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
