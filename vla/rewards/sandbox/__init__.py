"""Sandboxed execution of programs that a model wrote."""
