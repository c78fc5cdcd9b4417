"""Open prompts without a correct answer, built in or from a file, and sampling of completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

import numpy as np
import torch

from vla.config.text import Prompts
from vla.data.chat import ChatFormat, observe_prompts
from vla.data.messages import (
    Message,
    messages_to_text,
    normalize_words,
    parse_prompt,
    prompt_key,
    user_message,
)
from vla.data.rows import Row, RowReader
from vla.policies.text import TextPolicy
from vla.text.hash_split import is_held_out
from vla.text.problem_families import WORDS
from vla.training.resumable_work import ResumableWork

REQUESTS = (
    "Write one or two sentences about a {}.",
    "Describe a {} to a child.",
    "Greet someone who is looking for a {}.",
    "What is a {} good for?",
)


@dataclass(frozen=True)
class PromptSets:
    """Training and evaluation prompts. `rows` maps prompts of a file to their messages."""

    train: list[str]
    evaluation: list[str]
    source: str = "built-in prompts"
    rows: Mapping[str, PromptRow] = field(default_factory=dict)

    def messages_for(self, prompt: str) -> Sequence[Message]:
        """The messages of a prompt."""
        return self.rows[prompt].messages if prompt in self.rows else user_message(prompt)

    def keep_usable(self, chat: ChatFormat, width: int, reader: RowReader) -> PromptSets:
        """The prompts that fit the chat template and `width` tokens; others are faulty rows.

        Raises:
            ValueError: no training or no evaluation prompt is left.
        """

        def fits(prompt: str) -> bool:
            try:
                count = len(chat.prompt(self.messages_for(prompt)))
                if count > width:
                    limit = f"text.generation.max_prompt_tokens is {width}: raise it"
                    raise ValueError(f"takes {count} tokens, {limit}")
            except ValueError as error:
                where = self.rows[prompt].where if prompt in self.rows else repr(prompt)
                reader.skip_row(self.source, f"{where}: {error}")
                return False
            return True

        sets = replace(
            self,
            train=list(filter(fits, self.train)),
            evaluation=list(filter(fits, self.evaluation)),
        )
        if not sets.train or not sets.evaluation:
            raise ValueError(
                f"{self.source}: {len(sets.train)} training and {len(sets.evaluation)} held-out "
                f"prompts take no more than text.generation.max_prompt_tokens ({width}): raise it"
            )
        return sets


@dataclass(frozen=True)
class PromptRow:
    """The messages of a row of a file, and the name of the row."""

    messages: tuple[Message, ...]
    where: str


@dataclass(frozen=True)
class Completion:
    """A completion: prompt and drawn token ids with their text; not `finished` if truncated."""

    prompt: str
    prompt_ids: list[int]
    text: str
    ids: list[int]
    finished: bool


def make_prompt_sets(settings: Prompts, reader: RowReader | None = None) -> PromptSets:
    """Prompts split by a hash of their words, each once.

    Raises:
        ValueError: a row has no prompt, or one side of the split is empty.
    """
    reader = reader or RowReader()
    rows: dict[str, PromptRow] = {}
    if settings.path is None:
        prompts = [request.format(word) for word in WORDS.split() for request in REQUESTS]
    else:
        rows = _read_prompts(settings.path, reader)
        prompts = list(rows)
    order = np.random.default_rng(0).permutation(len(prompts)).tolist()
    sides: dict[bool, list[str]] = {True: [], False: []}
    for prompt in (prompts[i] for i in order):
        key = prompt_key(rows[prompt].messages) if prompt in rows else prompt
        sides[is_held_out(key, settings.holdout_fraction)].append(prompt)
    if not sides[True] or not sides[False]:
        raise ValueError(
            f"text.prompts.holdout_fraction ({settings.holdout_fraction}) leaves "
            f"{len(sides[False])} training and {len(sides[True])} held-out prompts: choose "
            "another, or give more prompts"
        )
    if settings.path is not None:
        for limit, side, name in (
            (
                settings.num_train,
                sides[False],
                "training prompts are used (text.prompts.num_train)",
            ),
            (
                settings.num_evaluation,
                sides[True],
                "held-out prompts are used (text.prompts.num_evaluation)",
            ),
        ):
            if limit is not None and limit < len(side):
                reader.note(settings.path, f"{limit} of {len(side)} {name}")
    source = settings.path or "built-in prompts"
    return PromptSets(
        sides[False][: settings.num_train], sides[True][: settings.num_evaluation], source, rows
    )


def _read_prompts(source: str, reader: RowReader) -> dict[str, PromptRow]:
    """The prompts of a file by their text, each once."""

    def use(row: Row) -> PromptRow:
        if "prompt" not in row.values:
            raise ValueError(f"{row.where}: has no text in the column prompt")
        return PromptRow(parse_prompt(row.values, row.where), row.where)

    read = reader.read(source, use)
    unique: dict[str, PromptRow] = {}
    for row in read:
        unique.setdefault(normalize_words(messages_to_text(row.messages)), row)
    if len(unique) < len(read):
        reader.note(
            source,
            f"{len(read) - len(unique)} rows repeat the prompt of an earlier row; each counts once",
        )
    return {messages_to_text(row.messages): row for row in unique.values()}


def sample_completions(
    policy: TextPolicy,
    chat: ChatFormat,
    prompts: Sequence[str],
    count: int,
    width: int,
    *,
    greedy: bool = False,
    rows_at_once: int = 64,
    messages_for: Callable[[str], Sequence[Message]] = user_message,
    pieces: ResumableWork | None = None,
) -> list[list[Completion]]:
    """`count` completions of every prompt; `messages_for` maps a prompt to its messages.

    Every batch is one of `pieces`.
    """
    device = next(policy.parameters()).device
    encoded = [chat.prompt(messages_for(prompt)) for prompt in prompts]
    return _complete(
        policy, chat, list(prompts), encoded, count, width, greedy, rows_at_once, device, pieces
    )


def continue_prompts(
    policy: TextPolicy,
    chat: ChatFormat,
    prompts: Sequence[str],
    encoded: Sequence[list[int]],
    width: int,
    pieces: ResumableWork | None = None,
) -> list[Completion]:
    """One completion of each of the token ids `encoded`; `prompts` are their names."""
    device = next(policy.parameters()).device
    completions = _complete(
        policy, chat, list(prompts), list(encoded), 1, width, False, 64, device, pieces
    )
    return [group[0] for group in completions]


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
    pieces: ResumableWork | None,
) -> list[list[Completion]]:
    step = max(1, rows_at_once // count)

    def batch(start: int) -> list[list[Completion]]:
        part = encoded[start : start + step]
        repeated = [ids for ids in part for _ in range(count)]
        decision = policy.act(
            observe_prompts(repeated, width, policy.pad_id, device), greedy=greedy
        )
        drawn = [
            row[mask].tolist() for row, mask in zip(decision.action, decision.mask, strict=True)
        ]
        return [
            [
                _make_completion(chat, policy, prompts[start + i], ids, completion)
                for completion in drawn[i * count : (i + 1) * count]
            ]
            for i, ids in enumerate(part)
        ]

    batches = [partial(batch, start) for start in range(0, len(prompts), step)]
    completions = [
        sample() if pieces is None else pieces.next_value(list[list[Completion]], sample)
        for sample in batches
    ]
    return list(chain.from_iterable(completions))


def _make_completion(
    chat: ChatFormat, policy: TextPolicy, prompt: str, prompt_ids: list[int], ids: list[int]
) -> Completion:
    return Completion(
        prompt, prompt_ids, chat.completion_text(ids), ids, ids[-1] in policy.stop_ids
    )
