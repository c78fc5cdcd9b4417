"""The recipes of `mode=text`, one in each file; run.py selects one."""
