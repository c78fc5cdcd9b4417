"""The reinforcement-learning core: one path for robots and text."""
