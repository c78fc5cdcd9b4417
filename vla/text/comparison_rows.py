"""Comparisons and thumbs of a file: checked before anything loads, made token ids, and split by
prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from vla.data.chat import ChatFormat
from vla.data.preferences import BinaryFeedback, Ranking, read_preferences
from vla.data.rows import RowReader
from vla.preference.kto import balanced_weights, mismatched_prompts
from vla.preference.objective import KTO, Objective, uses_margin
from vla.text.comparisons import select_clearest
from vla.text.hash_split import split_position
from vla.text.preference_training import BinaryExample, Comparison, encode_feedback, encode_ranking

HELD_OUT = 0.1
"""Share of the prompts that are held out where no comparison is on a held-out prompt."""


T = TypeVar("T", Ranking, BinaryFeedback, Comparison, BinaryExample)


def split_by_prompt(
    rows: Sequence[T], fraction: float, share: float = HELD_OUT
) -> tuple[list[T], list[T]]:
    """(rows to learn, rows held out), no prompt on both sides; decided by a hash of the prompt.

    Held out are the rows on prompts that `text.prompts.holdout_fraction` holds out. Where there are
    none, as among comparisons that were sampled on training prompts, `share` of the prompts is held
    out besides, one at least. Rows of a single prompt leave nothing to hold out. Raises ValueError
    where all are on held-out prompts.
    """
    positions = {row.key: split_position(row.key) for row in rows}
    lowest = min(positions.values())
    limit = fraction
    if lowest >= limit:
        limit = fraction + share * (1 - fraction)
        if lowest >= limit and len(positions) > 1:
            limit = sorted(positions.values())[1]
    train = [row for row in rows if positions[row.key] >= limit]
    if not train:
        raise ValueError(
            f"all {len(rows)} comparisons are on prompts that text.prompts.holdout_fraction ({fraction}) holds out:"
            " choose another, or give comparisons of more prompts"
        )
    return train, [row for row in rows if positions[row.key] < limit]


def read_comparisons(
    source: str,
    objective: Objective | None,
    fraction: float,
    keep_fraction: float | None,
    reader: RowReader,
) -> list[Ranking] | list[BinaryFeedback]:
    """The rows of `text.comparisons` that an objective learns from, and those held out. None: a
    reward model.

    Raises ValueError naming the row or the column that cannot be used, and thumbs that KTO can
    learn nothing from.
    """
    rows = read_preferences(source, reader)
    if isinstance(rows[0], BinaryFeedback):
        return _checked_thumbs(source, rows, objective, fraction, reader)  # type: ignore[arg-type]
    rankings = [row for row in rows if isinstance(row, Ranking)]
    _check_margins(rankings, objective, keep_fraction)
    if keep_fraction is not None:
        kept = select_clearest([row.margin or 0.0 for row in rankings], keep_fraction)
        reader.note(
            source, f"{len(kept)} of {len(rankings)} comparisons are kept (text.keep_fraction)"
        )
        rankings = [rankings[i] for i in kept]
    train, held_out = split_by_prompt(rankings, fraction)
    if isinstance(objective, KTO):
        _check_prompts(source, train)
    if held_out:
        reader.note(
            source,
            f"{len(held_out)} of {len(rankings)} comparisons are on held-out prompts, and not learned",
        )
    return rankings


def _checked_thumbs(
    source: str,
    thumbs: list[BinaryFeedback],
    objective: Objective | None,
    fraction: float,
    reader: RowReader,
) -> list[BinaryFeedback]:
    """The thumbs on training prompts."""
    if not isinstance(objective, KTO):
        who = (
            "a reward model needs comparisons"
            if objective is None
            else "only preference=kto can learn from them"
        )
        raise ValueError(f"text.comparisons ({source}) holds thumbs: {who}")
    learned = [thumb for thumb in thumbs if split_position(thumb.key) >= fraction]
    if len(learned) < len(thumbs):
        reader.note(
            source,
            f"{len(thumbs) - len(learned)} of {len(thumbs)} thumbs are on held-out prompts: left out",
        )
    _check_prompts(source, learned)
    num_liked = sum(thumb.liked for thumb in learned)
    if objective.balance:
        try:
            balanced_weights(num_liked, len(learned) - num_liked)
        except ValueError as error:
            raise ValueError(
                f"text.comparisons ({source}): {error}, or preference.balance=false"
            ) from None
    return learned


def _check_prompts(source: str, rows: Sequence[Ranking | BinaryFeedback]) -> None:
    try:
        mismatched_prompts([row.key for row in rows])
    except ValueError as error:
        raise ValueError(f"text.comparisons ({source}): {error}") from None


def _check_margins(
    rankings: Sequence[Ranking], objective: Objective | None, keep_fraction: float | None
) -> None:
    without = next((row for row in rankings if row.margin is None), None)
    if keep_fraction is not None and without is not None:
        raise ValueError(
            f"{without.where}: has neither margin nor scores, and text.keep_fraction ({keep_fraction}) keeps the"
            " largest margins: set it to null, or give every row one"
        )
    asks = next((row for row in rankings if row.target_margin is not None), None)
    if (
        asks is not None
        and objective is not None
        and not uses_margin(objective)
        and keep_fraction is None
    ):
        raise ValueError(
            f"{asks.where}: the column margin is used by preference=dpo and cdpo, by a reward model and by"
            f" text.keep_fraction, not by {type(objective).__name__}: leave it out, or choose one of them"
        )


def encode_comparisons(
    chat: ChatFormat,
    source: str,
    rows: Sequence[Ranking | BinaryFeedback],
    context: int | None,
    reader: RowReader,
) -> list[Comparison] | list[BinaryExample]:
    """Token ids of the rows. What the chat template refuses, and what is longer than the model's
    context, is a row that cannot be used.
    """
    found: list[Comparison | BinaryExample] = []
    for row in rows:
        try:
            found.append(_encoded(chat, row, context))
        except ValueError as error:
            reader.skip_row(source, f"{row.where}: {error}")
    if not found:
        raise ValueError(f"text.comparisons ({source}): none of {len(rows)} rows can be used")
    return found  # type: ignore[return-value]


def _encoded(
    chat: ChatFormat, row: Ranking | BinaryFeedback, context: int | None
) -> Comparison | BinaryExample:
    made = encode_ranking(chat, row) if isinstance(row, Ranking) else encode_feedback(chat, row)
    said = made.completions if isinstance(made, Comparison) else (made.completion,)
    longest = len(made.prompt) + max(map(len, said))
    if context is not None and longest > context:
        raise ValueError(f"takes {longest} tokens, the model has {context} positions: shorten it")
    return made
