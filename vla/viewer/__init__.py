"""The episode viewer."""
