"""Rewards of text: verifiers, the code sandbox, reward models and judges."""
