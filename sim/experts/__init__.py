"""Scripted experts, which demonstrate tasks and recover from disturbances."""

from sim.experts.expert import Expert

__all__ = ["Expert"]
