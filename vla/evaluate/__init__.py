"""Evaluation: success rates with intervals, paired tests, held-out starts and plots."""
