"""Recipes: what a run does from its settings to its report."""
