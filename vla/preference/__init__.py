"""Losses on stored preferences: pairs, rankings and thumbs."""
