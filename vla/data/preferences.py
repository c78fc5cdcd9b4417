"""Preferences from files or hub data sets: pairs, rankings, scores or ratings, and thumbs.

prompt, chosen, rejected        texts or lists of messages; without prompt, chosen and rejected begin with the same
messages prompt, completions, scores     any number of completions with scores, ratings or `ranks` (1 is best) prompt,
completion, label       a thumb: true, 1 or "up" is liked
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla.data.messages import Message, as_messages
from vla.data.rows import Row, RowReader

LIKED = {True: True, False: False, "up": True, "down": False, "good": True, "bad": False}


@dataclass(frozen=True)
class Ranking:
    """Completions of one prompt from best to worst; a pair is a ranking of two. `margin` is by how much best and worst
    differ.
    """

    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    margin: float | None
    where: str


@dataclass(frozen=True)
class Thumb:
    """A completion that was liked or not."""

    prompt: tuple[Message, ...]
    completion: str
    liked: bool
    where: str


def read_preferences(source: str, reader: RowReader | None = None) -> list[Ranking] | list[Thumb]:
    """All rows of a source, which must be of one kind.

    Raises ValueError naming the row and what is wrong with it.
    """
    rows = (reader or RowReader()).read(source, preference_of)
    kinds = {type(row) for row in rows}
    if len(kinds) > 1:
        odd = next(row for row in rows if type(row) is not type(rows[0]))
        raise ValueError(f"{odd.where}: thumbs and comparisons are mixed in one source; give them apart")
    return rows  # type: ignore[return-value]


def preference_of(row: Row) -> Ranking | Thumb:
    """A row of any of the kinds."""
    values = row.values
    if "chosen" in values and "rejected" in values:
        return _pair(row)
    if "prompt" in values and "completions" in values:
        return _ranking(row)
    if {"prompt", "completion", "label"} <= set(values):
        prompt = tuple(as_messages(values["prompt"], "user", row.where, "prompt"))
        label = values["label"]
        if not isinstance(label, bool | int | str) or label not in LIKED:
            raise ValueError(f"{row.where}: label ({label!r}) must be true or false, 1 or 0, up or down")
        return Thumb(prompt, _one_text(values["completion"], row.where, "completion"), LIKED[label], row.where)
    raise ValueError(
        f"{row.where}: has the columns {', '.join(values) or 'none'}; needed are chosen and rejected, or prompt,"
        " completions and scores, or prompt, completion and label"
    )


def _pair(row: Row) -> Ranking:
    values, where = row.values, row.where
    if "prompt" in values:
        prompt = tuple(as_messages(values["prompt"], "user", where, "prompt"))
        chosen = _one_text(values["chosen"], where, "chosen", prompt)
        rejected = _one_text(values["rejected"], where, "rejected", prompt)
    else:
        prompt, chosen, rejected = _implicit_prompt(values, where)
    if chosen == rejected:
        raise ValueError(f"{where}: chosen and rejected are equal, so the row says nothing")
    margin = values.get("margin")
    if margin is None and {"score_chosen", "score_rejected"} <= set(values):
        margin = float(values["score_chosen"]) - float(values["score_rejected"])
    return Ranking(prompt, (chosen, rejected), None if margin is None else float(margin), where)


def _implicit_prompt(values: Mapping[str, Any], where: str) -> tuple[tuple[Message, ...], str, str]:
    """The messages with which chosen and rejected both begin are the prompt; one assistant turn must follow in each."""
    if isinstance(values["chosen"], str) or isinstance(values["rejected"], str):
        raise ValueError(f"{where}: chosen and rejected are texts, so the row needs a prompt")
    chosen = as_messages(values["chosen"], "assistant", where, "chosen")
    rejected = as_messages(values["rejected"], "assistant", where, "rejected")
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), 0)
    if shared == 0 or len(chosen) != shared + 1 or len(rejected) != shared + 1:
        raise ValueError(f"{where}: chosen and rejected must differ in their last message only")
    return tuple(chosen[:shared]), chosen[-1]["content"], rejected[-1]["content"]


def _ranking(row: Row) -> Ranking:
    values, where = row.values, row.where
    prompt = tuple(as_messages(values["prompt"], "user", where, "prompt"))
    completions = [_one_text(text, where, "completions") for text in values["completions"]]
    column = next((name for name in ("scores", "ratings", "ranks") if name in values), None)
    if column is None:
        scores: Sequence[float] = range(len(completions), 0, -1)  # no numbers: they stand from best to worst
    else:
        scores = [-float(v) if column == "ranks" else float(v) for v in values[column]]
    if len(scores) != len(completions) or len(completions) < 2:
        raise ValueError(
            f"{where}: {len(completions)} completions with {len(scores)} {column}; needed are two or more of both"
        )
    if not all(math.isfinite(score) for score in scores):
        raise ValueError(f"{where}: {column} hold a value that is not finite")
    if len(set(scores)) != len(scores):
        raise ValueError(f"{where}: {column} hold equal values; leave one of the tied completions out")
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    margin = None if column in (None, "ranks") else float(scores[order[0]] - scores[order[-1]])
    return Ranking(prompt, tuple(completions[i] for i in order), margin, where)


def _one_text(value: Any, where: str, column: str, prompt: tuple[Message, ...] = ()) -> str:
    """What the assistant says: a text, or messages of one assistant turn, perhaps behind the prompt."""
    messages = as_messages(value, "assistant", where, column)
    if tuple(messages[: len(prompt)]) == prompt and len(messages) > len(prompt):
        messages = messages[len(prompt) :]
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise ValueError(f"{where}: {column} must be one assistant turn")
    return messages[0]["content"]


def as_thumbs(rankings: Sequence[Ranking]) -> list[Thumb]:
    """The best of each ranking liked, the worst disliked."""
    return [
        Thumb(ranking.prompt, ranking.completions[i], i == 0, ranking.where) for ranking in rankings for i in (0, -1)
    ]
