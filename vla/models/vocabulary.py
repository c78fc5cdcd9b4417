"""Which ids of a vocabulary are not words: the last ones are actions (RT-2), those before them
places."""

from __future__ import annotations

NUM_ACTION_IDS = 256
"""The last ids of every vocabulary are action tokens (RT-2 and OpenVLA overwrite the least used
words)."""
NUM_LOCATIONS = 128
"""The ids before them are places (PaliGemma and RT-2 write places so)."""


def location_ids(vocabulary_size: int) -> range:
    """The ids that stand for places in a vocabulary of this size."""
    last = vocabulary_size - NUM_ACTION_IDS
    return range(last - NUM_LOCATIONS, last)


def action_ids(vocabulary_size: int) -> range:
    """The ids that stand for actions in a vocabulary of this size; none where it has no room for
    them."""
    return range(max(vocabulary_size - NUM_ACTION_IDS, 0) or vocabulary_size, vocabulary_size)
