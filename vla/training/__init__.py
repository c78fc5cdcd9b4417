"""Training loops that robots and text share."""
