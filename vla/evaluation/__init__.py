"""Held-out evaluation: start sets, results with intervals, perturbation sweeps, videos, plots."""
