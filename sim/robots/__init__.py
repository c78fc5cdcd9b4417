"""Robots: a Franka Panda and a four-axis gantry with one gripper."""
