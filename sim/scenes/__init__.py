"""Scenes: the table, its objects and its cameras."""
