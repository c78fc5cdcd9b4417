"""Representations of actions: discretised, normalised, and drawn by generative processes."""
