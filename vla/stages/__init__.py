"""The stages of a robot run."""
