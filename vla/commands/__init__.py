"""Console commands: `vla-train`, `vla-eval`, `vla-view`, `vla-serve`, `vla-export` and more.

`scripts/*.py` start the same functions from a checkout that is not installed.
"""
