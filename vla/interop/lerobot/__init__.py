"""Policies of ours for LeRobot's commands, and policies of LeRobot for ours."""
