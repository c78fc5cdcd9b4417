"""The robot pipeline: demonstrations, grounding, SFT, RECAP, RL and evaluation."""
