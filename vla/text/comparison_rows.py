"""Comparisons and thumbs of a file: checked before a model loads, encoded, and split by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, overload

from vla.data.chat import ChatFormat
from vla.data.preferences import BinaryFeedback, Ranking, read_preferences
from vla.data.rows import RowReader
from vla.preference.kto import balanced_weights, mismatched_prompts
from vla.preference.objective import KTO, Objective, uses_margin
from vla.text.comparisons import select_clearest
from vla.text.hash_split import split_position
from vla.text.preference_training import (
    BinaryExample,
    Comparison,
    encode_feedback,
    encode_ranking,
)

HELD_OUT = 0.1
"""Share of the prompts that are held out where no comparison is on a held-out prompt."""

T = TypeVar("T", Ranking, BinaryFeedback, Comparison, BinaryExample)
Row = TypeVar("Row", Ranking, BinaryFeedback)
Encoded = TypeVar("Encoded", Comparison, BinaryExample)


def split_by_prompt(
    rows: Sequence[T], fraction: float, share: float = HELD_OUT
) -> tuple[list[T], list[T]]:
    """(training rows, held-out rows), no prompt on both sides; a hash of the prompt decides.

    Rows on prompts that `text.prompts.holdout_fraction` (`fraction`) holds out are held out. Where
    there are none, as among comparisons sampled on training prompts, `share` of the prompts is held
    out, at least one. Rows of a single prompt leave nothing to hold out.

    Raises:
        ValueError: all rows are on held-out prompts.
    """
    positions = {row.key: split_position(row.key) for row in rows}
    lowest = min(positions.values())
    limit = fraction
    if lowest >= limit:
        limit = fraction + share * (1 - fraction)
        if lowest >= limit and len(positions) > 1:
            limit = sorted(positions.values())[1]  # hold out the first prompt alone
    train = [row for row in rows if positions[row.key] >= limit]
    if not train:
        raise ValueError(
            f"all {len(rows)} comparisons are on prompts that text.prompts.holdout_fraction "
            f"({fraction}) holds out: choose another, or give comparisons of more prompts"
        )
    return train, [row for row in rows if positions[row.key] < limit]


def read_comparisons(
    source: str,
    objective: Objective | None,
    fraction: float,
    keep_fraction: float | None,
    reader: RowReader,
) -> list[Ranking] | list[BinaryFeedback]:
    """The rows of `text.comparisons`, checked for an objective; None stands for a reward model.

    Rankings include those on held-out prompts, thumbs do not.

    Raises:
        ValueError: a row or column cannot be used, or the objective cannot learn from the rows.
    """
    rows = read_preferences(source, reader)
    feedback = [row for row in rows if isinstance(row, BinaryFeedback)]
    if feedback:
        return _check_feedback(source, feedback, objective, fraction, reader)
    rankings = [row for row in rows if isinstance(row, Ranking)]
    _check_margins(rankings, objective, keep_fraction)
    if keep_fraction is not None:
        clearest = select_clearest([row.margin or 0.0 for row in rankings], keep_fraction)
        reader.note(
            source, f"{len(clearest)} of {len(rankings)} comparisons are kept (text.keep_fraction)"
        )
        rankings = [rankings[i] for i in clearest]
    train, held_out = split_by_prompt(rankings, fraction)
    if isinstance(objective, KTO):
        _check_prompts(source, train)
    if held_out:
        reader.note(
            source,
            f"{len(held_out)} of {len(rankings)} comparisons are on held-out prompts, "
            "and not learned",
        )
    return rankings


def read_rankings(source: str, fraction: float, reader: RowReader) -> list[Ranking]:
    """The rows of `text.comparisons` for a reward model.

    Raises:
        ValueError: as `read_comparisons`; thumbs are refused.
    """
    rows = read_comparisons(source, None, fraction, None, reader)
    return [row for row in rows if isinstance(row, Ranking)]


def _check_feedback(
    source: str,
    feedback: list[BinaryFeedback],
    objective: Objective | None,
    fraction: float,
    reader: RowReader,
) -> list[BinaryFeedback]:
    """The thumbs on training prompts.

    Raises:
        ValueError: the objective is not KTO, or cannot learn from these thumbs.
    """
    if not isinstance(objective, KTO):
        reason = (
            "a reward model needs comparisons"
            if objective is None
            else "only preference=kto can learn from them"
        )
        raise ValueError(f"text.comparisons ({source}) holds thumbs: {reason}")
    train = [row for row in feedback if split_position(row.key) >= fraction]
    if len(train) < len(feedback):
        reader.note(
            source,
            f"{len(feedback) - len(train)} of {len(feedback)} thumbs are on held-out prompts: "
            "left out",
        )
    _check_prompts(source, train)
    num_liked = sum(row.liked for row in train)
    if objective.balance:
        try:
            balanced_weights(num_liked, len(train) - num_liked)
        except ValueError as error:
            raise ValueError(
                f"text.comparisons ({source}): {error}, or preference.balance=false"
            ) from None
    return train


def _check_prompts(source: str, rows: Sequence[Ranking | BinaryFeedback]) -> None:
    """Refuse rows that all have one prompt: KTO's baseline needs two."""
    try:
        mismatched_prompts([row.key for row in rows])
    except ValueError as error:
        raise ValueError(f"text.comparisons ({source}): {error}") from None


