"""Prompts, reward and model of both sides of `text_grpo`."""

import hashlib
import random
import tempfile
from pathlib import Path

SEED = 0


def questions(count: int) -> list[str]:
    """Prompts for additions of two-digit numbers."""
    rng = random.Random(SEED)
    return [
        f"What is {rng.randint(10, 49)} + {rng.randint(10, 49)}? Answer with just the number."
        for _ in range(count)
    ]


def reward(text: str) -> float:
    """A number in [0, 1) that differs between texts, so every group has a gradient."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def model_folder(name: str) -> Path:
    """The transformers folder of a model; the tiny one is generated."""
    if name == "smollm2":
        from vla.text.smollm2_download import fetch_smollm2

        return fetch_smollm2()
    from vla.text.tiny_language_model import tiny_language_model

    folder = Path(tempfile.mkdtemp(prefix="tiny-"))
    model, tokenizer = tiny_language_model(questions(50), vocab_size=400)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
