"""Checksums of the files of an exported policy, by which damaged exports are refused."""

from __future__ import annotations

import sys
from pathlib import Path

from vla.files.manifest import MANIFEST, find_fault, write_manifest
from vla.files.reading import DamagedFile

WEIGHTS = "model.safetensors"
CHECKED = (
    WEIGHTS,
    "merged_adapters.safetensors",
    "policy.json",
    "starts.json",
    "tokenizer/*",
    "architecture/*",
)
"""Files that determine the actions; the card and the settings may be edited."""


def write_checksums(folder: Path) -> None:
    """Write the manifest of a folder whose other files are complete."""
    write_manifest(folder, [file for pattern in CHECKED for file in folder.glob(pattern)])


def check_export(folder: Path) -> None:
    """Compare an exported policy with its manifest; 1 GB takes 0.7 s of a processor.

    Raises DamagedFile where a file differs. An export of an earlier version has no manifest, which
    is printed.
    """
    if not (folder / MANIFEST).exists():
        print(
            f"{folder} has no {MANIFEST}: it was exported by an earlier version, its files are "
            "not checked",
            file=sys.stderr,
        )
        return
    fault = find_fault(folder)
    if fault is not None:
        raise DamagedFile(folder, fault, "copy or export the policy again")
