"""Rewards: verifiers, the sandbox, reward models and judges."""
