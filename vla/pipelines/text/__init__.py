"""The recipes of `mode=text`, one a file; run.py selects one."""