def _check_margins(
    rankings: Sequence[Ranking], objective: Objective | None, keep_fraction: float | None
) -> None:
    """Refuse rows without a margin where margins are needed, and margins that nothing uses."""
    without = next((row for row in rankings if row.margin is None), None)
    if keep_fraction is not None and without is not None:
        raise ValueError(
            f"{without.where}: has neither margin nor scores, and text.keep_fraction "
            f"({keep_fraction}) keeps the largest margins: set it to null, or give every row one"
        )
    unused = next((row for row in rankings if row.target_margin is not None), None)
    if (
        unused is not None
        and objective is not None
        and not uses_margin(objective)
        and keep_fraction is None
    ):
        raise ValueError(
            f"{unused.where}: the column margin is used by preference=dpo and cdpo, by a reward "
            f"model and by text.keep_fraction, not by {type(objective).__name__}: leave it out, "
            "or choose one of them"
        )


@overload
def encode_comparisons(
    chat: ChatFormat,
    source: str,
    rows: Sequence[Ranking],
    context: int | None,
    reader: RowReader,
) -> list[Comparison]: ...
@overload
def encode_comparisons(
    chat: ChatFormat,
    source: str,
    rows: Sequence[BinaryFeedback],
    context: int | None,
    reader: RowReader,
) -> list[BinaryExample]: ...
def encode_comparisons(
    chat: ChatFormat,
    source: str,
    rows: Sequence[Ranking] | Sequence[BinaryFeedback],
    context: int | None,
    reader: RowReader,
) -> list[Comparison] | list[BinaryExample]:
    """Token ids of the rows, all of one kind.

    A row that the chat template refuses, or that is longer than the model's `context` (tokens), is
    a faulty row of `reader`.

    Raises:
        ValueError: no row can be used.
    """
    rankings = [row for row in rows if isinstance(row, Ranking)]
    if rankings:
        return _encode_all(source, rankings, partial(encode_ranking, chat), context, reader)
    feedback = [row for row in rows if isinstance(row, BinaryFeedback)]
    return _encode_all(source, feedback, partial(encode_feedback, chat), context, reader)


def _encode_all(
    source: str,
    rows: Sequence[Row],
    encode: Callable[[Row], Encoded],
    context: int | None,
    reader: RowReader,
) -> list[Encoded]:
    encoded = []
    for row in rows:
        try:
            example = encode(row)
            if context is not None and example.num_tokens > context:
                raise ValueError(
                    f"takes {example.num_tokens} tokens, the model has {context} positions: "
                    "shorten it"
                )
        except ValueError as error:
            reader.skip_row(source, f"{row.where}: {error}")
        else:
            encoded.append(example)
    if not encoded:
        raise ValueError(f"text.comparisons ({source}): none of {len(rows)} rows can be used")
    return encoded
