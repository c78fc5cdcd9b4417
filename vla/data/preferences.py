"""Preference data from files or hub data sets: pairs, rankings with scores or ranks, and thumbs.

prompt, chosen, rejected         texts or messages; without prompt, both share their first
                                 messages. `margin`, or score_chosen and score_rejected,
                                 is the difference in quality
prompt, completions, scores      any number of completions with scores, ratings or `ranks`
                                 (1 is best); without, from best to worst.
                                 `completion_ids`, `finished`: as they were sampled
prompt, completion, label        a thumb: true, 1 or "up" is liked
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vla.data.messages import Message, parse_messages, parse_prompt, prompt_key
from vla.data.rows import Row, RowReader
from vla.files.reading import JsonMapping

LIKED_BY_LABEL = {
    **dict.fromkeys((True, "true", "1", "up", "good"), True),
    **dict.fromkeys((False, "false", "0", "down", "bad"), False),
}


PROMPT_COLUMNS = ("prompt", "question", "conversations", "messages")
"""Columns that may hold the prompt; a column `system` is its system message."""


@dataclass(frozen=True)
class Ranking:
    """Completions of one prompt from best to worst; a pair is a ranking of two.

    `margin` is the difference between best and worst. `target_margin` is the column `margin`, which
    the loss should reach. `ids` are the sampled token ids, and `finished` marks completions that
    ended by themselves; None where the row lacks them, and a completion then ends with its text.
    """

    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    margin: float | None
    where: str
    target_margin: float | None = None
    ids: tuple[tuple[int, ...], ...] | None = None
    finished: tuple[bool, ...] | None = None

    @property
    def key(self) -> str:
        """The key by which splits assign a row."""
        return prompt_key(self.prompt)


@dataclass(frozen=True)
class BinaryFeedback:
    """A completion with a thumb up or down."""

    prompt: tuple[Message, ...]
    completion: str
    liked: bool
    where: str

    @property
    def key(self) -> str:
        """The key by which splits assign a row."""
        return prompt_key(self.prompt)


def read_preferences(
    source: str, reader: RowReader | None = None
) -> list[Ranking] | list[BinaryFeedback]:
    """All rows of a source, which must be of one kind.

    Raises ValueError with the row and its fault.
    """
    reader = reader or RowReader()
    kind: type | None = None

    def use(row: Row) -> Ranking | BinaryFeedback:
        nonlocal kind
        preference = parse_preference(row)
        kind = kind or type(preference)
        if type(preference) is not kind:
            raise ValueError(
                f"{row.where}: thumbs and comparisons are mixed in one source; give them apart"
            )
        return preference

    rows = reader.read(source, use)
    reader.report_repeats(source, [_content(row) for row in rows])
    return rows  # type: ignore[return-value]


def _content(row: Ranking | BinaryFeedback) -> tuple[object, ...]:
    completions = row.completions if isinstance(row, Ranking) else (row.completion, row.liked)
    return tuple((message["role"], message["content"]) for message in row.prompt), completions


def parse_preference(row: Row) -> Ranking | BinaryFeedback:
    """A preference from a row of any kind.

    Raises ValueError with the row and its fault.
    """
    values = row.values
    where = row.where
    prompt_column = next((name for name in PROMPT_COLUMNS if name in values), None)
    if "chosen" in values and "rejected" in values:
        return _pair(row, prompt_column)
    if prompt_column and "completions" in values:
        return _ranking(row, prompt_column)
    if prompt_column and {"completion", "label"} <= set(values):
        label = values["label"]
        label = label.strip().casefold() if isinstance(label, str) else label
        if not isinstance(label, bool | int | float | str) or label not in LIKED_BY_LABEL:
            raise ValueError(
                f"{where}: label ({values['label']!r}) must be true or false, 1 or 0, up or down"
            )
        completion = _one_text(values["completion"], where, "completion")
        return BinaryFeedback(
            parse_prompt(values, where, prompt_column), completion, LIKED_BY_LABEL[label], where
        )
    raise ValueError(
        f"{where}: has the columns {', '.join(values) or 'none'}; needed are chosen and "
        "rejected, or prompt,"
        " completions and scores, or prompt, completion and label"
    )


def _pair(row: Row, prompt_column: str | None) -> Ranking:
    values = row.values
    where = row.where
    if prompt_column:
        prompt = parse_prompt(values, where, prompt_column)
        chosen = _one_text(values["chosen"], where, "chosen", prompt)
        rejected = _one_text(values["rejected"], where, "rejected", prompt)
    else:
        prompt, chosen, rejected = _implicit_prompt(values, where)
    if chosen == rejected:
        raise ValueError(f"{where}: chosen and rejected are equal, so the row has no preference")
    target = _number(values["margin"], where, "margin") if "margin" in values else None
    margin = target
    if margin is None and {"score_chosen", "score_rejected"} <= set(values):
        scores = [_number(values[name], where, name) for name in ("score_chosen", "score_rejected")]
        margin = scores[0] - scores[1]
    if margin is not None and margin < 0:
        raise ValueError(
            f"{where}: rejected is better than chosen by {-margin:g}; swap them, or correct the "
            "numbers"
        )
    return Ranking(prompt, (chosen, rejected), margin, where, target)


def _implicit_prompt(values: JsonMapping, where: str) -> tuple[tuple[Message, ...], str, str]:
    """The prompt that chosen and rejected share, and the one assistant turn after it in each."""
    if isinstance(values["chosen"], str) or isinstance(values["rejected"], str):
        raise ValueError(f"{where}: chosen and rejected are texts, so the row needs a prompt")
    chosen = parse_messages(values["chosen"], "assistant", where, "chosen")
    rejected = parse_messages(values["rejected"], "assistant", where, "rejected")
    if chosen == rejected:
        raise ValueError(f"{where}: chosen and rejected are equal, so the row has no preference")
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), 0)
    if shared == 0 or len(chosen) != shared + 1 or len(rejected) != shared + 1:
        raise ValueError(f"{where}: chosen and rejected must differ in their last message only")
    beginning = "what chosen and rejected begin with"
    prompt = parse_prompt({**values, beginning: chosen[:shared]}, where, beginning)
    return (
        prompt,
        _one_text(chosen[-1:], where, "chosen"),
        _one_text(rejected[-1:], where, "rejected"),
    )


def _ranking(row: Row, prompt_column: str) -> Ranking:
    values = row.values
    where = row.where
    if "margin" in values:
        raise ValueError(
            f"{where}: margin goes with chosen and rejected; completions have scores, ratings or "
            "ranks"
        )
    completions = [
        _one_text(text, where, "completions")
        for text in _list(values["completions"], where, "completions")
    ]
    if len(completions) < 2 or len(set(completions)) != len(completions):
        raise ValueError(
            f"{where}: completions ({len(completions)}) must be two or more different ones"
        )
    column = next((name for name in ("scores", "ratings", "ranks") if name in values), None)
    # Without numbers the order of the completions is the ranking.
    scores = [float(len(completions) - i) for i in range(len(completions))]
    if column is not None:
        sign = -1 if column == "ranks" else 1
        scores = [
            sign * _number(value, where, column)
            for value in _column_of_length(row, column, len(completions))
        ]
    if len(set(scores)) != len(scores):
        raise ValueError(
            f"{where}: {column} hold equal values; leave one of the tied completions out"
        )
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    margin = None if column in (None, "ranks") else scores[order[0]] - scores[order[-1]]
    ordered = tuple(completions[i] for i in order)
    ids, finished = _sampled_ids(row, order)
    prompt = parse_prompt(values, where, prompt_column)
    return Ranking(prompt, ordered, margin, where, None, ids, finished)


def _sampled_ids(
    row: Row, order: Sequence[int]
) -> tuple[tuple[tuple[int, ...], ...] | None, tuple[bool, ...] | None]:
    """Token ids and finished flags of every completion, in the given order; None where a row lacks
    them."""
    ids = finished = None
    if "completion_ids" in row.values:
        drawn = _column_of_length(row, "completion_ids", len(order))
        if not all(
            isinstance(one, Sequence) and one and all(type(i) is int and i >= 0 for i in one)
            for one in drawn
        ):
            raise ValueError(
                f"{row.where}: completion_ids must hold a list of token ids for every completion"
            )
        ids = tuple(tuple(drawn[i]) for i in order)
    if "finished" in row.values:
        ended = _column_of_length(row, "finished", len(order))
        if not all(isinstance(one, bool) for one in ended):
            raise ValueError(
                f"{row.where}: finished ({ended!r}) must be true or false for every completion"
            )
        finished = tuple(ended[i] for i in order)
    return ids, finished


def _column_of_length(row: Row, column: str, count: int) -> Sequence[Any]:
    values = _list(row.values[column], row.where, column)
    if len(values) != count:
        raise ValueError(
            f"{row.where}: {count} completions with {len(values)} {column}; needed are as many "
            "of one as of the other"
        )
    return values


def _list(value: object, where: str, column: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{where}: {column} must be a list, not {type(value).__name__}")
    return value


def _number(value: Any, where: str, column: str) -> float:
    """A finite number, or the text of one as in a CSV."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {column} holds {value!r}, which is no finite number")
    return number


def _one_text(value: object, where: str, column: str, prompt: tuple[Message, ...] = ()) -> str:
    """The assistant's text: a text, or messages of one assistant turn, with or without prompt."""
    messages = parse_messages(value, "assistant", where, column)
    if tuple(messages[: len(prompt)]) == prompt and len(messages) > len(prompt):
        messages = messages[len(prompt) :]
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise ValueError(f"{where}: {column} must be one assistant turn")
    return messages[0]["content"]
