"""Supervised training: the loop, its losses, head pretraining and detection."""
