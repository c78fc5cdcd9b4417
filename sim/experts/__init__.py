"""Scripted experts: one controller a task, and `Expert`, which acts with them in all environments
at once."""

from sim.experts.expert import Expert

__all__ = ["Expert"]
