"""Checkpoints and commands of other projects: the Hugging Face hub and LeRobot."""
