"""Recipes of robot runs."""
