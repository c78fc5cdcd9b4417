"""The console commands: `vla-train`, `vla-eval`, `vla-view`, `vla-serve`, `vla-export`,
`vla-collect`.

`scripts/*.py` start the same functions from a checkout that is not installed.
"""
