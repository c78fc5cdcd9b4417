"""Adapters in both directions between our policies and LeRobot's."""
