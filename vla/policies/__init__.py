"""Policies: each draws actions and scores the draws it made."""
