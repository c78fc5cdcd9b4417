"""Open prompts, which have no right answer: built in, or from a file; and what a model says to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vla.config.text import Prompts
from vla.data.chat import ChatFormat, observe_prompts
from vla.data.rows import read_rows
from vla.policies.text import TextPolicy
from vla.text.problems import WORDS, is_held_out

REQUESTS = (
    "Write one or two sentences about a {}.",
    "Describe a {} to a child.",
    "Greet someone who is looking for a {}.",
    "What is a {} good for?",
)


@dataclass(frozen=True)
class PromptSets:
    """Prompts to train on, and prompts that only the reported numbers see."""

    train: list[str]
    evaluation: list[str]


@dataclass(frozen=True)
class Said:
    """One completion: the ids that were read and drawn, and the text they make. `finished`: it ended by itself."""

    prompt: str
    prompt_ids: list[int]
    text: str
    ids: list[int]
    finished: bool


def make_prompt_sets(settings: Prompts) -> PromptSets:
    """Split prompts by a hash of their text.

    Raises ValueError naming the row without a prompt, or when one side of the split is empty.
    """
    if settings.path is None:
        prompts = [request.format(word) for word in WORDS.split() for request in REQUESTS]
    else:
        prompts = []
        for row in read_rows(settings.path):
            prompt = row.values.get("prompt")
            if not isinstance(prompt, str) or not prompt:
                raise ValueError(f"{row.where}: has no text in the column prompt")
            prompts.append(prompt)
    prompts = list(dict.fromkeys(prompts))
    order = np.random.default_rng(0).permutation(len(prompts)).tolist()
    held_out = [prompts[i] for i in order if is_held_out(prompts[i], settings.holdout_fraction)]
    train = [prompts[i] for i in order if not is_held_out(prompts[i], settings.holdout_fraction)]
    if not train or not held_out:
        raise ValueError(
            f"text.prompts.holdout_fraction ({settings.holdout_fraction}) leaves {len(train)} training and"
            f" {len(held_out)} held-out prompts: choose another, or give more prompts"
        )
    return PromptSets(train[: settings.num_train], held_out[: settings.num_evaluation])


def say(
    policy: TextPolicy,
    chat: ChatFormat,
    prompts: Sequence[str],
    count: int,
    width: int,
    *,
    greedy: bool = False,
    rows_at_once: int = 64,
    encoded: Sequence[list[int]] | None = None,
) -> list[list[Said]]:
    """`count` completions of every prompt, asked as a user's message, or by the ids in `encoded`."""
    device = next(policy.parameters()).device
    if encoded is None:
        encoded = [chat.prompt([{"role": "user", "content": prompt}]) for prompt in prompts]
    return _complete(policy, chat, list(prompts), list(encoded), count, width, greedy, rows_at_once, device)


def continue_prompts(
    policy: TextPolicy, chat: ChatFormat, prompts: Sequence[str], encoded: Sequence[list[int]], width: int
) -> list[Said]:
    """One completion of each of the given ids; `prompts` name them."""
    device = next(policy.parameters()).device
    return [said[0] for said in _complete(policy, chat, list(prompts), list(encoded), 1, width, False, 64, device)]


def _complete(
    policy: TextPolicy,
    chat: ChatFormat,
    prompts: list[str],
    encoded: list[list[int]],
    count: int,
    width: int,
    greedy: bool,
    rows_at_once: int,
    device: torch.device,
) -> list[list[Said]]:
    said: list[list[Said]] = []
    step = max(1, rows_at_once // count)
    for start in range(0, len(prompts), step):
        part = encoded[start : start + step]
        asked = [ids for ids in part for _ in range(count)]
        decision = policy.act(observe_prompts(asked, width, policy.pad_id, device), greedy=greedy)
        drawn = [row[mask].tolist() for row, mask in zip(decision.action, decision.mask, strict=True)]
        for i, ids in enumerate(part):
            own = drawn[i * count : (i + 1) * count]
            said.append([_said(chat, policy, prompts[start + i], ids, completion) for completion in own])
    return said


def _said(chat: ChatFormat, policy: TextPolicy, prompt: str, prompt_ids: list[int], ids: list[int]) -> Said:
    return Said(prompt, prompt_ids, chat.completion_text(ids), ids, ids[-1] in policy.stop_ids)
