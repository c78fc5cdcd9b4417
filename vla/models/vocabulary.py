"""Reserved ids at the end of a vocabulary: action ids (RT-2), and location ids before them."""

from __future__ import annotations

NUM_ACTION_IDS = 256
"""The last ids of every vocabulary are action tokens (RT-2 and OpenVLA overwrite the least used
words)."""
NUM_LOCATIONS = 128
"""The ids before them are locations (as in PaliGemma and RT-2)."""


def location_ids(vocabulary_size: int) -> range:
    """Location ids of a vocabulary of this size; they begin below 0 where it is too small."""
    last = vocabulary_size - NUM_ACTION_IDS
    return range(last - NUM_LOCATIONS, last)


def action_ids(vocabulary_size: int) -> range:
    """Action ids of a vocabulary of this size; an empty range where it is too small."""
    return range(max(vocabulary_size - NUM_ACTION_IDS, 0) or vocabulary_size, vocabulary_size)
